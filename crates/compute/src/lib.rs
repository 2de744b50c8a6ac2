//! Compute of sessions: [`ComputeProvider`], its implementations, and the
//! [`ProviderRegistry`] that selects one by the kind of a cluster's definition.
//!
//! Every effect is idempotent by (session, generation) and only *starts* work;
//! [`ComputeProvider::observe`] returns the outcome. A provider reports changes through
//! its watch, so that callers need not poll.
//!
//! A new provider is a module of this crate, and changes these files:
//!
//! 1. `session-core/src/cluster.rs`: the variant of `Provider` and its kind;
//! 2. `session-proto/src/definition.rs`: its section in definition files;
//! 3. `session-proto/src/convert.rs`: the variant to and from the API's message;
//! 4. `compute/src/lib.rs`: the module, and the check of its definitions in
//!    [`validate_cluster`];
//! 5. `session-manager/src/providers/configured.rs`: its settings and construction.
//!
//! Everything that starts an engine is shared by the providers: `engine.rs`.
//!
//! Differences between providers that concern the manager are capabilities:
//! [`ComputeProvider::capabilities`], [`ComputeProvider::shared`].

pub mod address;
mod change_feed;
pub mod connector;
pub mod dns;
mod engine;
pub mod interrupt;
pub mod kubernetes;
pub mod probe;
pub mod process;
pub mod properties;
mod registry;
mod released;
pub mod resolver;
pub mod settings;
pub mod shared_servers;
pub mod simulation;
pub mod static_servers;
#[cfg(test)]
mod testing;
mod user_message;
pub mod warm_pools;

pub use address::AllowList;
pub use kubernetes::{KubernetesConfig, KubernetesProvider};
pub use process::{ProcessConfig, ProcessProvider};
pub use properties::{Invalid, validate_catalog, validate_use};
pub use registry::ProviderRegistry;
pub use shared_servers::{CatalogSelection, SharedCompute};
pub use simulation::SimCompute;
pub use static_servers::{Placements, StaticConfig, StaticProvider};
pub use warm_pools::WarmPools;

use async_trait::async_trait;
use futures::stream::BoxStream;
use session_core::machine::Observation;
use session_core::{Catalog, Cluster, ClusterName, ProviderKind, SessionKey};
use std::time::Duration;

/// One generation of a session, with all data to create its compute.
#[derive(Debug, Clone)]
pub struct ComputeSpec {
    /// The session.
    pub key: SessionKey,
    /// The generation.
    pub generation: u64,
    /// The cluster.
    pub cluster: Cluster,
    /// The default catalog.
    pub catalog: Option<Catalog>,
}

/// Error of a provider. It proves nothing about the compute; the caller repeats the
/// call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster has another provider.
    #[error("cluster {0} is not of this provider")]
    WrongProvider(String),
    /// The provider is temporarily unavailable.
    #[error("compute cannot be reached: {0}")]
    Unavailable(String),
    /// Another process runs this provider: nothing was done, and the state of its
    /// compute is unknown here.
    #[error("{0}")]
    NotLeader(String),
}

/// Why a cluster cannot be defined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// The platform rejects its compute, in these words.
    #[error("{0}")]
    Rejected(String),
    /// The platform cannot be asked now.
    #[error("{0}")]
    Unavailable(String),
}

/// Existing compute, identified by its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The session.
    pub key: SessionKey,
    /// The generation.
    pub generation: u64,
    /// The cluster.
    pub cluster: ClusterName,
    /// The installation that created it.
    pub install_id: String,
    /// Time since its creation.
    pub age: Duration,
}

/// Properties of a provider that the manager must consider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Compute ends with its manager and no event reports it: the manager must compare
    /// sessions with the inventory.
    pub dies_with_manager: bool,
    /// Only the manager that holds the leader lease may run the provider.
    pub needs_leader: bool,
}

/// Validates the definition of a cluster.
///
/// # Errors
/// [`Invalid`] lists every invalid field and property.
pub fn validate_cluster(cluster: &Cluster) -> Result<(), Invalid> {
    let check = match cluster.provider.kind() {
        ProviderKind::Static => static_servers::check_definition,
        ProviderKind::Process => process::check_definition,
        ProviderKind::Kubernetes => kubernetes::check_definition,
    };
    properties::validate_cluster(cluster, check)
}

/// A change of a session's compute, to be observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeChanged {
    /// The session.
    pub key: SessionKey,
    /// The generation.
    pub generation: u64,
}

/// Creates, observes and releases compute.
#[async_trait]
pub trait ComputeProvider: Send + Sync + std::fmt::Debug + 'static {
    /// Properties that the manager must consider.
    fn capabilities(&self) -> Capabilities;

    /// The provider as one with shared servers; `None` if compute is dedicated to one
    /// session.
    fn shared(&self) -> Option<&dyn SharedCompute> {
        None
    }

    /// The provider as one that keeps compute ready without sessions; `None` if it
    /// cannot.
    fn warm_pools(&self) -> Option<&dyn WarmPools> {
        None
    }

    /// Fencing number of the lease under which this process runs the provider; 0
    /// without a lease. Read before [`observe`](Self::observe), it limits what may be
    /// decided from the result.
    fn fence(&self) -> u64 {
        0
    }

    /// Asks the platform whether it would create compute of this cluster, and creates
    /// none. Nothing to ask by default.
    ///
    /// # Errors
    /// Why the cluster cannot be defined.
    async fn try_cluster(&self, _cluster: &Cluster) -> Result<(), DefinitionError> {
        Ok(())
    }

    /// Starts the creation of the compute, unless it exists. Returns at once.
    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error>;

    /// Returns the state of this generation's compute. Cheap; never waits for
    /// readiness.
    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error>;

    /// Starts the release of the compute of this and all earlier generations.
    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error>;

    /// Returns all existing compute of any installation, except compute that is being
    /// released. Empty for a provider that creates none.
    async fn inventory(&self) -> Result<Vec<Found>, Error>;

    /// Streams changes of compute (ready, failed, gone). Changes can be repeated or
    /// missing; the caller also polls.
    fn watch(&self) -> BoxStream<'static, ComputeChanged>;
}
