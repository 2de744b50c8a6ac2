//! Where the tested programs and their clients are.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").components().collect()
}

/// Where `deploy/local/setup.sh` put what it installed.
pub fn home() -> PathBuf {
    std::env::var_os("BERTH_HOME").map_or_else(|| repo().join(".berth"), PathBuf::from)
}

/// A program of the workspace, built in the same profile as this test.
///
/// # Errors
/// When it is not there: `make test` builds it first.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let path = test.parent().and_then(Path::parent).map(|dir| dir.join(name)).unwrap_or_default();
    ensure!(path.is_file(), "{} is missing: run `cargo build --workspace --bins` (make test does)", path.display());
    Ok(path)
}

/// A file that `setup.sh test` installs.
pub(crate) fn installed(path: &str) -> Result<PathBuf> {
    let path = home().join(path);
    ensure!(path.exists(), "{} is missing: run `deploy/local/setup.sh test` (make test does)", path.display());
    Ok(path)
}
