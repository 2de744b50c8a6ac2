//! Catalogs: named pointers to data.

use crate::cluster::Engine;
use crate::id::{CatalogName, OrgId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The value of an engine property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PropertyValue {
    /// One text; numbers and flags are written as text too.
    Text(String),
    /// A list of texts, e.g. the path of a database.
    List(Vec<String>),
}

/// A named pointer to data and the engine properties that reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Its name: in SQL, too.
    pub name: CatalogName,
    /// Whose it is.
    pub org: OrgId,
    /// The database (schema) a session starts in; the engine's default if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_database: Option<String>,
    /// The engine it is written for.
    pub engine: Engine,
    /// Engine properties. On Sail the fields of one entry of
    /// `SAIL_CATALOG__LIST` (`type`, `uri`, …); on Spark what follows
    /// `spark.sql.catalog.<name>` (the empty key is the implementing class).
    #[serde(default)]
    pub properties: BTreeMap<String, PropertyValue>,
    /// Only members of these teams may use it; everybody when empty.
    #[serde(default)]
    pub allowed_teams: BTreeSet<String>,
    /// Declared in configuration, hence read-only in the API.
    #[serde(default)]
    pub managed_by_config: bool,
    /// Rises with every change.
    #[serde(default)]
    pub version: u64,
}
