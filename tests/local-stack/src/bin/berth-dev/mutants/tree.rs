//! A copy of the source tree.

use anyhow::{Context as _, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Folders of the root that are not copied.
const NOT_COPIED: [&str; 3] = ["target", ".berth", ".git"];

/// Copies the tree at `root` to `to`, which begins empty; without the folder
/// `target`, wherever it is. Files keep their times, so that cargo builds only
/// what changed.
pub(super) fn copy(root: &Path, to: &Path, target: &Path) -> Result<PathBuf> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let skipped = NOT_COPIED.iter().any(|name| entry.file_name() == *name) || entry.path() == target;
        if !skipped {
            copy_entry(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(to.to_owned())
}

fn copy_entry(from: &Path, to: &Path) -> Result<()> {
    let metadata = std::fs::metadata(from).with_context(|| from.display().to_string())?;
    if metadata.is_dir() {
        std::fs::create_dir(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy_entry(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    std::fs::copy(from, to).with_context(|| from.display().to_string())?;
    File::options()
        .append(true)
        .open(to)
        .and_then(|file| file.set_modified(metadata.modified()?))
        .with_context(|| to.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_copied_with_their_times_and_builds_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (root, to) = (dir.path().join("root"), dir.path().join("copy"));
        for folder in ["crates/a/src", "crates/target", "target/debug", ".git", "built"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
            std::fs::write(root.join(folder).join("file"), folder).unwrap();
        }
        std::fs::create_dir_all(to.join("left-over")).unwrap();
        copy(&root, &to, &root.join("built")).unwrap();
        let file = "crates/a/src/file";
        assert_eq!(std::fs::read_to_string(to.join(file)).unwrap(), "crates/a/src");
        let time = |root: &Path| std::fs::metadata(root.join(file)).unwrap().modified().unwrap();
        assert_eq!(time(&root), time(&to));
        assert!(to.join("crates/target/file").exists());
        for not in ["target", ".git", "built", "left-over"] {
            assert!(!to.join(not).exists(), "{not}");
        }
    }
}
