//! Where sessions run: [`ComputeProvider`] and the ways to provide.
//!
//! Every effect is idempotent by (session, generation) and only *starts* work;
//! what became of it is seen by [`ComputeProvider::observe`]. A provider tells
//! of changes through its watch, so that nobody has to poll.

pub mod address;
mod change_feed;
pub mod connector;
pub mod dns;
pub mod interrupt;
pub mod probe;
pub mod process;
pub mod properties;
pub mod settings;
pub mod shared_servers;
pub mod simulation;
pub mod static_servers;
#[cfg(test)]
mod testing;
mod user_message;

pub use address::AllowList;
pub use process::{ProcessConfig, ProcessProvider};
pub use properties::{Invalid, validate_catalog, validate_cluster, validate_use};
pub use shared_servers::{Chosen, SharedCompute};
pub use simulation::SimCompute;
pub use static_servers::{Places, StaticConfig, StaticProvider};

use async_trait::async_trait;
use futures::stream::BoxStream;
use session_core::machine::Observation;
use session_core::{Catalog, Cluster, ClusterName, SessionKey};
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
