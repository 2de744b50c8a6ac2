//! Configuration: defaults < file (TOML or YAML) < environment.
//!
//! A configuration is a plain serde struct whose defaults are its own
//! (`#[serde(default)]`). Loading names *every* bad key at once: unknown
//! ones, wrong types and what [`Validate`] finds, so that nobody fixes a file
//! one restart at a time. No error ever shows a configured text, because it
//! may be a secret.
//!
//! The environment variable `PREFIX__SECTION__KEY` sets `section.key`. Its
//! text is read as what the field is: `"123"` is a number for a number and a
//! text for a text. A list is comma-separated or a JSON array, a table is a
//! JSON object; an empty text unsets an optional field.

mod args;
mod de;
pub mod duration;
mod node;
mod problems;
mod secret;

pub use args::{ConfigArgs, Start, start};
pub use problems::{ConfigError, Problem, Problems, Validate};
pub use secret::Secret;

use de::{De, Error, Fault};
use node::{Node, Step};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The first part of environment variable names, e.g. `BERTH`.
    pub prefix: String,
    /// The file, if there is one; its extension says TOML or YAML.
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

/// Reads, merges, converts and validates; on failure names every problem found.
pub fn load<T: DeserializeOwned + Validate>(sources: &Sources) -> Result<T, ConfigError> {
    let root = node::read(sources)?;
    let mut problems = Problems::default();
    let Some(value) = convert::<T>(root, &mut problems) else {
        return Err(problems.into_error(&sources.prefix, &sources.env));
    };
    let mut found = Problems::default();
    value.validate(&mut found);
    problems.merge_new(found);
    if problems.is_empty() {
        Ok(value)
    } else {
        Err(problems.into_error(&sources.prefix, &sources.env))
    }
}

/// The whole configuration as TOML; secrets hide themselves.
pub fn to_toml<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(config)
        .map_err(|error| ConfigError::single("", format!("cannot be shown: {error}")))
}

/// Converts as often as it takes to see every error: a bad value is noted and
/// replaced by its default, a missing one by an empty one, and the next round
/// goes further. Gives up when a replacement is not acceptable either.
fn convert<T: DeserializeOwned>(mut root: Node, problems: &mut Problems) -> Option<T> {
    loop {
        let mut track = serde_path_to_error::Track::new();
        let mut unknown = Vec::new();
        let result = {
            let de = serde_path_to_error::Deserializer::new(De::new(root.clone()), &mut track);
            serde_ignored::deserialize::<_, _, T>(de, |path| unknown.push(Step::from_ignored(&path)))
        };
        let (mut path, Error { fault, text }) = match result {
            Ok(value) => {
                for path in unknown {
                    problems.add_at(&node::show(&path), "is not a known key");
                }
                return Some(value);
            }
            Err(error) => (Step::from_tracked(&track.path()), error),
        };
        if let Fault::Missing(field) = fault {
            path.push(Step::Key(field.to_owned()));
        }
        let shown = node::show(&path);
        let again = problems.covers(&shown);
        problems.add_at(&shown, text);
        let replaced = match fault {
            Fault::Missing(_) => root.set_wild(&path),
            Fault::Other => root.reset(&path),
        };
        if !replaced || (again && fault == Fault::Other) {
            return None;
        }
    }
}
