//! Checks that docs/config.md and docs/metrics.md have a row for each key and
//! each metric of a service, and no other rows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A document of `docs/`, split at its headings.
#[derive(Debug)]
pub struct Document {
    sections: BTreeMap<String, Vec<Row>>,
}

/// One row of a table.
#[derive(Debug)]
struct Row {
    /// The names in backticks in its first cell.
    names: Vec<String>,
    /// The names in backticks in its other cells.
    mentioned: BTreeSet<String>,
    /// The sections that its other cells link to.
    links: Vec<String>,
}

/// The part of a service in a document: the tables between its heading and the next.
#[derive(Debug)]
pub struct Reference<'a> {
    document: &'a Document,
    service: &'a str,
}

impl Document {
    /// Reads `docs/<name>`.
    ///
    /// # Panics
    /// If the document cannot be read.
    pub fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../docs")
            .join(name);
        let text = std::fs::read_to_string(&path);
        Self::parse(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn parse(text: &str) -> Self {
        let mut sections: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        let mut section = String::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix('#') {
                section = slug(heading.trim_start_matches('#'));
            } else if let Some(row) = Row::parse(line) {
                sections.entry(section.clone()).or_default().push(row);
            }
        }
        Self { sections }
    }

    /// The tables below the heading of a service.
    pub const fn of<'a>(&'a self, service: &'a str) -> Reference<'a> {
        Reference {
            document: self,
            service,
        }
    }

    fn rows(&self, section: &str) -> &[Row] {
        self.sections.get(section).map_or(&[], Vec::as_slice)
    }
}

/// The anchor of a heading in links.
fn slug(heading: &str) -> String {
    let letters = heading.trim().chars().filter_map(|letter| match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        _ if letter.is_alphanumeric() => Some(letter.to_ascii_lowercase()),
        _ => None,
    });
    letters.collect()
}

fn in_backticks(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let (first, others) = line.strip_prefix("| ")?.split_once(" |")?;
        let names: Vec<_> = in_backticks(first).collect();
        let links = others.split("](#").skip(1);
        let links = links.filter_map(|link| Some(link.split_once(')')?.0.to_owned()));
        (!names.is_empty()).then(|| Self {
            names,
            mentioned: in_backticks(others).collect(),
            links: links.collect(),
        })
    }
}

impl Reference<'_> {
    fn rows(&self) -> &[Row] {
        self.document.rows(self.service)
    }

    fn names(&self) -> BTreeSet<&str> {
        let names = self.rows().iter().flat_map(|row| &row.names);
        names.map(String::as_str).collect()
    }

    /// Compares the rows with the metrics that a service exports.
    ///
    /// # Panics
    /// If a family has no row, a row no family, or a label or its value is not
    /// mentioned.
    pub fn check_metrics(&self, exported: &str) {
        let families: BTreeSet<&str> = exported
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        let rows = self.names();
        // Rows of label values are in the same section.
        let rows: BTreeSet<&str> = rows
            .into_iter()
            .filter(|name| name.starts_with(&self.service.replace('-', "_")))
            .collect();
        assert!(families.len() > 3, "{exported}");
        let missing: Vec<_> = families.difference(&rows).collect();
        let extra: Vec<_> = rows.difference(&families).collect();
        assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
        assert!(extra.is_empty(), "no metrics, but in docs/metrics.md: {extra:?}");
        let mentioned = |word: &str| {
            let mut rows = self.rows().iter();
            rows.any(|row| row.mentioned.contains(word) || row.names.iter().any(|name| name == word))
        };
        let unexplained: BTreeSet<&str> = labels(exported).filter(|word| !mentioned(word)).collect();
        assert!(
            unexplained.is_empty(),
            "labels not in docs/metrics.md: {unexplained:?}"
        );
    }

    /// Compares the rows with the keys of a configuration. `problems` loads a
    /// configuration file in TOML and returns all its problems.
    ///
    /// # Panics
    /// If a key has no row, or a row no key.
    pub fn check_keys(&self, problems: impl Fn(&str) -> String) {
        let mut keys = BTreeSet::new();
        find_keys(&problems, "", "", &mut keys);
        assert!(keys.len() > 20, "{keys:?}");
        let missing: Vec<_> = keys.iter().filter(|key| !self.has_key(key)).collect();
        assert!(missing.is_empty(), "not in docs/config.md: {missing:?}");
        let extra: Vec<_> = self
            .names()
            .into_iter()
            .filter(|name| {
                let below = format!("{name}.");
                !keys.contains(*name) && !keys.iter().any(|key| key.starts_with(&below))
            })
            .collect();
        assert!(extra.is_empty(), "no keys, but in docs/config.md: {extra:?}");
    }

    fn has_key(&self, key: &str) -> bool {
        has_key(self.document, self.rows(), key, key)
    }
}

/// The names and values of all labels but the buckets of histograms.
fn labels(exported: &str) -> impl Iterator<Item = &str> {
    exported
        .lines()
        .filter_map(|line| line.split_once('{')?.1.split_once('}'))
        .flat_map(|(labels, _)| labels.split(','))
        .filter_map(|label| label.split_once('='))
        .filter(|(name, _)| *name != "le")
        .flat_map(|(name, value)| [name, value.trim_matches('"')])
}

/// Whether a row has this key, directly or in a linked or mentioned table.
/// Shared tables contain keys relative to the table, or whole keys.
fn has_key(document: &Document, rows: &[Row], key: &str, whole: &str) -> bool {
    rows.iter().any(|row| {
        row.names.iter().any(|name| {
            if name == key || name == whole {
                return true;
            }
            let Some(rest) = key.strip_prefix(name.as_str()) else {
                return false;
            };
            let Some(rest) = rest.strip_prefix('.') else {
                return false;
            };
            row.mentioned.contains(rest)
                || row.mentioned.contains(rest.split('.').next().unwrap_or(rest))
                || row
                    .links
                    .iter()
                    .any(|link| has_key(document, document.rows(link), rest, whole))
        })
    })
}

/// Reads `/metrics` of an admin port.
///
/// # Errors
/// If the port does not respond.
pub async fn exported(admin: SocketAddr) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(admin).await?;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    connection.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    connection.read_to_string(&mut text).await?;
    Ok(text)
}

/// A key that exists in no table.
const UNKNOWN: &str = "no_such_key";

/// Finds every key below `table` by the names that the loader lists when it
/// rejects an unknown one. `opening` is the TOML header of the table.
fn find_keys(problems: &impl Fn(&str) -> String, opening: &str, table: &str, keys: &mut BTreeSet<String>) {
    for name in known_keys(problems, opening).unwrap_or_default() {
        let key = format!("{table}{name}");
        // A table, or a list of tables.
        let inner = opening.trim_matches(['[', ']', '\n']);
        let path = if inner.is_empty() {
            name.clone()
        } else {
            format!("{inner}.{name}")
        };
        let headers = if opening.starts_with("[[") {
            // Tables of a list entry follow the header of the entry.
            let base = opening.trim_end();
            [format!("{base}\n[{path}]\n"), format!("{base}\n[[{path}]]\n")]
        } else {
            [format!("[{path}]\n"), format!("[[{path}]]\n")]
        };
        let header = headers
            .iter()
            .find(|header| known_keys(problems, header).is_some());
        match header {
            Some(header) if !opening.starts_with("[[") => {
                find_keys(problems, header, &format!("{key}."), keys);
            }
            // One level in the entries of lists.
            Some(header) => {
                let inner = known_keys(problems, header).unwrap_or_default();
                keys.extend(inner.iter().map(|inner| format!("{key}.{inner}")));
            }
            None => {
                keys.insert(key);
            }
        }
    }
}

fn known_keys(problems: &impl Fn(&str) -> String, opening: &str) -> Option<Vec<String>> {
    let told = problems(&format!("{opening}{UNKNOWN} = 1\n"));
    let line = told.lines().find(|line| line.contains(UNKNOWN))?;
    let (_, known) = line.split_once("known keys are: ")?;
    Some(known.split(", ").map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_their_row_in_a_shared_table_or_in_a_text() {
        let document = Document::parse(
            "## a-service\n| key | default |\n|---|---|\n| `a.b`, `a.c` | |\n| `d` | [form](#the-form) |\n\
             | `e` | `f`, or none |\n## The form\n| `g` | |\n| `h` | [form](#other) |\n### Other\n| `d.h.i` | |\n",
        );
        let reference = document.of("a-service");
        for key in ["a.b", "a.c", "d.g", "d.h.i", "e.f"] {
            assert!(reference.has_key(key), "{key}");
        }
        for key in ["a.d", "d.i", "g", "h.i", "e.g"] {
            assert!(!reference.has_key(key), "{key}");
        }
    }
}
