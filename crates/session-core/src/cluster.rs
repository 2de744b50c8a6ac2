//! Clusters: where compute runs and by whom it may be used.

use crate::id::{ClusterName, OrgId};
use crate::policy::{IdlePolicy, PolicyRange, WakePolicy};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What speaks Spark Connect there. The engines differ in ways that reach
/// users (see docs/lifecycle.md), so every decision names the one it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// lakehq/sail.
    Sail,
    /// Apache Spark's Connect server.
    Spark,
}

impl Engine {
    /// The engine's name as configuration and metrics spell it.
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

/// Whether a cluster takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterStatus {
    /// Declared, not checked yet.
    Pending,
    /// Accepts new sessions.
    #[default]
    Active,
    /// Keeps its sessions, accepts no new ones.
    Draining,
    /// Gone; its sessions are closed.
    Destroyed,
}

/// A place where sessions run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Whether it accepts sessions.
    #[serde(default)]
    pub status: ClusterStatus,
    /// What speaks there.
    pub engine: Engine,
    /// The engine's version, for people; the probe reads the real one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Client releases that work with it, for people (e.g. `pyspark-client 4.1`).
    #[serde(default)]
    pub client_versions: Vec<String>,
    /// The organizations that may use it; empty means every one.
    #[serde(default)]
    pub granted_orgs: BTreeSet<OrgId>,
    /// How compute is made.
    pub provider: Provider,
    /// What happens to idle compute; the engine's default if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_policy: Option<IdlePolicy>,
    /// What Spark sessions that are older than the session's compute meet.
    #[serde(default, skip_serializing_if = "WakePolicy::is_default")]
    pub wake: WakePolicy,
    /// Defaults of the sessions' clocks on this cluster.
    #[serde(default)]
    pub policy: PolicyRange,
    /// Declared in configuration, hence read-only in the API.
    #[serde(default)]
    pub managed_by_config: bool,
    /// Rises with every change.
    #[serde(default)]
    pub version: u64,
}

/// How a cluster gets compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Provider {
    /// Existing Spark Connect servers.
    Static {
        /// Where they answer.
        endpoints: Vec<StaticEndpoint>,
        /// Sail only: several organizations may share a server, although Sail
        /// tells Spark sessions apart by their id alone.
        #[serde(default, skip_serializing_if = "is_false")]
        allow_shared_untrusted: bool,
    },
    /// One child process per session, on the manager's own machine.
    Process {
        /// The engine's program. Sail: the `sail` executable. Spark: the
        /// `SPARK_HOME` folder, started with `java` of `java_home`.
        program: String,
        /// The folder of the Java that runs Spark; `JAVA_HOME` or `java` on
        /// the manager's `PATH` if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        java_home: Option<String>,
        /// More settings for the engine: environment variables on Sail
        /// (`SAIL_…`), `--conf` properties on Spark. From an allow-list.
        #[serde(default)]
        properties: BTreeMap<String, String>,
        /// The Python that runs user functions on Spark.
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

    /// Does compute serve one session only? Shared compute is never "lost".
    pub const fn is_dedicated(&self) -> bool {
        match self {
            Self::Static { .. } => false,
            Self::Process { .. } => true,
        }
    }

    /// The provider's name as configuration and metrics spell it.
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
    /// Speak TLS, verified against this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// The environment variable of the manager that holds the server's own
    /// token (`spark.connect.authenticate.token`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
}

impl Cluster {
    /// What happens to its compute when a session goes idle: dedicated Sail is
    /// released; Spark and shared servers are kept, because a Spark client
    /// cannot go on after its server was replaced.
    pub fn effective_idle_policy(&self) -> IdlePolicy {
        self.idle_policy
            .unwrap_or(match (self.engine, self.provider.is_dedicated()) {
                (Engine::Sail, true) => IdlePolicy::Release,
                (Engine::Sail, false) | (Engine::Spark, _) => IdlePolicy::Keep,
            })
    }

    /// Must each of its shared servers keep to one organization? Sail finds a
    /// Spark session by its id alone, so whoever knows an id could reach it.
    /// On Apache Spark a query runs Java and Python inside the server, and can
    /// read whatever the server can.
    pub const fn keeps_orgs_apart(&self) -> bool {
        match &self.provider {
            Provider::Static {
                allow_shared_untrusted,
                ..
            } => !*allow_shared_untrusted,
            Provider::Process { .. } => false,
        }
    }

    /// May sessions of `org` run here?
    pub fn is_granted_to(&self, org: &OrgId) -> bool {
        self.granted_orgs.is_empty() || self.granted_orgs.contains(org)
    }
}
