//! Clusters: providers of compute, and the organizations that may use them.

use crate::id::{ClusterName, OrgId};
use crate::policy::{IdlePolicy, PolicyRange, WakePolicy};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Software of the compute. The engines differ in behaviour that users see
/// (docs/lifecycle.md), so every decision matches on the engine explicitly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// lakehq/sail.
    Sail,
    /// Apache Spark's Connect server.
    Spark,
}

impl Engine {
    /// Spelling of the engine in configuration and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sail => "sail",
            Self::Spark => "spark",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Availability of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterStatus {
    /// Declared, not yet verified.
    Pending,
    /// Accepts new sessions.
    #[default]
    Active,
    /// Keeps its sessions, accepts no new ones.
    Draining,
    /// Deleted; its sessions are closed.
    Destroyed,
}

/// Definition of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Name of the cluster.
    pub name: ClusterName,
    /// Whether the cluster accepts sessions.
    #[serde(default)]
    pub status: ClusterStatus,
    /// The engine of its compute.
    pub engine: Engine,
    /// The engine's version, informational; the probe reads the real one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Compatible client releases, informational (e.g. `pyspark-client 4.1`).
    #[serde(default)]
    pub client_versions: Vec<String>,
    /// Organizations that may use the cluster; empty means all.
    #[serde(default)]
    pub granted_orgs: BTreeSet<OrgId>,
    /// Provider of the compute.
    pub provider: Provider,
    /// Treatment of idle compute; `None` means the engine's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_policy: Option<IdlePolicy>,
    /// Behaviour of Spark sessions that are older than the session's compute.
    #[serde(default, skip_serializing_if = "WakePolicy::is_default")]
    pub wake: WakePolicy,
    /// Default timeouts of the sessions on this cluster.
    #[serde(default)]
    pub policy: PolicyRange,
    /// Whether the configuration declares it; then the API cannot change it.
    #[serde(default)]
    pub managed_by_config: bool,
    /// Version number; each change raises it.
    #[serde(default)]
    pub version: u64,
}

/// Provider of a cluster's compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Provider {
    /// Existing Spark Connect servers.
    Static {
        /// Addresses of the servers.
        endpoints: Vec<StaticEndpoint>,
        /// Sail only: allows several organizations on one server, although Sail
        /// identifies Spark sessions by their id alone.
        #[serde(default, skip_serializing_if = "is_false")]
        allow_shared_untrusted: bool,
    },
    /// One child process per session, on the machine of the manager.
    Process {
        /// The engine's program. Sail: the `sail` executable. Spark: the
        /// `SPARK_HOME` folder, started with `java` of `java_home`.
        program: String,
        /// Folder of the Java that runs Spark; default: `JAVA_HOME` or `java`
        /// on the manager's `PATH`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        java_home: Option<String>,
        /// Additional engine settings from an allow-list: environment variables
        /// on Sail (`SAIL_…`), `--conf` properties on Spark.
        #[serde(default)]
        properties: BTreeMap<String, String>,
        /// The Python interpreter for user functions on Spark.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        python: Option<String>,
        /// Memory of a Spark driver, e.g. `1g`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        driver_memory: Option<String>,
    },
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Provider {
    /// The implementation that this definition is for.
    pub const fn kind(&self) -> ProviderKind {
        match self {
            Self::Static { .. } => ProviderKind::Static,
            Self::Process { .. } => ProviderKind::Process,
        }
    }

    /// Whether compute serves one session only. Shared compute is never lost.
    pub const fn is_dedicated(&self) -> bool {
        match self {
            Self::Static { .. } => false,
            Self::Process { .. } => true,
        }
    }

    /// Spelling of the provider in configuration and metrics.
    pub const fn as_str(&self) -> &'static str {
        self.kind().as_str()
    }
}

/// The implementations of compute providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProviderKind {
    /// Existing Spark Connect servers.
    Static,
    /// Child processes of the manager.
    Process,
}

impl ProviderKind {
    /// The kind's name as configuration and metrics spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Process => "process",
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One server of a static cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticEndpoint {
    /// `host:port`.
    pub address: String,
    /// Server name for TLS verification; `None` means plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Environment variable of the manager with the server's own token
    /// (`spark.connect.authenticate.token`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
}

impl Cluster {
    /// Treatment of idle compute: dedicated Sail is released; Spark and shared
    /// servers are kept, because a Spark client cannot continue after its
    /// server was replaced.
    pub fn effective_idle_policy(&self) -> IdlePolicy {
        self.idle_policy
            .unwrap_or(match (self.engine, self.provider.is_dedicated()) {
                (Engine::Sail, true) => IdlePolicy::Release,
                (Engine::Sail, false) | (Engine::Spark, _) => IdlePolicy::Keep,
            })
    }

    /// Whether each shared server serves one organization only. Sail identifies
    /// a Spark session by its id alone, so anybody with an id could use it. On
    /// Apache Spark, a query runs Java and Python inside the server and can
    /// read everything that the server can read.
    pub const fn keeps_orgs_apart(&self) -> bool {
        match &self.provider {
            Provider::Static {
                allow_shared_untrusted,
                ..
            } => !*allow_shared_untrusted,
            Provider::Process { .. } => false,
        }
    }

    /// Whether sessions of `org` may run on this cluster.
    pub fn is_granted_to(&self, org: &OrgId) -> bool {
        self.granted_orgs.is_empty() || self.granted_orgs.contains(org)
    }
}
