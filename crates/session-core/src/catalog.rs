//! Catalogs: named pointers to data.

use crate::cluster::Engine;
use crate::id::{CatalogName, OrgId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The value of an engine property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PropertyValue {
    /// One text; also for numbers and flags.
    Text(String),
    /// A list of texts, e.g. the path of a database.
    List(Vec<String>),
}

/// Definition of a catalog: a name and the engine properties of its data
/// source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Name of the catalog, also in SQL.
    pub name: CatalogName,
    /// The organization that owns it.
    pub org: OrgId,
    /// Initial database (schema) of a session; `None` means the engine's
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_database: Option<String>,
    /// The engine of its properties.
    pub engine: Engine,
    /// Engine properties. On Sail: the fields of one entry of
    /// `SAIL_CATALOG__LIST` (`type`, `uri`, …). On Spark: the suffixes of
    /// `spark.sql.catalog.<name>` (the empty key is the implementing class).
    #[serde(default)]
    pub properties: BTreeMap<String, PropertyValue>,
    /// Teams whose members may use it; empty means all.
    #[serde(default)]
    pub allowed_teams: BTreeSet<String>,
    /// Whether the configuration declares it; then the API cannot change it.
    #[serde(default)]
    pub managed_by_config: bool,
    /// Version number; each change raises it.
    #[serde(default)]
    pub version: u64,
}
