//! Configuration: defaults < file (TOML or YAML) < environment.
//!
//! A configuration is a plain serde struct with its own defaults
//! (`#[serde(default)]`). Loading reports *every* invalid key at once: unknown
//! keys, wrong types and the problems of [`Validate`], so that one restart
//! shows all errors. No error quotes a configured text, because it may be a
//! secret.
//!
//! The environment variable `PREFIX__SECTION__KEY` sets `section.key`. Its text
//! is parsed by the type of the field: `"123"` is a number or a text. A list is
//! comma-separated or a JSON array, a table is a JSON object; an empty text
//! unsets an optional field.

mod args;
mod de;
mod node;
mod problems;

pub use args::{ConfigArgs, Start, start, start_over_defaults};
pub use field_types::{Secret, duration};
pub use problems::{ConfigError, Problem, Problems, Validate};

use de::{De, Error, Fault};
use node::{Node, Step};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Sources of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The first part of environment variable names, e.g. `BERTH`.
    pub prefix: String,
    /// The file, if any; its extension selects TOML or YAML.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

impl Sources {
    /// The environment of this process and an optional file.
    pub fn of_process(prefix: &str, file: Option<PathBuf>) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            prefix: prefix.to_owned(),
            file,
            env,
        }
    }
}

/// Reads, merges, converts and validates; an error contains every problem.
/// Defaults are those of serde: a struct must provide them for each of its own
/// fields (`#[serde(default)]` on the struct).
pub fn load<T: DeserializeOwned + Validate>(sources: &Sources) -> Result<T, ConfigError> {
    finish(node::read(sources)?, sources)
}

/// Like [`load`], over `T::default()` instead of serde's defaults: a file or
/// the environment can set one field of a section (`listen.public.insecure`)
/// and keep the default of another that serde requires. An enum with fields
/// should not be such a default, because two variants would be merged.
pub fn load_over_defaults<T>(sources: &Sources) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Validate + Default,
{
    let defaults = serde_json::to_value(T::default())
        .map_err(|error| ConfigError::single("", format!("the defaults cannot be read: {error}")))?;
    let mut root = Node::from_json(defaults);
    root.remove_texts(field_types::secret::MASK);
    root.overlay(node::read(sources)?);
    finish(root, sources)
}

fn finish<T: DeserializeOwned + Validate>(root: Node, sources: &Sources) -> Result<T, ConfigError> {
    let mut problems = Problems::default();
    let value = convert::<T>(root, &mut problems);
    if let Some(value) = &value {
        let mut found = Problems::default();
        value.validate(&mut found);
        problems.merge_new(found);
    }
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(problems.into_error(&sources.prefix, &sources.env)),
    }
}

/// The whole configuration as TOML, with masked secrets.
pub fn to_toml<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(config)
        .map_err(|error| ConfigError::single("", format!("cannot be shown: {error}")))
}

/// Converts repeatedly to find every error: each round records an invalid value
/// and replaces it by its default, or a missing one by an empty value. If the
/// replacement also fails, the section around it is replaced. No place is
/// repaired twice in the same way, so the loop ends.
fn convert<T: DeserializeOwned>(mut root: Node, problems: &mut Problems) -> Option<T> {
    let mut tried = BTreeSet::new();
    loop {
        let (mut path, mut fault) = match attempt::<T>(&root, problems) {
            Ok(value) => return Some(value),
            Err(found) => found,
        };
        loop {
            if path.is_empty() {
                return None;
            }
            let repaired = tried.insert((node::show(&path), fault == Fault::Other))
                && match fault {
                    Fault::Missing(_) => root.set_wild(&path),
                    Fault::Other => root.reset(&path),
                };
            if repaired {
                break;
            }
            path.pop();
            fault = Fault::Other;
        }
    }
}

/// One conversion; adds its problems to `problems` and returns the path of the
/// failure.
fn attempt<T: DeserializeOwned>(root: &Node, problems: &mut Problems) -> Result<T, (Vec<Step>, Fault)> {
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = Vec::new();
    let result = {
        let de = serde_path_to_error::Deserializer::new(De::new(root.clone()), &mut track);
        serde_ignored::deserialize::<_, _, T>(de, |path| unknown.push(Step::from_ignored(&path)))
    };
    match result {
        Ok(value) => {
            for path in unknown {
                problems.add_new(&node::show(&path), "is not a known key");
            }
            Ok(value)
        }
        Err(Error { fault, text }) => {
            let mut path = Step::from_tracked(&track.path());
            if let Fault::Missing(field) = fault {
                path.push(Step::Key(field.to_owned()));
            }
            problems.add_new(&node::show(&path), text);
            Err((path, fault))
        }
    }
}
