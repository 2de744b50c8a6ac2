//! The end of an engine's log, prepared for users.

use crate::user_message::{clip, mask};
use session_core::route::Secret;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Maximum bytes of a log that are shown.
pub(crate) const TAIL_BYTES: usize = 4096;

/// The last ≤ 4 KiB of the log, whole lines, secrets masked.
pub(crate) fn tail(path: &Path, secrets: &[Secret]) -> String {
    let newest = read_end(path).unwrap_or_default();
    let text = if newest.len() < TAIL_BYTES {
        let mut both = read_end(&path.with_extension("log.1")).unwrap_or_default();
        both.extend(newest);
        both
    } else {
        newest
    };
    clip(&mask(&String::from_utf8_lossy(&text), secrets), TAIL_BYTES)
}

fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    // Read more than is shown, so that a secret at the cut is recognized.
    file.seek(SeekFrom::Start(len.saturating_sub(2 * TAIL_BYTES as u64)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_short_and_begin_with_a_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.log");
        let lines: String = (0..2000).map(|i| format!("line {i}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let tail = tail(&path, &[]);
        assert!(
            tail.len() <= TAIL_BYTES && tail.starts_with("line ") && tail.ends_with("line 1999"),
            "{tail}"
        );
        assert_eq!(super::tail(&dir.path().join("none.log"), &[]), "");
    }
}
