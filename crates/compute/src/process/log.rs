//! The end of an engine's log, fit to be shown.

use session_core::route::Secret;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a log is ever shown.
pub(crate) const TAIL_BYTES: usize = 4096;
/// How much of it goes into the cause of a failure.
const CAUSE_BYTES: usize = 600;
const MASK: &str = "[secret]";

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

/// The last lines of a tail that tell most: what is no stack frame, and short.
pub(crate) fn last_words(tail: &str) -> String {
    let telling: Vec<&str> = tail
        .lines()
        .map(str::trim_end)
        .filter(|line| {
            !line.is_empty() && !line.trim_start().starts_with("at ") && !line.trim_start().starts_with("...")
        })
        .collect();
    let last = telling.len().saturating_sub(4);
    clip(&telling[last..].join("\n"), CAUSE_BYTES)
}

fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    // More than is shown, so that a secret on the cut is still seen whole.
    file.seek(SeekFrom::Start(len.saturating_sub(2 * TAIL_BYTES as u64)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(end)
}

/// Keeps the last `limit` bytes, without a partial first line if it can.
fn clip(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let cut = (text.len() - limit..text.len())
        .find(|&i| text.is_char_boundary(i))
        .unwrap_or(text.len());
    let end = &text[cut..];
    match end.find('\n') {
        Some(line_end) if line_end + 1 < end.len() => end[line_end + 1..].to_owned(),
        Some(_) | None => end.to_owned(),
    }
}

/// Hides known secrets, and what stands behind words that announce one.
pub(crate) fn mask(text: &str, secrets: &[Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if !secret.expose().is_empty() {
            text = text.replace(secret.expose(), MASK);
        }
    }
    text.lines().map(mask_line).collect::<Vec<_>>().join("\n")
}

fn mask_line(line: &str) -> String {
    const ANNOUNCE: [&str; 8] = [
        "password",
        "passwd",
        "secret",
        "token",
        "credential",
        "accesskey",
        "access_key",
        "authorization",
    ];
    // ASCII lowering keeps every byte where it is.
    let lower = line.to_ascii_lowercase();
    let mut masked = String::with_capacity(line.len());
    let mut at = 0;
    while let Some((start, word)) = ANNOUNCE
        .iter()
        .filter_map(|word| lower[at..].find(word).map(|i| (at + i, *word)))
        .min_by_key(|(i, _)| *i)
    {
        let name_end = lower[start + word.len()..]
            .find(|c: char| !c.is_ascii_alphanumeric() && !"._-\"'".contains(c))
            .map_or(line.len(), |i| start + word.len() + i);
        let value = &line[name_end..];
        let separators = value.len() - value.trim_start_matches([' ', ':', '=', '>']).len();
        let announced = value[..separators].contains([':', '=']);
        if !announced {
            masked.push_str(&line[at..name_end]);
            at = name_end;
            continue;
        }
        let value_start = name_end + separators;
        let value = &line[value_start..];
        let scheme = ["Bearer ", "Basic ", "bearer ", "basic "]
            .iter()
            .find(|scheme| value.starts_with(**scheme))
            .map_or(0, |scheme| scheme.len());
        let value_len = value[scheme..]
            .find(|c: char| c.is_whitespace() || ",;&)]}".contains(c))
            .map_or(value.len(), |i| scheme + i);
        masked.push_str(&line[at..value_start]);
        if value_len > 0 {
            masked.push_str(MASK);
        }
        at = value_start + value_len;
    }
    masked.push_str(&line[at..]);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked() {
        let known = [Secret::new("s3cr3t")];
        let masked = |text: &str| mask(text, &known);
        assert_eq!(masked("x s3cr3t y"), "x [secret] y");
        assert_eq!(masked("password=abc, user=me"), "password=[secret], user=me");
        assert_eq!(
            masked("Authorization: Bearer eyJ.a.b end"),
            "Authorization: [secret] end"
        );
        assert_eq!(
            masked("spark.hadoop.fs.s3a.secret.key = abc"),
            "spark.hadoop.fs.s3a.secret.key = [secret]"
        );
        assert_eq!(masked("{\"token\":\"abc\"}"), "{\"token\":[secret]}");
        assert_eq!(masked("unexpected token in line 3"), "unexpected token in line 3");
        assert_eq!(
            masked("a token=x and a token=y"),
            "a token=[secret] and a token=[secret]"
        );
        assert_eq!(masked("größe password=ä b"), "größe password=[secret] b");
    }

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

    #[test]
    fn last_words_leave_stack_frames_out() {
        let tail = "INFO a\nException: no such catalog\n\tat x.y(Z.java:1)\n\t... 3 more\n";
        assert_eq!(last_words(tail), "INFO a\nException: no such catalog");
    }
}
