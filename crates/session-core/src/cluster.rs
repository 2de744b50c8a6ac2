//! Clusters: providers of compute, and the organizations that may use them.

use crate::id::{ClusterName, OrgId, ProfileName};
use crate::pod_template::PodTemplate;
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
    /// One Kubernetes pod per session.
    Kubernetes(Box<KubernetesPods>),
}

/// Pods of a cluster of the provider `kubernetes`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesPods {
    /// Namespace of the pods; must be in the manager's `compute.kubernetes.namespaces`.
    pub namespace: String,
    /// Container image of the engine, with a tag or digest.
    pub image: String,
    /// Program that receives the engine's arguments; empty means the entrypoint
    /// of the image. Sail: the `sail` program; Spark: `java`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Names of Secrets of the namespace with registry credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    /// CPU of a pod, request and limit, as a Kubernetes quantity (`500m`, `2`); empty
    /// with `profiles`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cpu: String,
    /// Memory of a pod, request and limit, as a Kubernetes quantity (`2Gi`); empty
    /// with `profiles`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub memory: String,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pods accept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Additional engine settings from the same allow-list as those of `process`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// `SPARK_HOME` in the image; default `/opt/spark`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spark_home: Option<String>,
    /// The Python interpreter in the image for user functions on Spark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// Heap of a Spark driver, e.g. `1g`; must leave room within `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_memory: Option<String>,
    /// Limit of the disk that a pod may fill, as a Kubernetes quantity; default `10Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<String>,
    /// Sizes by name; empty means that all sessions have the size above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub profiles: BTreeMap<String, Profile>,
    /// Merged over each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
    /// Pods of the default profile that are kept ready without a session, in each of
    /// its pools; 0 means none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub warm_pods: u32,
    /// Default catalogs, as `org/catalog`, for whose sessions pods are kept ready,
    /// one pool each and profile; empty means one pool of each profile, for sessions
    /// without a default catalog.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_catalogs: Vec<String>,
    /// Service account of the drivers of a distributed engine, with the right to
    /// create workers; set if and only if `workers` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Workers that the engine creates as pods of their own; `None` means that
    /// each session is a single pod without access to the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<KubernetesWorkers>,
    /// The profile whose size these pods have. Only [`Cluster::with_profile`] sets it;
    /// it is no part of a definition.
    #[serde(skip)]
    pub profile: Option<ProfileName>,
}

/// Size of a pod and the nodes that it may run on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// CPU, request and limit, as a Kubernetes quantity (`500m`, `2`).
    pub cpu: String,
    /// Memory, request and limit, as a Kubernetes quantity (`2Gi`).
    pub memory: String,
    /// Limit of the disk; `None` means that of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<String>,
    /// Heap of a Spark driver; `None` means that of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_memory: Option<String>,
    /// Labels that a node must have, beside those of the cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pods accept, beside those of the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Whether sessions have it that name none. Exactly one profile of a cluster.
    #[serde(default)]
    pub default: bool,
    /// Pods of this profile that are kept ready without a session, in each of its
    /// pools; 0 means those of the cluster for the default profile, and none for the
    /// others.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub warm_pods: u32,
    /// Workers of the sessions with this profile; `None` means those of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<ProfileWorkers>,
}

/// What a profile changes about the workers of a distributed engine; `None` means as
/// the cluster says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileWorkers {
    /// Workers that a session keeps from its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Most workers of a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// CPU of a worker, request and limit, as a Kubernetes quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Memory of a worker, request and limit, as a Kubernetes quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
}

/// Worker pods of a distributed engine: workers of Sail, executors of Spark.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesWorkers {
    /// Workers that a session keeps from its start; 0 means none without work.
    #[serde(default)]
    pub min: u32,
    /// Most workers of a session.
    pub max: u32,
    /// CPU of a worker, request and limit, as a Kubernetes quantity.
    pub cpu: String,
    /// Memory of a worker, request and limit, as a Kubernetes quantity.
    pub memory: String,
    /// Seconds without work after which a worker ends; default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// Service account of the workers, without rights; default `berth-workers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// A taint that pods accept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// Key of the taint.
    pub key: String,
    /// Its value; `None` accepts any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Effect of the taint; `None` accepts all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// What a taint does to pods without a toleration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaintEffect {
    /// The scheduler places no new pod.
    NoSchedule,
    /// The scheduler avoids the node.
    PreferNoSchedule,
    /// Pods are evicted too.
    NoExecute,
}

impl TaintEffect {
    /// All effects.
    pub const ALL: [Self; 3] = [Self::NoSchedule, Self::PreferNoSchedule, Self::NoExecute];

    /// The effect as Kubernetes spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Provider {
    /// The implementation that this definition is for.
    pub const fn kind(&self) -> ProviderKind {
        match self {
            Self::Static { .. } => ProviderKind::Static,
            Self::Process { .. } => ProviderKind::Process,
            Self::Kubernetes(_) => ProviderKind::Kubernetes,
        }
    }

    /// Whether compute serves one session only. Shared compute is never lost.
    pub const fn is_dedicated(&self) -> bool {
        match self {
            Self::Static { .. } => false,
            Self::Process { .. } | Self::Kubernetes(_) => true,
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
    /// Kubernetes pods.
    Kubernetes,
}

impl ProviderKind {
    /// The kind's name as configuration and metrics spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Process => "process",
            Self::Kubernetes => "kubernetes",
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
            Provider::Process { .. } | Provider::Kubernetes(_) => false,
        }
    }

    /// Whether sessions of `org` may run on this cluster.
    pub fn is_granted_to(&self, org: &OrgId) -> bool {
        self.granted_orgs.is_empty() || self.granted_orgs.contains(org)
    }
}
