//! Key files, read periodically.

use crate::config::KeysConfig;
use crate::key_file::read_key;
use anyhow::{Context as _, Result};
use session_token::Signer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Key files of a folder.
const MAX_FILES: usize = 32;
/// Extension of key files.
const EXTENSION: &str = "pem";

/// Result of one read of all files.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Keys that may sign: the configured one first, then those of the folder
    /// by name.
    pub(super) candidates: Vec<Arc<Signer>>,
    /// Keys that are only published.
    pub(super) published: Vec<Arc<Signer>>,
    /// Problems that are new since the last read.
    pub(super) problems: Vec<String>,
}

/// Cache of the last valid content of each file.
#[derive(Debug, Default)]
pub(super) struct KeyFiles {
    valid: BTreeMap<PathBuf, Arc<Signer>>,
    reported: BTreeMap<PathBuf, String>,
    listed: Vec<PathBuf>,
}

/// The key files of a folder, by name. Names that begin with a dot are skipped:
/// Kubernetes uses them for its own files.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).context("cannot be listed")? {
        let path = entry.context("cannot be listed")?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(path);
        }
    }
    files.sort();
    anyhow::ensure!(files.len() <= MAX_FILES, "contains more than {MAX_FILES} keys");
    Ok(files)
}

impl KeyFiles {
    pub(super) fn read(&mut self, config: &KeysConfig) -> Found {
        let mut found = Found::default();
        let mut now = BTreeMap::new();
        if !config.signing.as_os_str().is_empty() {
            let key = self.one(&config.signing, "keys.signing", &mut now, &mut found.problems);
            found.candidates.extend(key);
        }
        if let Some(dir) = &config.dir {
            match list(dir) {
                Ok(files) => {
                    self.listed = files;
                    self.reported.remove(dir);
                }
                Err(error) => self.report(dir, format!("keys.dir {error:#}"), &mut found.problems),
            }
            for file in self.listed.clone() {
                let key = self.one(&file, "keys.dir", &mut now, &mut found.problems);
                found.candidates.extend(key);
            }
        }
        for file in &config.published {
            let key = self.one(file, "keys.published", &mut now, &mut found.problems);
            found.published.extend(key);
        }
        // The last key is not withdrawn: an empty folder is a mistake.
        if found.candidates.is_empty() {
            self.report(
                Path::new(""),
                "no key remains; the last ones stay in use".to_owned(),
                &mut found.problems,
            );
        } else {
            self.reported.remove(Path::new(""));
            self.valid = now;
        }
        found
    }

    /// The key in a file, or its last valid key while the file exists but is
    /// unusable.
    fn one(
        &mut self,
        file: &Path,
        what: &str,
        now: &mut BTreeMap<PathBuf, Arc<Signer>>,
        problems: &mut Vec<String>,
    ) -> Option<Arc<Signer>> {
        let key = match read_key(file) {
            Ok(signer) => {
                self.reported.remove(file);
                let same = self.valid.get(file).filter(|last| last.kid() == signer.kid());
                same.cloned().unwrap_or_else(|| Arc::new(signer))
            }
            Err(error) => {
                self.report(file, format!("{what}: {} {error:#}", file.display()), problems);
                // An unusable file may be half-written; a deleted file is
                // withdrawn.
                let exists = file.try_exists().unwrap_or(true);
                self.valid.get(file).filter(|_| exists).cloned()?
            }
        };
        now.insert(file.to_owned(), Arc::clone(&key));
        Some(key)
    }

    /// Reports each problem once, until it changes.
    fn report(&mut self, file: &Path, problem: String, problems: &mut Vec<String>) {
        if self.reported.get(file) != Some(&problem) {
            self.reported.insert(file.to_owned(), problem.clone());
            problems.push(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_token::generate_key_pem;

    fn kids(found: &Found) -> Vec<String> {
        found
            .candidates
            .iter()
            .map(|signer| signer.kid().to_owned())
            .collect()
    }

    #[test]
    fn changed_files_are_read_and_an_unusable_one_keeps_its_last_key() {
        let dir = tempfile::tempdir().unwrap();
        let config = KeysConfig {
            dir: Some(dir.path().to_owned()),
            ..KeysConfig::default()
        };
        let mut files = KeyFiles::default();
        assert_eq!(files.read(&config).problems.len(), 1, "no key at all");
        let (b, a) = (dir.path().join("b.pem"), dir.path().join("a.pem"));
        std::fs::write(&b, generate_key_pem().unwrap()).unwrap();
        std::fs::write(dir.path().join(".hidden.pem"), generate_key_pem().unwrap()).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no key").unwrap();
        let first = files.read(&config);
        assert_eq!((first.candidates.len(), first.problems.len()), (1, 0));
        std::fs::write(&a, generate_key_pem().unwrap()).unwrap();
        let both = kids(&files.read(&config));
        assert_eq!(both[1], kids(&first)[0], "by name");

        // A half-written file is reported once, and its key stays.
        std::fs::write(&b, "-----BEGIN PRIV").unwrap();
        let broken = files.read(&config);
        assert_eq!((kids(&broken), broken.problems.len()), (both.clone(), 1));
        assert!(broken.problems[0].contains("b.pem"), "{:?}", broken.problems);
        assert_eq!(files.read(&config).problems.len(), 0);
        // A deleted file is withdrawn, except the last one.
        std::fs::remove_file(&b).unwrap();
        assert_eq!(kids(&files.read(&config)), both[..1]);
        std::fs::remove_file(&a).unwrap();
        let none = files.read(&config);
        assert!(none.candidates.is_empty() && none.problems[0].contains("last ones stay"));
    }
}
