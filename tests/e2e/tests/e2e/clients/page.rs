//! The table in docs/clients.md: what the last runs saw, written by those runs.

use super::Way;
use e2e::{Engine, MarkedTable};
use session_core::{Clock as _, SystemClock};

/// Where they are.
pub(super) const TABLE: MarkedTable = MarkedTable {
    name: "matrix",
    writer: "make test-clients",
    head: "| client | engine | way | kept | differs | not offered | date |\n|---|---|---|---|---|---|---|\n",
};

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
        first.engine.title(),
        ways.join(", "),
        first.kept(),
        first.offered(),
        differs.join("; "),
        first.not_offered.join(", "),
        now.get(..10)?
    ))
}

#[test]
fn a_row_replaces_the_one_with_its_key() {
    let table = MarkedTable {
        name: "numbers",
        writer: "make test",
        head: "| a | b | c |\n|---|---|---|\n",
    };
    let page = |rows: &str| {
        let (begin, end) = (
            "<!-- numbers: written by make test -->",
            "<!-- end of the numbers -->",
        );
        format!("before\n{begin}\n\n{}{rows}\n\n{end}\nafter", table.head)
    };
    let old = page("| 1 | x | old |\n| 2 | x | old |");
    let new = ["| 2 | x | new |".to_owned()];
    let part = table.replaced(&old, &new, false).unwrap();
    assert_eq!(part, page("| 1 | x | old |\n| 2 | x | new |"));
    let whole = table.replaced(&old, &new, true).unwrap();
    assert_eq!(whole, page("| 2 | x | new |"));
    assert!(table.replaced("no marks", &new, true).is_err());
}
