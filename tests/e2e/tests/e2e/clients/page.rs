//! The table in docs/clients.md: what the last runs saw, written by those runs.

use super::Way;
use anyhow::{Context, Result};
use e2e::{Engine, repo};
use session_core::{Clock as _, SystemClock};

const BEGIN: &str = "<!-- matrix: written by make test-clients -->\n";
const END: &str = "<!-- end of the matrix -->\n";
const HEAD: &str =
    "| client | engine | way | kept | differs | not offered | date |\n|---|---|---|---|---|---|---|\n";

/// One client on one engine in one way, as the table of promises has it.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// The client.
    pub title: &'static str,
    /// Its release.
    pub release: String,
    /// The engine.
    pub engine: Engine,
    /// How it was reached.
    pub way: Way,
    /// How many promises were tried.
    pub promises: usize,
    /// Which were not kept, with the reason.
    pub differs: Vec<(&'a str, &'a str)>,
    /// Which the client does not offer.
    pub not_offered: Vec<&'a str>,
}

impl Row<'_> {
    /// How many promises the client offers.
    fn offered(&self) -> usize {
        self.promises - self.not_offered.len()
    }

    /// How many of them were kept.
    fn kept(&self) -> usize {
        self.offered() - self.differs.len()
    }

    /// For the terminal.
    pub(super) fn summary(&self) -> String {
        let (kept, differ) = (self.kept(), self.differs.len());
        let not_offered = self.not_offered.len();
        format!(
            "{}: {kept} passed, {differ} differ, {not_offered} not offered",
            self.release
        )
    }
}

/// The lines of the table: the ways of a client on an engine share one, unless they differ.
pub(super) fn lines(rows: &[Row<'_>]) -> Vec<String> {
    fn of<'r>(row: &'r Row<'r>) -> impl PartialEq + 'r {
        (row.title, &row.release, row.engine, &row.differs)
    }
    rows.chunk_by(|a, b| of(a) == of(b)).filter_map(line).collect()
}

fn line(rows: &[Row<'_>]) -> Option<String> {
    let first = rows.first()?;
    let ways: Vec<String> = rows.iter().map(|row| row.way.to_string()).collect();
    let differs: Vec<String> = first
        .differs
        .iter()
        .map(|(promise, reason)| format!("{promise}: {reason}"))
        .collect();
    let now = SystemClock.now().to_string();
    Some(format!(
        "| {} {} | {} | {} | {} of {} | {} | {} | {} |",
        first.title,
        first.release,
        match first.engine {
            Engine::Sail => "Sail",
            Engine::Spark => "Apache Spark",
        },
        ways.join(", "),
        first.kept(),
        first.offered(),
        differs.join("; "),
        first.not_offered.join(", "),
        now.get(..10)?
    ))
}

/// Puts the lines into docs/clients.md, in place of those of the same clients on the same engines; a
/// whole run replaces all.
///
/// # Errors
/// When the page has no place for them.
pub(super) fn write(lines: &[String], whole: bool) -> Result<()> {
    let path = repo().join("docs/clients.md");
    let page = std::fs::read_to_string(&path)?;
    let (before, rest) = page
        .split_once(BEGIN)
        .context("no begin of the matrix in the page")?;
    let (older, after) = rest.split_once(END).context("no end of the matrix in the page")?;
    let older = older
        .lines()
        .filter(|line| line.starts_with("| ") && !HEAD.contains(line));
    let replaced = |line: &&str| whole || lines.iter().any(|new| key(new) == key(line));
    let mut table: Vec<&str> = older.filter(|line| !replaced(line)).collect();
    table.extend(lines.iter().map(String::as_str));
    table.sort_unstable();
    let table = table.join("\n");
    std::fs::write(&path, format!("{before}{BEGIN}\n{HEAD}{table}\n\n{END}{after}"))?;
    Ok(())
}

/// The client and the engine of a line.
fn key(line: &str) -> Vec<&str> {
    line.split('|').take(3).collect()
}
