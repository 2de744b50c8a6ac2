//! A table of docs/clients.md that test runs write.

use anyhow::{Context, Result};
use local_stack::paths::repo;

/// A table between two comments of the page. The first two columns are the key of a row.
#[derive(Debug)]
pub struct MarkedTable {
    /// Its name in the comments.
    pub name: &'static str,
    /// What writes it.
    pub writer: &'static str,
    /// Its two head lines.
    pub head: &'static str,
}

impl MarkedTable {
    /// Puts rows in place of those with the same key; `whole` replaces all.
    ///
    /// # Errors
    /// When the page has no place for them.
    pub fn write(&self, rows: &[String], whole: bool) -> Result<()> {
        let path = repo().join("docs/clients.md");
        let page = std::fs::read_to_string(&path)?;
        std::fs::write(&path, self.replaced(&page, rows, whole)?)?;
        Ok(())
    }

    /// The page with rows in place of those with the same key.
    ///
    /// # Errors
    /// When the page has no place for them.
    pub fn replaced(&self, page: &str, rows: &[String], whole: bool) -> Result<String> {
        let Self { name, writer, head } = self;
        let (begin, end) = (
            format!("<!-- {name}: written by {writer} -->\n"),
            format!("<!-- end of the {name} -->\n"),
        );
        let (before, rest) = page
            .split_once(&begin)
            .with_context(|| format!("no begin of the {name} in the page"))?;
        let (older, after) = rest
            .split_once(&end)
            .with_context(|| format!("no end of the {name} in the page"))?;
        let older = older
            .lines()
            .filter(|line| line.starts_with("| ") && !head.contains(line));
        let replaced = |line: &&str| whole || rows.iter().any(|new| key(new) == key(line));
        let mut table: Vec<&str> = older.filter(|line| !replaced(line)).collect();
        table.extend(rows.iter().map(String::as_str));
        table.sort_unstable();
        let table = table.join("\n");
        Ok(format!("{before}{begin}\n{head}{table}\n\n{end}{after}"))
    }
}

fn key(row: &str) -> Vec<&str> {
    row.split('|').take(3).collect()
}
