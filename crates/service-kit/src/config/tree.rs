//! The merged configuration as a tree of [`Value`]s, whose origin tells texts of
//! the environment from those of a file.

use super::{ConfigError, Sources};
use config::{Config, Environment, File, FileFormat, Map, Value, ValueKind};
use field_types::secret::MASK;
use serde::Serialize;
use std::path::Path;

/// The origin that `config` gives to values of the environment.
const ENVIRONMENT: &str = "the environment";
/// The origin of placeholders.
const PLACEHOLDER: &str = "placeholder";

/// One step of a path into the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The path of the value that is being converted.
pub(super) fn tracked(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// The path of a key that no field has.
pub(super) fn ignored(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(Step::Index(*index))),
        Path::Map { parent, key } => (parent, Some(Step::Key(key.clone()))),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            (parent, None)
        }
    };
    let mut steps = ignored(parent);
    steps.extend(step);
    steps
}

/// Formats a path for messages.
pub(super) fn show(path: &[Step]) -> String {
    path.iter().fold(String::new(), |shown, step| match step {
        Step::Key(key) if shown.is_empty() => key.clone(),
        Step::Key(key) => format!("{shown}.{key}"),
        Step::Index(index) => format!("{shown}[{index}]"),
    })
}

/// A text of the environment: converted by the type of the field.
pub(super) fn environment_text(text: &str) -> Value {
    Value::new(Some(&ENVIRONMENT.to_owned()), text)
}

/// Whether the value is from the environment.
pub(super) fn is_of_environment(value: &Value) -> bool {
    value.origin() == Some(ENVIRONMENT)
}

/// Stands for a missing or invalid value; converted to an empty value of any
/// type.
fn placeholder() -> Value {
    Value::new(Some(&PLACEHOLDER.to_owned()), ValueKind::Nil)
}

/// Whether the value is a placeholder.
pub(super) fn is_placeholder(value: &Value) -> bool {
    value.origin() == Some(PLACEHOLDER)
}

fn at<'a>(root: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter()
        .try_fold(root, |value, step| match (&mut value.kind, step) {
            (ValueKind::Table(table), Step::Key(key)) => table.get_mut(key),
            (ValueKind::Array(list), Step::Index(index)) => list.get_mut(*index),
            _ => None,
        })
}

/// Puts a placeholder for the missing key at `path`. False if its parent is not
/// a table.
pub(super) fn fill(root: &mut Value, path: &[Step]) -> bool {
    let Some((Step::Key(key), parent)) = path.split_last() else {
        return false;
    };
    let Some(parent) = at(root, parent) else {
        return false;
    };
    if is_placeholder(parent) {
        *parent = Map::<String, Value>::new().into();
    }
    match &mut parent.kind {
        ValueKind::Table(table) => {
            table.insert(key.clone(), placeholder());
            true
        }
        _ => false,
    }
}

/// Removes the invalid value at `path`, so that its default applies. An item of
/// a list becomes a placeholder instead, so that the indexes of the others do
/// not change. False if there is no such value.
pub(super) fn reset(root: &mut Value, path: &[Step]) -> bool {
    let Some((last, parent)) = path.split_last() else {
        return false;
    };
    let Some(parent) = at(root, parent) else {
        return false;
    };
    match (&mut parent.kind, last) {
        (ValueKind::Table(table), Step::Key(key)) => table.remove(key).is_some(),
        (ValueKind::Array(list), Step::Index(index)) => {
            list.get_mut(*index).map(|item| *item = placeholder()).is_some()
        }
        _ => false,
    }
}

/// Merges the sources: the environment overrides the file, the file overrides
/// the defaults. Tables are merged, other values replaced.
pub(super) fn merge<T: Serialize>(defaults: &T, sources: &Sources) -> Result<Value, ConfigError> {
    let mut builder = Config::builder();
    for (key, value) in table_of(defaults)? {
        builder = builder.set_default(key, value).map_err(unmergeable)?;
    }
    if let Some(path) = &sources.file {
        let (text, format) = read_file(path)?;
        builder = builder.add_source(File::from_str(&text, format));
    }
    let environment = Environment::with_prefix(&sources.prefix)
        .prefix_separator("__")
        .separator("__")
        .source(Some(sources.env.clone().into_iter().collect()));
    let merged = builder.add_source(environment).build().map_err(unmergeable)?;
    Ok(merged.cache)
}

fn unmergeable(error: config::ConfigError) -> ConfigError {
    ConfigError::single("", format!("cannot be merged: {error}"))
}

/// The keys and values of the defaults. Secrets are left out: they are masked
/// here, and serde has their defaults.
fn table_of<T: Serialize>(defaults: &T) -> Result<Map<String, Value>, ConfigError> {
    let fail =
        |error: serde_json::Error| ConfigError::single("", format!("the defaults cannot be read: {error}"));
    let json = serde_json::to_value(defaults).map_err(fail)?;
    let mut tree: Value = serde_json::from_value(json).map_err(fail)?;
    remove_masked(&mut tree);
    match tree.kind {
        ValueKind::Table(table) => Ok(table),
        _ => Ok(Map::new()),
    }
}

fn remove_masked(tree: &mut Value) {
    if let ValueKind::Table(table) = &mut tree.kind {
        table.retain(|_, value| !matches!(&value.kind, ValueKind::String(text) if text == MASK));
        table.values_mut().for_each(remove_masked);
    }
}

/// Reads the file and checks its syntax. Parse errors give the position and
/// never quote the line, because it may contain a secret.
fn read_file(path: &Path) -> Result<(String, FileFormat), ConfigError> {
    let fail = |what: String| ConfigError::single(&path.display().to_string(), what);
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => match toml::from_str::<toml::Table>(&text) {
            Ok(_) => Ok((text, FileFormat::Toml)),
            Err(error) => {
                let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
                let line = before.matches('\n').count() + 1;
                Err(fail(format!("is not TOML: line {line}: {}", error.message())))
            }
        },
        Some("yaml" | "yml") => {
            let probe = Config::builder()
                .add_source(File::from_str(&text, FileFormat::Yaml))
                .build();
            match probe {
                Ok(_) => Ok((text, FileFormat::Yaml)),
                Err(error) => Err(fail(format!("is not a YAML table: {error}"))),
            }
        }
        _ => Err(fail("must end in .toml, .yaml or .yml".to_owned())),
    }
}
