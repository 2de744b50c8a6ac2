//! Where programs and their clients are, and files with secrets.

use anyhow::{Context, Result, ensure};
use std::fs::{OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .components()
        .collect()
}

/// Where `deploy/local/setup.sh` put what it installed.
pub fn home() -> PathBuf {
    std::env::var_os("BERTH_HOME").map_or_else(|| repo().join(".berth"), PathBuf::from)
}

/// A program of the workspace, built in the same profile as this program.
///
/// # Errors
/// When it is not there: `make test` builds it first.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Test programs live one folder below the programs they test.
    let folders = own.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not built: run `cargo build --workspace --bins` (make test does)")
    })
}

/// A program on the `PATH`, or where Debian has servers.
///
/// # Errors
/// When it is not installed.
pub fn on_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/bin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed: run `make setup`"))
}

/// Writes a file that only this user can read.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        // A file that existed keeps its mode.
        file.set_permissions(Permissions::from_mode(0o600))?;
        (&file).write_all(text.as_bytes())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// A file that `setup.sh test` installs.
pub fn installed(path: &str) -> Result<PathBuf> {
    let path = home().join(path);
    ensure!(
        path.exists(),
        "{} is missing: run `deploy/local/setup.sh test` (make test does)",
        path.display()
    );
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_the_fix() {
        let error = on_path("no-such-program-anywhere").unwrap_err().to_string();
        assert!(error.contains("make setup"), "{error}");
    }

    #[test]
    fn a_private_file_stays_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "older and longer").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        write_private(&file, "text").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
