//! Validation of the engine properties of clusters and catalogs.
//!
//! Properties are allowed by prefix, because engines have settings that load code, move
//! files or open the server. All wrong keys are reported at once. Secrets are
//! references to the manager's environment, never values.

mod keys;
mod values;

pub use values::SECRET_PREFIX;
pub(crate) use values::{is_secret_variable, resolve, secret_from_env};

use crate::ComputeSpec;
use crate::user_message;
use keys::{catalog_key_problem, cluster_key_problem, is_local_master};
use session_core::catalog::PropertyValue;
use session_core::machine::Cause;
use session_core::{Catalog, Cluster, Engine};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use values::{check_printable, check_text, is_secret_of};

/// Maximum number of properties of a definition.
const MAX_PROPERTIES: usize = 256;

/// Problem of one field or property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field or property.
    pub key: String,
    /// Description of the problem.
    pub problem: String,
}

/// All problems of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let between = if i == 0 { "" } else { "; " };
            write!(f, "{between}{}: {}", problem.key, problem.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Problem {
            key: key.into(),
            problem: problem.into(),
        });
    }

    fn done(self) -> Result<(), Invalid> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Invalid { problems: self.0 })
        }
    }
}

/// Adds the problems of the fields of one provider.
pub(crate) type CheckProvider = fn(&Cluster, &mut Problems);

/// Validates a cluster: the common fields, and those that `check_provider` reads.
///
/// # Errors
/// [`Invalid`] lists every invalid field and property.
pub(crate) fn validate_cluster(cluster: &Cluster, check_provider: CheckProvider) -> Result<(), Invalid> {
    let mut problems = Problems::default();
    let version = cluster.engine_version.iter().map(|text| ("engine_version", text));
    let versions = cluster
        .client_versions
        .iter()
        .map(|text| ("client_versions", text));
    for (field, text) in version.chain(versions) {
        check_printable(&mut problems, field, text);
    }
    check_provider(cluster, &mut problems);
    problems.done()
}

/// Validates the definition of a catalog.
///
/// # Errors
/// [`Invalid`] lists every invalid field and property.
pub fn validate_catalog(catalog: &Catalog) -> Result<(), Invalid> {
    let mut problems = Problems::default();
    if let Some(database) = &catalog.default_database
        && !database.split('.').all(is_plain_name)
    {
        problems.add(
            "default_database",
            "must be names of letters, digits, _ and -, joined by dots",
        );
    }
    for team in &catalog.allowed_teams {
        check_printable(&mut problems, "allowed_teams", team);
    }
    let implementation = match catalog.engine {
        Engine::Sail => "type",
        Engine::Spark => "",
    };
    match catalog.properties.get(implementation) {
        Some(PropertyValue::Text(text)) if !text.is_empty() => {}
        Some(PropertyValue::Text(_) | PropertyValue::List(_)) | None => problems.add(
            shown_key(implementation),
            match catalog.engine {
                Engine::Sail => "must say the kind of catalog, e.g. memory or iceberg-rest",
                Engine::Spark => {
                    "must name the class of the catalog, e.g. org.apache.iceberg.spark.SparkCatalog"
                }
            },
        ),
    }
    not_too_many(&mut problems, catalog.properties.len());
    for (key, value) in &catalog.properties {
        if let Some(problem) = catalog_key_problem(catalog.engine, key) {
            problems.add(shown_key(key), problem);
        }
        let (texts, is_list) = match value {
            PropertyValue::Text(text) => (std::slice::from_ref(text), false),
            PropertyValue::List(list) => (list.as_slice(), true),
        };
        for text in texts {
            if is_list && text.contains("${") {
                problems.add(
                    shown_key(key),
                    "is a list, and a list cannot refer to secrets: give the secret to a property that is one text",
                );
            } else {
                check_text(&mut problems, shown_key(key), text, |name| {
                    is_secret_of(&catalog.org, name)
                });
            }
            if catalog.engine == Engine::Sail && text.contains(['"', '\\']) {
                problems.add(shown_key(key), "must not contain quotation marks or backslashes");
            }
        }
    }
    problems.done()
}

/// Validates `catalog` as the default catalog of sessions on `cluster`.
///
/// # Errors
/// [`Invalid`] with the reasons.
pub fn validate_use(cluster: &Cluster, catalog: &Catalog) -> Result<(), Invalid> {
    let mut problems = Problems::default();
    if cluster.engine != catalog.engine {
        problems.add(
            "catalog",
            format!(
                "{} is written for {}, cluster {} runs {}",
                catalog.name, catalog.engine, cluster.name, cluster.engine
            ),
        );
    }
    if cluster.engine == Engine::Spark
        && cluster.provider.is_dedicated()
        && catalog.default_database.is_some()
        && !takes_default_namespace(catalog)
    {
        problems.add(
            "default_database",
            format!(
                "Apache Spark cannot start in a database of catalog {}: only Iceberg catalogs have a setting for it",
                catalog.name
            ),
        );
    }
    problems.done()
}

/// Returns the reason why this spec can never run, if any.
pub(crate) fn unfit(spec: &ComputeSpec, check_provider: CheckProvider) -> Option<Cause> {
    let unusable = |what: &str, name: &str, e: Invalid| {
        user_message::cause_with_message(&format!("{what} {name} cannot be used"), &e.to_string())
    };
    let cluster = validate_cluster(&spec.cluster, check_provider);
    let cluster = cluster.map_err(|e| unusable("cluster", spec.cluster.name.as_str(), e));
    let catalog = spec.catalog.as_ref().map_or(Ok(()), |catalog| {
        validate_catalog(catalog)
            .and_then(|()| validate_use(&spec.cluster, catalog))
            .map_err(|e| unusable("catalog", catalog.name.as_str(), e))
    });
    cluster.and(catalog).err()
}

/// Returns whether the class of this Spark catalog has the property
/// `default-namespace`.
pub(crate) fn takes_default_namespace(catalog: &Catalog) -> bool {
    catalog.properties.contains_key("default-namespace")
        || matches!(catalog.properties.get(""),
            Some(PropertyValue::Text(class)) if class == "org.apache.iceberg.spark.SparkCatalog")
}

fn is_plain_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

pub(crate) fn must_be_absolute(problems: &mut Problems, field: &str, text: &str) {
    if !Path::new(text).is_absolute() || !printable::all_printable(text) {
        problems.add(
            field,
            "must be an absolute path without control or invisible characters",
        );
    }
}

fn not_too_many(problems: &mut Problems, count: usize) {
    if count > MAX_PROPERTIES {
        problems.add("properties", format!("must not be more than {MAX_PROPERTIES}"));
    }
}

/// Adds every setting of an engine that a cluster must not have.
pub(crate) fn check_engine_properties(
    engine: Engine,
    properties: &BTreeMap<String, String>,
    problems: &mut Problems,
) {
    not_too_many(problems, properties.len());
    for (key, value) in properties {
        if let Some(problem) = cluster_key_problem(engine, key) {
            problems.add(key, problem);
        }
        check_text(problems, key, value, is_secret_variable);
        if key == "spark.master" && !is_local_master(value) {
            problems.add(key, "must be local[…]: a session has one machine");
        }
    }
}

/// Adds a problem to a field of Apache Spark on another engine; true if there is none.
pub(crate) fn must_be_for_spark(problems: &mut Problems, engine: Engine, field: &str) -> bool {
    match engine {
        Engine::Spark => true,
        Engine::Sail => {
            problems.add(field, "is only for the engine spark");
            false
        }
    }
}

/// Whether a text is a size as the JVM takes it: `512m`, `2g`.
pub(crate) fn is_jvm_size(text: &str) -> bool {
    jvm_bytes(text).is_some_and(|bytes| bytes > 0)
}

/// Such a size in bytes.
pub(crate) fn jvm_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let size = match unit {
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return None,
    };
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    Some(u64::from(digits.parse::<u32>().ok().filter(|_| is_number)?) * size)
}

fn shown_key(key: &str) -> &str {
    if key.is_empty() { "\"\"" } else { key }
}

#[cfg(test)]
mod tests;
