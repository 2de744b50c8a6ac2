//! The merged configuration as a tree that records which texts come from the
//! environment.

use super::{ConfigError, Sources};
use config::{Value, ValueKind};
use std::collections::BTreeMap;
use std::path::Path;

/// One value of the tree.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Text(String),
    /// A text from the environment: parsed by the type of the field.
    EnvText(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
    /// Placeholder for a missing or invalid value; deserializes as an empty
    /// value of any type.
    Wild,
}

/// One step of a path into the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    pub(super) fn from_tracked(path: &serde_path_to_error::Path) -> Vec<Self> {
        use serde_path_to_error::Segment;
        path.iter()
            .filter_map(|segment| match segment {
                Segment::Seq { index } => Some(Self::Index(*index)),
                Segment::Map { key } => Some(Self::Key(key.clone())),
                Segment::Enum { .. } | Segment::Unknown => None,
            })
            .collect()
    }

    pub(super) fn from_ignored(path: &serde_ignored::Path<'_>) -> Vec<Self> {
        use serde_ignored::Path;
        let (parent, step) = match path {
            Path::Root => return Vec::new(),
            Path::Seq { parent, index } => (parent, Some(Self::Index(*index))),
            Path::Map { parent, key } => (parent, Some(Self::Key(key.clone()))),
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                (parent, None)
            }
        };
        let mut steps = Self::from_ignored(parent);
        steps.extend(step);
        steps
    }
}

/// Formats a path for messages.
pub(super) fn show(path: &[Step]) -> String {
    path.iter().fold(String::new(), |shown, step| match step {
        Step::Key(key) if shown.is_empty() => key.clone(),
        Step::Key(key) => format!("{shown}.{key}"),
        Step::Index(index) => format!("{shown}[{index}]"),
    })
}

impl Node {
    /// Puts a placeholder at `path`.
    pub(super) fn set_wild(&mut self, path: &[Step]) -> bool {
        let Some((step, rest)) = path.split_first() else {
            *self = Self::Wild;
            return true;
        };
        if matches!(self, Self::Wild | Self::Null) {
            *self = Self::Table(BTreeMap::new());
        }
        match (self, step) {
            (Self::Table(table), Step::Key(key)) => {
                table.entry(key.clone()).or_insert(Self::Wild).set_wild(rest)
            }
            (Self::List(list), Step::Index(index)) => {
                list.get_mut(*index).is_some_and(|item| item.set_wild(rest))
            }
            _ => false,
        }
    }

    /// Removes an invalid value, so that its default applies. An item of a list
    /// becomes a placeholder instead, so that the indexes of the others do not
    /// change.
    pub(super) fn reset(&mut self, path: &[Step]) -> bool {
        match (self, path) {
            (Self::Table(table), [Step::Key(key)]) => table.remove(key).is_some(),
            (Self::List(list), [Step::Index(index)]) => list.get_mut(*index).is_some_and(|item| {
                *item = Self::Wild;
                true
            }),
            (Self::Table(table), [Step::Key(key), rest @ ..]) => {
                table.get_mut(key).is_some_and(|inner| inner.reset(rest))
            }
            (Self::List(list), [Step::Index(index), rest @ ..]) => {
                list.get_mut(*index).is_some_and(|item| item.reset(rest))
            }
            _ => false,
        }
    }

    /// Merges `over` into this node: tables are merged, other values replaced.
    pub(super) fn overlay(&mut self, over: Self) {
        match (self, over) {
            (Self::Table(under), Self::Table(over)) => {
                for (key, value) in over {
                    under.entry(key).or_insert(Self::Null).overlay(value);
                }
            }
            (under, over) => *under = over,
        }
    }

    /// Removes every table value that is equal to this text.
    pub(super) fn remove_texts(&mut self, text: &str) {
        if let Self::Table(table) = self {
            table.retain(|_, value| *value != Self::Text(text.to_owned()));
            table.values_mut().for_each(|value| value.remove_texts(text));
        }
    }

    pub(super) fn from_json(value: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match value {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Self::Int(value),
                (None, Some(value)) => Self::UInt(value),
                (None, None) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(text),
            Json::Array(items) => Self::List(items.into_iter().map(Self::from_json).collect()),
            Json::Object(map) => Self::Table(
                map.into_iter()
                    .map(|(key, value)| (key, Self::from_json(value)))
                    .collect(),
            ),
        }
    }

    fn from_value(value: Value) -> Self {
        let from_env = value.origin() == Some("the environment");
        match value.kind {
            ValueKind::Nil => Self::Null,
            ValueKind::Boolean(value) => Self::Bool(value),
            ValueKind::I64(value) => Self::Int(value),
            ValueKind::U64(value) => Self::UInt(value),
            ValueKind::I128(value) => i64::try_from(value).map_or(Self::Float(value as f64), Self::Int),
            ValueKind::U128(value) => u64::try_from(value).map_or(Self::Float(value as f64), Self::UInt),
            ValueKind::Float(value) => Self::Float(value),
            ValueKind::String(text) if from_env => Self::EnvText(text),
            ValueKind::String(text) => Self::Text(text),
            ValueKind::Array(items) => Self::List(items.into_iter().map(Self::from_value).collect()),
            ValueKind::Table(table) => Self::Table(
                table
                    .into_iter()
                    .map(|(key, value)| (key, Self::from_value(value)))
                    .collect(),
            ),
        }
    }
}

/// Reads file and environment; the environment overrides the file.
pub(super) fn read(sources: &Sources) -> Result<Node, ConfigError> {
    let mut builder = config::Config::builder();
    if let Some(path) = &sources.file {
        let (text, format) = read_file(path)?;
        builder = builder.add_source(config::File::from_str(&text, format));
    }
    let env = config::Environment::with_prefix(&sources.prefix)
        .prefix_separator("__")
        .separator("__")
        .source(Some(sources.env.clone().into_iter().collect()));
    let merged = builder
        .add_source(env)
        .build()
        .map_err(|error| ConfigError::single("", format!("cannot be merged: {error}")))?;
    Ok(Node::from_value(merged.cache))
}

/// Reads the file and checks its syntax. Parse errors give the position and
/// never quote the line, because it may contain a secret.
fn read_file(path: &Path) -> Result<(String, config::FileFormat), ConfigError> {
    let fail = |what: String| ConfigError::single(&path.display().to_string(), what);
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => match toml::from_str::<toml::Table>(&text) {
            Ok(_) => Ok((text, config::FileFormat::Toml)),
            Err(error) => {
                let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
                let line = before.matches('\n').count() + 1;
                Err(fail(format!("is not TOML: line {line}: {}", error.message())))
            }
        },
        Some("yaml" | "yml") => {
            let probe = config::Config::builder()
                .add_source(config::File::from_str(&text, config::FileFormat::Yaml))
                .build();
            match probe {
                Ok(_) => Ok((text, config::FileFormat::Yaml)),
                Err(error) => Err(fail(format!("is not a YAML table: {error}"))),
            }
        }
        _ => Err(fail("must end in .toml, .yaml or .yml".to_owned())),
    }
}
