//! Files of one user: folder 0700, files 0600, atomic replacement, and a lock
//! between commands that run at the same time.

use anyhow::{Context, Result, bail};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Maximum time for which a command waits for another one's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum size of a file that is read here, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Berth's folder of settings: `BERTH_CONFIG_DIR`, else the place that the
/// operating system has for it.
pub(crate) fn config_dir() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = variable("BERTH_CONFIG_DIR") {
        return Ok(dir.into());
    }
    let home = || {
        let home = variable("HOME").context("HOME is not set: set it, or BERTH_CONFIG_DIR")?;
        anyhow::Ok(PathBuf::from(home))
    };
    if cfg!(target_os = "macos") {
        return Ok(home()?.join("Library/Application Support/berth"));
    }
    match variable("XDG_CONFIG_HOME").map(PathBuf::from) {
        // The specification of the variable says that other paths are ignored.
        Some(dir) if dir.is_absolute() => Ok(dir.join("berth")),
        Some(_) | None => Ok(home()?.join(".config/berth")),
    }
}

/// The text of a file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    if size > MAX_FILE_BYTES {
        bail!("{} is larger than {MAX_FILE_BYTES} bytes", path.display());
    }
    std::io::read_to_string(file)
        .map(Some)
        .with_context(|| format!("reading {}", path.display()))
}

/// As [`read`], for a file with a secret: fails if other users can read it.
pub(crate) fn read_secret(path: &Path) -> Result<Option<String>> {
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.mode() & 0o077 != 0
    {
        bail!(
            "{0} holds a secret and is open to other users: chmod 600 {0}, or sign in again",
            path.display()
        );
    }
    read(path)
}

/// Replaces a file as a whole; readers see the old text or the new one.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    create_dir(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The rest of it has no use.
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("writing {}", path.display()))
}

fn create_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("creating {}", dir.display()))
}

/// Removes a file; returns whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

/// The lock beside a file, held until dropped. The lock file itself stays: a
/// removed one could be locked by two commands.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock of `path`, for a minute at most.
    pub(crate) async fn of(path: &Path) -> Result<Self> {
        let path = path.with_extension("lock");
        create_dir(path.parent().unwrap_or(Path::new(".")))?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_TIMEOUT => {
                    tokio::time::sleep(LOCK_POLL_INTERVAL).await;
                }
                Err(TryLockError::WouldBlock) => bail!(
                    "another berth command holds {} for more than a minute: end it, and try again",
                    path.display()
                ),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_private_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/b/tokens.json");
        write(&file, "one").unwrap();
        write(&file, "two").unwrap();
        assert_eq!(read_secret(&file).unwrap().as_deref(), Some("two"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        let names = std::fs::read_dir(file.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "no temporary file remains");

        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let problem = read_secret(&file).unwrap_err().to_string();
        assert!(problem.contains("chmod 600"), "{problem}");
        assert!(remove(&file).unwrap());
        assert!(!remove(&file).unwrap());
        assert_eq!(read(&file).unwrap(), None);
    }

    #[tokio::test]
    async fn a_lock_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens.json");
        let held = Lock::of(&file).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(200), Lock::of(&file));
        assert!(waiting.await.is_err());
        drop(held);
        Lock::of(&file).await.unwrap();
    }
}
