//! Collection of all configuration problems, reported together.

use std::collections::BTreeMap;
use std::fmt;

/// An invalid key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, e.g. `listen.public.address` or `accounts[2].org`.
    pub key: String,
    /// The problem, as the rest of a sentence after the key.
    pub what: String,
}

/// Validation of a configuration beyond its types.
pub trait Validate {
    /// Adds a problem for every invalid key.
    fn validate(&self, problems: &mut Problems);
}

/// Collector of problems, with the current section.
#[derive(Debug, Default)]
pub struct Problems {
    section: String,
    found: Vec<Problem>,
}

impl Problems {
    /// Adds a problem of `key` in the current section. An empty key is the
    /// section itself.
    pub fn add(&mut self, key: &str, what: impl Into<String>) {
        self.found.push(Problem {
            key: join(&self.section, key),
            what: what.into(),
        });
    }

    /// Adds a problem unless `ok`.
    pub fn require(&mut self, ok: bool, key: &str, what: &str) {
        if !ok {
            self.add(key, what);
        }
    }

    /// Validates a section under its key, e.g. `"listen"` or `"accounts[2]"`.
    pub fn check(&mut self, key: &str, part: &impl Validate) {
        self.within(key, |problems| part.validate(problems));
    }

    /// Validates every item of a list.
    pub fn check_all<'a, V: Validate + 'a>(&mut self, key: &str, parts: impl IntoIterator<Item = &'a V>) {
        for (index, part) in parts.into_iter().enumerate() {
            self.check(&format!("{key}[{index}]"), part);
        }
    }

    /// Runs `check` with `key` as the section.
    pub fn within(&mut self, key: &str, check: impl FnOnce(&mut Self)) {
        let inner = join(&self.section, key);
        let outer = std::mem::replace(&mut self.section, inner);
        check(self);
        self.section = outer;
    }

    /// Whether there is no problem.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The problems so far.
    pub fn found(&self) -> &[Problem] {
        &self.found
    }

    /// Adds a problem by its whole path, unless the path or one above it
    /// already has a problem: problems of a placeholder are only consequences.
    pub(super) fn add_new(&mut self, path: &str, what: impl Into<String>) {
        if !self.covers(path) {
            self.found.push(Problem {
                key: path.to_owned(),
                what: what.into(),
            });
        }
    }

    /// Whether this path, or one above it, already has a problem.
    pub(super) fn covers(&self, path: &str) -> bool {
        self.found.iter().any(|p| {
            path.strip_prefix(p.key.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// Adds the problems that do not concern placeholders.
    pub(super) fn merge_new(&mut self, other: Self) {
        let new: Vec<_> = other.found.into_iter().filter(|p| !self.covers(&p.key)).collect();
        self.found.extend(new);
    }

    pub(super) fn into_error(self, prefix: &str, env: &BTreeMap<String, String>) -> ConfigError {
        let named = self.found.into_iter().map(|mut problem| {
            let variable = format!("{prefix}__{}", problem.key.to_uppercase().replace('.', "__"));
            if env.keys().any(|name| name.to_uppercase() == variable) {
                problem.what = format!("{} (set by {variable})", problem.what);
            }
            problem
        });
        ConfigError {
            problems: named.collect(),
        }
    }
}

fn join(section: &str, key: &str) -> String {
    match (section, key) {
        ("", key) => key.to_owned(),
        (section, "") => section.to_owned(),
        (section, key) => format!("{section}.{key}"),
    }
}

/// A configuration error with all problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn single(key: &str, what: impl Into<String>) -> Self {
        Self {
            problems: vec![Problem {
                key: key.to_owned(),
                what: what.into(),
            }],
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(
            f,
            "the configuration has {count} problem{}:",
            if count == 1 { "" } else { "s" }
        )?;
        for Problem { key, what } in &self.problems {
            if key.is_empty() {
                write!(f, "\n  {what}")?;
            } else {
                write!(f, "\n  {key}: {what}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
