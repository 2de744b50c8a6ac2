//! Compute that is kept ready without a session, so that a session starts without
//! waiting for its engine.
//!
//! A pool belongs to one start configuration: the definition of a cluster in the size
//! of one profile, and the default catalog whose settings the engine reads at its start. A session claims
//! compute of the pool that has exactly its own configuration, or starts cold.

use session_core::{Catalog, Cluster, ClusterName, ProfileName, Provider};
use std::time::Duration;

/// One pool that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmPool {
    /// The cluster in the size of the pool's profile ([`Cluster::with_profile`]).
    pub cluster: Cluster,
    /// The default catalog of the sessions.
    pub catalog: Option<Catalog>,
    /// Computes to keep ready; at least 1.
    pub size: usize,
}

impl WarmPool {
    /// The catalog as `org/catalog`; empty without one.
    pub fn catalog_name(&self) -> String {
        let catalog = self.catalog.as_ref();
        catalog.map_or_else(String::new, |catalog| format!("{}/{}", catalog.org, catalog.name))
    }

    /// The name of the profile; empty if the cluster has no profiles.
    pub fn profile_name(&self) -> &str {
        match &self.cluster.provider {
            Provider::Kubernetes(pods) => pods.profile.as_ref().map_or("", ProfileName::as_str),
            Provider::Static { .. } | Provider::Process { .. } => "",
        }
    }
}

/// One pool as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmPoolStatus {
    /// The cluster.
    pub cluster: ClusterName,
    /// The profile; empty if the cluster has no profiles.
    pub profile: String,
    /// The default catalog, as `org/catalog`; empty without one.
    pub catalog: String,
    /// Computes that can be claimed.
    pub available: usize,
    /// Computes that did not answer yet.
    pub starting: usize,
    /// Age of the oldest that can be claimed.
    pub oldest: Option<Duration>,
    /// Why this process does not refill the pool, if starts failed repeatedly.
    pub stopped: Option<String>,
}

/// How a start of a session's compute used the pools of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolUse {
    /// It claimed compute, in this time.
    Hit(Duration),
    /// The pool was empty.
    Empty,
    /// No pool of the cluster has the start configuration of the session.
    Different,
}

/// A provider with pools.
pub trait WarmPools: Send + Sync {
    /// Replaces the wanted pools. Compute of any other pool is deleted. Compute is
    /// created and deleted only during the next `refill_for`, which is 0 on a process
    /// that does not hold the lease of the pools. Nothing is deleted before the first
    /// call.
    fn set(&self, pools: Vec<WarmPool>, refill_for: Duration);

    /// The wanted pools.
    fn status(&self) -> Vec<WarmPoolStatus>;

    /// Removes and returns what happened since the last call; the newest 10 000.
    fn take_uses(&self) -> Vec<PoolUse>;
}
