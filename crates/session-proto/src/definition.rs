//! Cluster and catalog definitions as files: the keys of `[[clusters]]` and
//! `[[catalogs]]` in session-manager's configuration, and of the files that
//! `berth clusters create` and `berth catalogs create` read. Names are texts
//! here, so that one invalid name does not hide other problems.

use crate::{convert, v1};
use field_types::duration;
use serde::{Deserialize, Serialize};
use session_core::catalog::PropertyValue;
use session_core::cluster::StaticEndpoint;
use session_core::policy::PolicyRange;
use session_core::{
    Catalog, Cluster, ClusterStatus, Engine, IdlePolicy, KubernetesPods, Provider, WakePolicy,
};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

/// The definition of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterDefinition {
    /// Its name.
    pub name: String,
    /// `sail` or `spark`.
    pub engine: Engine,
    /// Engine release, for people only.
    #[serde(default)]
    pub engine_version: Option<String>,
    /// Client releases that work with it, for people only.
    #[serde(default)]
    pub client_versions: Vec<String>,
    /// The organizations that may use it; all if empty.
    #[serde(default)]
    pub granted_orgs: BTreeSet<String>,
    /// `release` or `keep`; the engine's default if not set.
    #[serde(default)]
    pub idle_policy: Option<IdlePolicy>,
    /// `restore` (the default) or `signal`: treatment of Spark sessions that are
    /// older than the session's compute.
    #[serde(default)]
    pub wake: WakePolicy,
    /// Sessions' default idle timeout.
    #[serde(default, with = "duration::option")]
    pub idle_timeout: Option<Duration>,
    /// Sessions' default time from idle to closed.
    #[serde(default, with = "duration::option")]
    pub close_after_idle: Option<Duration>,
    /// Sessions' default lifetime.
    #[serde(default, with = "duration::option")]
    pub max_lifetime: Option<Duration>,
    /// Timeout of compute that is not ready.
    #[serde(default, with = "duration::option")]
    pub provisioning_deadline: Option<Duration>,
    /// Accepts no new sessions. Only in the configuration.
    #[serde(default)]
    pub draining: bool,
    /// Existing servers.
    #[serde(default)]
    pub r#static: Option<StaticServers>,
    /// Child processes.
    #[serde(default)]
    pub process: Option<ProcessEngines>,
    /// Kubernetes pods.
    #[serde(default)]
    pub kubernetes: Option<KubernetesPods>,
}

/// Existing servers of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticServers {
    /// Their addresses.
    pub endpoints: Vec<StaticEndpoint>,
    /// Allows several organizations to share these servers, which do not isolate
    /// them.
    #[serde(default)]
    pub allow_shared_untrusted: bool,
}

/// Child processes of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessEngines {
    /// Sail: the program. Spark: the `SPARK_HOME` folder.
    pub program: String,
    /// The Java that runs Spark.
    #[serde(default)]
    pub java_home: Option<String>,
    /// More engine settings, from an allow-list.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// The Python that runs user functions on Spark.
    #[serde(default)]
    pub python: Option<String>,
    /// Memory of a Spark driver, e.g. `1g`.
    #[serde(default)]
    pub driver_memory: Option<String>,
}

/// The definition of a catalog.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogDefinition {
    /// Its name, also in SQL.
    pub name: String,
    /// The organization that owns it. Required in the configuration; in a file
    /// of the command line the caller's organization if empty.
    #[serde(default)]
    pub org: String,
    /// `sail` or `spark`.
    pub engine: Engine,
    /// The initial database of a session.
    #[serde(default)]
    pub default_database: Option<String>,
    /// Engine properties.
    #[serde(default)]
    pub properties: BTreeMap<String, PropertyValue>,
    /// The teams whose members may use it; all if empty.
    #[serde(default)]
    pub allowed_teams: BTreeSet<String>,
}

/// An invalid field and its problem; an empty field is the definition itself.
pub type Wrong = (&'static str, String);

/// Parses a name; adds its problem to `wrong`.
pub fn name<T: FromStr<Err: ToString>>(field: &'static str, text: &str, wrong: &mut Vec<Wrong>) -> Option<T> {
    text.parse()
        .map_err(|error: T::Err| wrong.push((field, error.to_string())))
        .ok()
}

impl ClusterDefinition {
    /// The provider.
    ///
    /// # Errors
    /// Unless exactly one provider has a section.
    pub fn provider(&self) -> Result<Provider, Wrong> {
        match (&self.r#static, &self.process, &self.kubernetes) {
            (Some(servers), None, None) => Ok(Provider::Static {
                endpoints: servers.endpoints.clone(),
                allow_shared_untrusted: servers.allow_shared_untrusted,
            }),
            (None, Some(process), None) => Ok(Provider::Process {
                program: process.program.clone(),
                java_home: process.java_home.clone(),
                properties: process.properties.clone(),
                python: process.python.clone(),
                driver_memory: process.driver_memory.clone(),
            }),
            (None, None, Some(pods)) => Ok(Provider::Kubernetes(Box::new(pods.clone()))),
            (None, None, None)
            | (Some(_), Some(_), _)
            | (Some(_), None, Some(_))
            | (None, Some(_), Some(_)) => Err((
                "",
                "needs exactly one of the sections static, process and kubernetes".to_owned(),
            )),
        }
    }

    /// The cluster as session-manager stores it, declared in configuration.
    ///
    /// # Errors
    /// Every invalid field, without checks across fields.
    pub fn define(&self) -> Result<Cluster, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let own_name = name("name", &self.name, &mut wrong);
        let granted_orgs = self
            .granted_orgs
            .iter()
            .filter_map(|org| name("granted_orgs", org, &mut wrong))
            .collect();
        let provider = self.provider().map_err(|problem| wrong.push(problem)).ok();
        let (Some(own_name), Some(provider), true) = (own_name, provider, wrong.is_empty()) else {
            return Err(wrong);
        };
        Ok(Cluster {
            name: own_name,
            status: if self.draining {
                ClusterStatus::Draining
            } else {
                ClusterStatus::Active
            },
            engine: self.engine,
            engine_version: self.engine_version.clone(),
            client_versions: self.client_versions.clone(),
            granted_orgs,
            provider,
            idle_policy: self.idle_policy,
            wake: self.wake,
            policy: PolicyRange {
                idle_timeout: self.idle_timeout,
                close_after_idle: self.close_after_idle,
                max_lifetime: self.max_lifetime,
                provisioning_deadline: self.provisioning_deadline,
            },
            managed_by_config: true,
            version: 0,
        })
    }

    /// The cluster for the API, whose values the API checks.
    ///
    /// # Errors
    /// If it has a key of the configuration only, or not exactly one provider.
    pub fn to_wire(&self) -> Result<v1::Cluster, Wrong> {
        if self.draining {
            let problem = "is a key of the configuration only";
            return Err(("draining", problem.to_owned()));
        }
        Ok(v1::Cluster {
            name: self.name.clone(),
            engine: convert::engine(self.engine).into(),
            engine_version: self.engine_version.clone().unwrap_or_default(),
            client_versions: self.client_versions.clone(),
            granted_orgs: self.granted_orgs.iter().cloned().collect(),
            provider: Some(convert::provider(&self.provider()?)),
            idle_policy: self
                .idle_policy
                .map(|policy| convert::idle_policy(policy).to_owned())
                .unwrap_or_default(),
            wake: self.wake.as_str().to_owned(),
            idle_timeout: self.idle_timeout.map(convert::duration),
            close_after_idle: self.close_after_idle.map(convert::duration),
            max_lifetime: self.max_lifetime.map(convert::duration),
            provisioning_deadline: self.provisioning_deadline.map(convert::duration),
            ..v1::Cluster::default()
        })
    }
}

impl CatalogDefinition {
    /// The catalog as session-manager stores it, declared in configuration.
    ///
    /// # Errors
    /// Every invalid field, without checks across fields.
    pub fn define(&self) -> Result<Catalog, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let own_name = name("name", &self.name, &mut wrong);
        let org = if self.org.is_empty() {
            wrong.push(("org", "is required".to_owned()));
            None
        } else {
            name("org", &self.org, &mut wrong)
        };
        let (Some(own_name), Some(org)) = (own_name, org) else {
            return Err(wrong);
        };
        Ok(Catalog {
            name: own_name,
            org,
            default_database: self.default_database.clone(),
            engine: self.engine,
            properties: self.properties.clone(),
            allowed_teams: self.allowed_teams.clone(),
            managed_by_config: true,
            version: 0,
        })
    }

    /// The catalog for the API, whose values the API checks.
    pub fn to_wire(&self) -> v1::Catalog {
        v1::Catalog {
            name: self.name.clone(),
            org: self.org.clone(),
            engine: convert::engine(self.engine).into(),
            default_database: self.default_database.clone().unwrap_or_default(),
            properties: self
                .properties
                .iter()
                .map(|(key, value)| (key.clone(), convert::property(value)))
                .collect(),
            allowed_teams: self.allowed_teams.iter().cloned().collect(),
            ..v1::Catalog::default()
        }
    }
}
