//! Where the tested programs and their clients are.

use anyhow::{Context, Result, ensure};
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

/// A program of the workspace, built in the same profile as this test.
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
