//! Paths into a template, and the problems found there.

use crate::properties::Problems;
use serde_json::{Map, Value};
use std::fmt;

/// Path of a value, as `pod_template.spec.volumes[0].hostPath`.
#[derive(Debug, Clone)]
pub(super) struct Path(String);

impl Path {
    pub(super) fn root(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(super) fn field(&self, name: &str) -> Self {
        // Label keys have dots and slashes.
        let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if is_plain {
            Self(format!("{}.{name}", self.0))
        } else {
            Self(format!("{}[{:?}]", self.0, printable::escape(name)))
        }
    }

    pub(super) fn item(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub(super) fn add(&self, problems: &mut Problems, problem: impl Into<String>) {
        problems.add(&self.0, problem);
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Problems by path, up to a limit.
#[derive(Debug)]
pub(super) struct Found {
    limit: usize,
    all: Vec<(String, String)>,
}

impl Found {
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            all: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, path: &Path, problem: impl Into<String>) {
        if self.all.len() < self.limit {
            self.all.push((path.0.clone(), problem.into()));
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn into_problems(self) -> Vec<(String, String)> {
        self.all
    }

    /// The fields of an object; anything else is a problem.
    pub(super) fn object<'a>(&mut self, value: &'a Value, path: &Path) -> Option<&'a Map<String, Value>> {
        if let Value::Object(fields) = value {
            return Some(fields);
        }
        self.add(path, "must be an object");
        None
    }

    /// The items of a list, with their paths; anything else is a problem.
    pub(super) fn list<'a>(&mut self, value: &'a Value, path: &Path) -> Vec<(Path, &'a Value)> {
        let Value::Array(items) = value else {
            self.add(path, "must be a list");
            return Vec::new();
        };
        let with_path = |(index, item)| (path.item(index), item);
        items.iter().enumerate().map(with_path).collect()
    }

    /// The text of a required field.
    pub(super) fn text<'a>(
        &mut self,
        fields: &'a Map<String, Value>,
        name: &str,
        path: &Path,
    ) -> Option<&'a str> {
        let text = fields
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty());
        if text.is_none() {
            self.add(&path.field(name), "must be a text that is not empty");
        }
        text
    }

    /// Adds every field that is not in `allowed`; `why` gives the reason.
    pub(super) fn only(
        &mut self,
        fields: &Map<String, Value>,
        allowed: &[&str],
        path: &Path,
        why: impl Fn(&str) -> &'static str,
    ) {
        for name in fields.keys() {
            if !allowed.contains(&name.as_str()) {
                self.add(&path.field(name), why(name));
            }
        }
    }
}
