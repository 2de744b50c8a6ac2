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
mod convert;
mod de;
mod error;
mod problems;
mod tree;

pub use args::{ConfigArgs, Start, start};
pub use field_types::{Secret, duration};
pub use problems::{ConfigError, Problem, Problems, Validate};

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
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

/// Merges the sources over `T::default()`, converts and validates. A source can
/// set one field of a section (`listen.public.insecure`) and keep the default
/// of another that serde requires. An enum with fields should not be such a
/// default, because two variants would be merged.
///
/// # Errors
/// Every problem of the configuration.
pub fn load<T>(sources: &Sources) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Validate + Default,
{
    let tree = tree::merge(&T::default(), sources)?;
    let mut problems = Problems::default();
    let value = convert::convert::<T>(tree, &mut problems);
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
///
/// # Errors
/// If TOML cannot represent it.
pub fn to_toml<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(config)
        .map_err(|error| ConfigError::single("", format!("cannot be shown: {error}")))
}
