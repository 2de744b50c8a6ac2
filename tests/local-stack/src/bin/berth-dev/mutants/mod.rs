//! `berth-dev mutants`: introduces one fault at a time in a copy of the tree
//! and requires that the simulation detects it. A mutation that is expected to
//! be harmless must not be detected.

mod patch;
mod simulate;
mod tree;

use anyhow::{Context as _, Result, ensure};
use local_stack::paths::repo;
use patch::Expect;
use simulate::{Seen, Simulation};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Folder of the patches below the root.
const FOLDER: &str = "crates/session-manager/mutations";

/// Which mutations, and how long each is tried.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only verify that every mutation has its header and applies.
    #[arg(long)]
    apply: bool,

    /// Names of mutations [default: all, after the unchanged code].
    names: Vec<String>,

    /// Seeds for a mutation that must be detected.
    #[arg(long, env = "SEEDS", default_value_t = 1000)]
    seeds: u32,

    /// Seeds for a mutation that must not be detected.
    #[arg(long, env = "HARMLESS_SEEDS", default_value_t = 300)]
    harmless_seeds: u32,

    /// Root of the repository [default: the one that this program was built from].
    #[arg(long)]
    root: Option<PathBuf>,
}

/// Verifies the mutations, then tries each.
pub(crate) async fn mutants(options: &Options) -> Result<()> {
    let root = options.root.clone().unwrap_or_else(repo);
    let mutations = patch::load(&root.join(FOLDER), &options.names)?;
    patch::verify(&mutations, &root).await?;
    if options.apply {
        return Ok(());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let work = target.join("mutants");
    let tree = tree::copy(&root, &work.join("tree"), &target)?;
    // A run that was interrupted may have left newer builds of other text.
    for mutation in patch::load(&root.join(FOLDER), &[])? {
        mutation.touch_files(&tree)?;
    }
    let mut table = Table::new(work.join("table.md"))?;
    let simulation = Simulation { tree, work };
    if options.names.is_empty() {
        let unchanged = simulation.run("none", options.harmless_seeds).await?;
        table.row("none", "The unchanged code.", Expect::Harmless, &unchanged)?;
    }
    for mutation in &mutations {
        let seeds = match mutation.expect {
            Expect::Detected => options.seeds,
            Expect::Harmless => options.harmless_seeds,
        };
        mutation.apply(&simulation.tree).await?;
        let outcome = simulation.run(&mutation.name, seeds).await?;
        let name = format!("`{}`", mutation.name);
        table.row(&name, &mutation.what, mutation.expect, &outcome)?;
        mutation.revert(&simulation.tree).await?;
    }
    ensure!(
        table.unexpected == 0,
        "{} of the rows above are not as expected",
        table.unexpected
    );
    Ok(())
}

/// The table of outcomes, printed and kept in a file.
struct Table {
    file: PathBuf,
    text: String,
    unexpected: usize,
}

impl Table {
    fn new(file: PathBuf) -> Result<Self> {
        let mut table = Self {
            file,
            text: String::new(),
            unexpected: 0,
        };
        table.line("| mutation | fault | seeds | first detection |")?;
        table.line("| --- | --- | --- | --- |")?;
        Ok(table)
    }

    fn row(&mut self, name: &str, what: &str, expect: Expect, outcome: &(Seen, String)) -> Result<()> {
        let (seen, seeds) = outcome;
        let mut text = match seen {
            Seen::Nothing => "nothing".to_owned(),
            Seen::Fault(fault) => fault.clone(),
            Seen::Unclear(problem) => format!("unclear: {problem}"),
        };
        match (expect, seen) {
            (Expect::Detected, Seen::Fault(_)) => {}
            (Expect::Harmless, Seen::Nothing) => text += ": harmless",
            (Expect::Detected, _) => {
                self.unexpected += 1;
                text += " - **but it must be detected**";
            }
            (Expect::Harmless, _) => {
                self.unexpected += 1;
                text += " - **but it must be harmless**";
            }
        }
        self.line(&format!("| {name} | {what} | {seeds} | {text} |"))
    }

    fn line(&mut self, line: &str) -> Result<()> {
        println!("{line}");
        writeln!(self.text, "{line}")?;
        std::fs::write(&self.file, &self.text).with_context(|| format!("writing {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_expected_outcome_passes() {
        let dir = tempfile::tempdir().unwrap();
        let fault = || (Seen::Fault("a fault".to_owned()), "2".to_owned());
        let nothing = || (Seen::Nothing, "300".to_owned());
        let unclear = || (Seen::Unclear("it does not build".to_owned()), String::new());
        let mut table = Table::new(dir.path().join("table.md")).unwrap();
        table.row("a", "A.", Expect::Detected, &fault()).unwrap();
        table.row("b", "B.", Expect::Harmless, &nothing()).unwrap();
        assert_eq!(table.unexpected, 0);
        table.row("c", "C.", Expect::Detected, &nothing()).unwrap();
        table.row("d", "D.", Expect::Harmless, &fault()).unwrap();
        table.row("e", "E.", Expect::Detected, &unclear()).unwrap();
        table.row("f", "F.", Expect::Harmless, &unclear()).unwrap();
        assert_eq!(table.unexpected, 4);
        let kept = std::fs::read_to_string(dir.path().join("table.md")).unwrap();
        assert!(
            kept.contains("| a | A. | 2 | a fault |\n| b | B. | 300 | nothing: harmless |\n"),
            "{kept}"
        );
    }
}
