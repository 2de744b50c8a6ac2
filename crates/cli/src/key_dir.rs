//! The folder of signing keys that token-issuer follows: one file per key. Its
//! name begins with the time of creation, so that names sort by age.

use anyhow::{Context as _, Result, bail, ensure};
use session_core::Timestamp;
use session_token::Signer;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longer than the default times of token-issuer: publication before signing,
/// plus the time in which the last token of a key can be accepted.
const SURELY_DEAD: Duration = Duration::from_secs(25 * 3600);
/// Minimum length of a key id prefix.
pub(crate) const LEAST_NAME: usize = 8;
/// Keys that token-issuer reads at most.
pub(crate) const MAX_KEYS: usize = 32;

/// A key in the folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct KeyFile {
    pub(crate) file: PathBuf,
    pub(crate) kid: String,
}

/// A time as used in file names: `20261125T152258Z`.
pub(crate) fn stamp(at: Timestamp) -> String {
    at.to_string().replace(['-', ':'], "")
}

/// Whether the key with this file name is so old that no token of an earlier key
/// can be valid. Names without a time never are.
pub(crate) fn replaces_all_before(name: &str, now: Timestamp) -> bool {
    name.starts_with("20") && name < stamp(now.before(SURELY_DEAD)).as_str()
}

/// The keys, oldest first.
pub(crate) fn list(dir: &Path) -> Result<Vec<KeyFile>> {
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let file = entry?.path();
        let hidden = file
            .file_name()
            .is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if hidden || file.extension().is_none_or(|ending| ending != "pem") {
            continue;
        }
        let pem = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let signer = Signer::from_pkcs8_pem(&pem).with_context(|| file.display().to_string())?;
        keys.push(KeyFile {
            kid: signer.kid().to_owned(),
            file,
        });
    }
    keys.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(keys)
}

/// Creates a key in the folder, and the folder if it does not exist.
pub(crate) fn rotate(dir: &Path, now: Timestamp) -> Result<KeyFile> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("making {}", dir.display()))?;
    // Written under a hidden name and then renamed, so that no partial file is
    // visible.
    let unfinished = dir.join(format!(".{}-{}", stamp(now), std::process::id()));
    let kid = crate::keys::write_signing_key(&unfinished)?;
    let file = dir.join(format!("{}-{}.pem", stamp(now), &kid[..LEAST_NAME]));
    std::fs::rename(&unfinished, &file).with_context(|| format!("writing {}", file.display()))?;
    Ok(KeyFile { file, kid })
}

/// Removes a key whose tokens are all invalid, or any key in an `emergency`.
/// Returns it, and the key that had to be created first.
pub(crate) fn retire(
    dir: &Path,
    kid: &str,
    emergency: bool,
    now: Timestamp,
) -> Result<(KeyFile, Option<KeyFile>)> {
    ensure!(
        kid.len() >= LEAST_NAME,
        "give at least {LEAST_NAME} characters of the key's id"
    );
    let keys = list(dir)?;
    let found: Vec<_> = keys.iter().filter(|key| key.kid.starts_with(kid)).collect();
    let [gone] = found[..] else {
        bail!(
            "{} keys of {} have an id that begins with {kid}",
            found.len(),
            dir.display()
        );
    };
    let mut made = None;
    if emergency {
        if keys.len() == 1 {
            made = Some(rotate(dir, now)?);
        }
    } else {
        let name = |key: &KeyFile| {
            key.file
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let followed = keys.iter().any(|key| {
            let later = key.file > gone.file;
            later && name(key).is_some_and(|name| replaces_all_before(&name, now))
        });
        ensure!(
            followed,
            "tokens of this key may still be good: the key after it is not a day old. \
             token-issuer's log says when a file can be removed; --emergency removes it now"
        );
    }
    std::fs::remove_file(&gone.file).with_context(|| format!("removing {}", gone.file.display()))?;
    Ok((gone.clone(), made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn keys_are_made_listed_and_retired_when_it_is_safe() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("keys");
        let then = Timestamp::from_millis(1_795_305_599_000);
        let first = rotate(&dir, then).unwrap();
        assert!(
            first
                .file
                .ends_with(format!("20261121T235959Z-{}.pem", &first.kid[..8]))
        );
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&first.file)), (0o700, 0o600));
        let second = rotate(&dir, then.after(DAY)).unwrap();
        assert_eq!(list(&dir).unwrap(), [first.clone(), second.clone()]);

        let early = retire(&dir, &first.kid, false, then.after(DAY * 2)).unwrap_err();
        assert!(early.to_string().contains("may still be good"), "{early}");
        assert!(
            retire(&dir, &second.kid, false, then.after(DAY * 9)).is_err(),
            "nothing follows it"
        );
        assert!(retire(&dir, "x", true, then).is_err());
        assert!(retire(&dir, "not-a-key-of-ours", true, then).is_err());
        let (gone, made) = retire(&dir, &first.kid[..10], false, then.after(DAY * 3)).unwrap();
        assert_eq!((gone, made), (first, None));
    }

    #[test]
    fn in_an_emergency_the_last_key_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_millis(1_795_305_599_000);
        let leaked = rotate(dir.path(), now).unwrap();
        let (gone, made) = retire(dir.path(), &leaked.kid, true, now.after(DAY)).unwrap();
        assert_eq!(gone, leaked);
        assert_eq!(list(dir.path()).unwrap(), [made.unwrap()]);
    }
}
