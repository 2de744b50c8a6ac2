//! Pools of compute without sessions: passes the wanted pools to the providers, and
//! their figures to the metrics.
//!
//! Every manager claims compute from pools. The one that holds the lease also
//! refills and drains them; the provider stops that itself when the lease ends.

use crate::definitions::DefinitionStore;
use crate::metrics::Metrics;
use crate::providers::registry::Providers;
use compute::warm_pools::{PoolUse, WarmPool, WarmPoolStatus};
use session_core::{Cluster, ClusterStatus, Provider};
use session_store::{Error, SessionStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LEASE: &str = "warm-pools";
const LEASE_TERM: Duration = Duration::from_secs(15);
/// Time between two passes: changed definitions take effect within this time.
const PASS_INTERVAL: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct WarmPoolFeed {
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    computes: Providers,
    metrics: Arc<Metrics>,
    /// Owner of the lease: this process.
    owner: String,
}

impl WarmPoolFeed {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        definitions: DefinitionStore,
        computes: Providers,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            definitions,
            computes,
            metrics,
            owner: format!("{:032x}", rand::random::<u128>()),
        }
    }

    /// Runs passes until `stop`. Ends at once without a provider that has pools.
    pub(crate) async fn run(self, stop: CancellationToken) {
        if self.computes.warm_pools().next().is_none() {
            return;
        }
        let mut warned = false;
        loop {
            match self.pass().await {
                Ok(()) => warned = false,
                Err(error) if warned => tracing::debug!(%error, "reading warm pools failed"),
                Err(error) => {
                    warned = true;
                    tracing::warn!(%error, "reading warm pools failed; pools are not refilled");
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PASS_INTERVAL) => {}
            }
        }
        if let Err(error) = self.store.release_lease(LEASE, &self.owner).await {
            tracing::info!(%error, "releasing the lease of warm pools failed; it expires");
        }
    }

    async fn pass(&self) -> Result<(), Error> {
        self.measure();
        // Counted from before the request, so that it ends here before it ends in the store.
        let until = Instant::now() + LEASE_TERM;
        let lease = self.store.acquire_lease(LEASE, &self.owner, LEASE_TERM).await?;
        let wanted = self.wanted().await?;
        let refill_for = match lease {
            Some(_) => until.saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        };
        for pools in self.computes.warm_pools() {
            pools.set(wanted.clone(), refill_for);
        }
        Ok(())
    }

    /// The pools of all clusters that accept sessions. A catalog that does not exist
    /// has none.
    async fn wanted(&self) -> Result<Vec<WarmPool>, Error> {
        let mut wanted = Vec::new();
        for cluster in self.definitions.all::<Cluster>().await? {
            let Provider::Kubernetes(pods) = &cluster.provider else {
                continue;
            };
            if cluster.status != ClusterStatus::Active || pods.warm_pods == 0 {
                continue;
            }
            let size = usize::try_from(pods.warm_pods).unwrap_or(usize::MAX);
            if pods.warm_catalogs.is_empty() {
                wanted.push(WarmPool {
                    cluster: cluster.clone(),
                    catalog: None,
                    size,
                });
            }
            for name in &pods.warm_catalogs {
                let Some((Ok(org), Ok(catalog))) = name
                    .split_once('/')
                    .map(|(org, name)| (org.parse(), name.parse()))
                else {
                    continue;
                };
                match self.definitions.catalog(&org, &catalog).await? {
                    Some(catalog) => wanted.push(WarmPool {
                        cluster: cluster.clone(),
                        catalog: Some(catalog),
                        size,
                    }),
                    None => {
                        tracing::debug!(cluster = %cluster.name, catalog = name, "catalog of a warm pool does not exist");
                    }
                }
            }
        }
        Ok(wanted)
    }

    fn measure(&self) {
        let mut all: Vec<WarmPoolStatus> = Vec::new();
        for pools in self.computes.warm_pools() {
            all.extend(pools.status());
            for one in pools.take_uses() {
                match one {
                    PoolUse::Hit(time) => self.metrics.pool_hit(time),
                    PoolUse::Empty => self.metrics.pool_empty(),
                    PoolUse::Different => self.metrics.pool_different(),
                }
            }
        }
        self.metrics.pools(
            all.iter().map(|pool| pool.available).sum(),
            all.iter().map(|pool| pool.starting).sum(),
            all.iter().filter(|pool| pool.stopped.is_some()).count(),
            all.iter().filter_map(|pool| pool.oldest).max(),
        );
    }
}
