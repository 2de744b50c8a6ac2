//! Where sessions run: [`ComputeProvider`], its implementations, and the
//! [`ProviderRegistry`] that selects one by the kind of a cluster's definition.
//!
//! Every effect is idempotent by (session, generation) and only *starts* work;
//! [`ComputeProvider::observe`] returns the outcome. A provider reports changes
//! through its watch, so that nobody has to poll.
//!
//! A new provider is a module of this crate, and changes these files:
//!
//! 1. `session-core/src/cluster.rs`: the variant of `Provider` and its kind;
//! 2. `session-proto/src/definition/mod.rs`: its section in definition files;
//! 3. `session-proto/src/convert.rs`: the variant to and from the API's message;
//! 4. `compute/src/lib.rs`: the module, and the check of its definitions in
//!    [`validate_cluster`];
//! 5. `session-manager/src/providers/configured.rs`: its settings and construction.
//!
//! What engines are started with is the same everywhere: `engine.rs`.
//!
//! What the manager must do differently for a provider is a capability:
//! [`ComputeProvider::capabilities`], [`ComputeProvider::shared`].

pub mod address;
mod change_feed;
pub mod connector;
pub mod dns;
mod engine;
pub mod interrupt;
pub mod kubernetes;
pub mod lookup;
pub mod probe;
pub mod process;
pub mod properties;
mod registry;
mod released;
pub mod settings;
pub mod shared_servers;
pub mod simulation;
pub mod static_servers;
#[cfg(test)]
mod testing;
mod user_message;

pub use address::AllowList;
pub use kubernetes::{KubernetesConfig, KubernetesProvider};
pub use process::{ProcessConfig, ProcessProvider};
pub use properties::{Invalid, validate_catalog, validate_use};
pub use registry::ProviderRegistry;
pub use shared_servers::{Chosen, SharedCompute};
pub use simulation::SimCompute;
pub use static_servers::{Places, StaticConfig, StaticProvider};

use async_trait::async_trait;
use futures::stream::BoxStream;
use session_core::machine::Observation;
use session_core::{Catalog, Cluster, ClusterName, ProviderKind, SessionKey};
use std::time::Duration;

/// One session generation and all that is needed to make its compute.
#[derive(Debug, Clone)]
pub struct ComputeSpec {
    /// Whose.
    pub key: SessionKey,
    /// Which.
    pub generation: u64,
    /// Where.
    pub cluster: Cluster,
    /// The default catalog.
    pub catalog: Option<Catalog>,
}

/// Why a provider could not do or tell. Nothing is decided from it; the caller asks again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster is of another provider.
    #[error("cluster {0} is not of this provider")]
    WrongProvider(String),
    /// The provider's own means are away for now.
    #[error("compute cannot be reached: {0}")]
    Unavailable(String),
    /// Another process runs this provider: nothing was done, and what there is
    /// of its compute is not known here.
    #[error("{0}")]
    NotLeader(String),
}

/// Compute that exists, as its labels tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose it is.
    pub key: SessionKey,
    /// Which generation.
    pub generation: u64,
    /// The cluster it was made for.
    pub cluster: ClusterName,
    /// The installation that made it.
    pub install_id: String,
    /// How long it has been there.
    pub age: Duration,
}

/// What a manager must do differently for a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Compute ends with its manager and no event reports it: sessions must be
    /// compared with the inventory.
    pub dies_with_manager: bool,
    /// Only the manager that holds the leader lease may run the provider.
    pub needs_leader: bool,
}

/// Checks everything that a cluster defines for its provider.
///
/// # Errors
/// [`Invalid`] names every wrong field and property.
pub fn validate_cluster(cluster: &Cluster) -> Result<(), Invalid> {
    let check = match cluster.provider.kind() {
        ProviderKind::Static => static_servers::check_definition,
        ProviderKind::Process => process::check_definition,
        ProviderKind::Kubernetes => kubernetes::check_definition,
    };
    properties::validate_cluster(cluster, check)
}

/// Something about a session's compute changed: look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeChanged {
    /// Whose.
    pub key: SessionKey,
    /// Which generation.
    pub generation: u64,
}

/// Makes, watches and gives back compute.
#[async_trait]
pub trait ComputeProvider: Send + Sync + std::fmt::Debug + 'static {
    /// What the manager must do differently for this provider.
    fn capabilities(&self) -> Capabilities;

    /// The provider as one whose servers several sessions share; `None` where
    /// compute is dedicated to one session.
    fn shared(&self) -> Option<&dyn SharedCompute> {
        None
    }

    /// The fencing number of the lease that lets this process run the provider;
    /// 0 where there is none. Read before [`observe`](Self::observe), it bounds
    /// what may be decided from the answer.
    fn fence(&self) -> u64 {
        0
    }

    /// Starts making the compute, unless it exists already. Returns at once.
    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error>;

    /// What there is of this generation's compute. Cheap: looks, never waits
    /// for readiness.
    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error>;

    /// Starts giving back the compute of this generation and all before it.
    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error>;

    /// All compute there is, whoever made it, but what is on its way out. A
    /// provider that makes none has none.
    async fn inventory(&self) -> Result<Vec<Found>, Error>;

    /// Tells when some compute changed (ready, failed, gone). May repeat
    /// itself and may miss some; the caller's own clock covers that.
    fn watch(&self) -> BoxStream<'static, ComputeChanged>;
}
