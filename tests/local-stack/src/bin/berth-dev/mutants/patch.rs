//! Mutations: patches with a header of two lines, `What:` and `Expect:`.

use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};
use tokio::process::Command;

const PATCH_TIMEOUT: Duration = Duration::from_secs(60);

/// What the simulation must make of a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// `Expect: caught`.
    Detected,
    /// `Expect: harmless`.
    Harmless,
}

/// A fault.
#[derive(Debug)]
pub(super) struct Mutation {
    /// Name of the file, without `.patch`.
    pub(super) name: String,
    /// The fault in one sentence.
    pub(super) what: String,
    /// What the simulation must make of it.
    pub(super) expect: Expect,
    file: PathBuf,
    /// Paths of the files that it changes.
    changed: Vec<String>,
}

/// The mutations in `folder`: those with these names, or all, by name.
pub(super) fn load(folder: &Path, names: &[String]) -> Result<Vec<Mutation>> {
    let mut files = Vec::new();
    if names.is_empty() {
        let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            files.push(entry?.path());
        }
        files.retain(|file| file.extension().is_some_and(|extension| extension == "patch"));
        files.sort();
    } else {
        files.extend(names.iter().map(|name| folder.join(format!("{name}.patch"))));
    }
    ensure!(!files.is_empty(), "no mutations in {}", folder.display());
    files.into_iter().map(Mutation::read).collect()
}

/// Verifies that each mutation applies to the tree at `root`.
pub(super) async fn verify(mutations: &[Mutation], root: &Path) -> Result<()> {
    let mut stale = Vec::new();
    for mutation in mutations {
        if !mutation.patch(root, &["--dry-run"]).await? {
            stale.push(mutation.name.as_str());
        }
    }
    ensure!(
        stale.is_empty(),
        "mutations that no longer apply; rewrite them for the present code: {}",
        stale.join(", ")
    );
    Ok(())
}

impl Mutation {
    fn read(file: PathBuf) -> Result<Self> {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.file_stem().context("a patch without a name")?;
        Self::parse(&text, &name.to_string_lossy(), &file).with_context(|| file.display().to_string())
    }

    fn parse(text: &str, name: &str, file: &Path) -> Result<Self> {
        let field = |field: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(field));
            value
                .filter(|value| !value.is_empty())
                .with_context(|| format!("no line {field:?}"))
        };
        let expect = match field("Expect: ")? {
            "caught" => Expect::Detected,
            "harmless" => Expect::Harmless,
            other => bail!("Expect is {other:?}, not caught or harmless"),
        };
        let changed = text.lines().filter_map(|line| line.strip_prefix("+++ b/"));
        Ok(Self {
            name: name.to_owned(),
            what: field("What: ")?.to_owned(),
            expect,
            file: file.to_owned(),
            changed: changed.map(str::to_owned).collect(),
        })
    }

    /// Introduces the fault.
    pub(super) async fn apply(&self, tree: &Path) -> Result<()> {
        ensure!(self.patch(tree, &[]).await?, "{} does not apply", self.name);
        Ok(())
    }

    /// Takes the fault back.
    pub(super) async fn revert(&self, tree: &Path) -> Result<()> {
        ensure!(
            self.patch(tree, &["--reverse"]).await?,
            "{} cannot be reverted",
            self.name
        );
        Ok(())
    }

    /// Makes the files that it changes newer than any build.
    pub(super) fn touch_files(&self, tree: &Path) -> Result<()> {
        #[expect(
            clippy::disallowed_methods,
            reason = "cargo compares times of files with the clock"
        )]
        let now = SystemTime::now();
        for file in &self.changed {
            let path = tree.join(file);
            let file = std::fs::File::options().append(true).open(&path);
            file.and_then(|file| file.set_modified(now))
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Exactly, or not at all.
    async fn patch(&self, tree: &Path, more: &[&str]) -> Result<bool> {
        let status = Command::new("patch")
            .args(["--strip=1", "--fuzz=0", "--force", "--reject-file=-", "--silent"])
            .args(more)
            .current_dir(tree)
            .stdin(std::fs::File::open(&self.file)?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status();
        let status = tokio::time::timeout(PATCH_TIMEOUT, status).await;
        Ok(status
            .context("patch hangs")?
            .context("starting patch")?
            .success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_required() {
        let parse = |text: &str| Mutation::parse(text, "name", Path::new("name.patch"));
        let good = parse("What: A fault.\nExpect: caught\n\n--- a/x.rs\n+++ b/x.rs\n").unwrap();
        assert_eq!((good.what.as_str(), good.expect), ("A fault.", Expect::Detected));
        assert_eq!(good.changed, ["x.rs"]);
        for bad in [
            "Expect: caught\n",
            "What: \nExpect: caught\n",
            "What: A fault.\n",
            "What: A fault.\nExpect: maybe\n",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
