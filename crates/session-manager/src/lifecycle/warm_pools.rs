//! Pools of compute without sessions: passes the wanted pools to the providers, and
//! their figures to the metrics.
//!
//! Every manager claims compute from pools. The one that holds the lease also
//! refills and drains them; the provider stops that itself when the lease ends.

use crate::definitions::DefinitionStore;
use crate::metrics::Metrics;
use crate::providers::registry::Providers;
use compute::warm_pools::{PoolUse, WarmPool, WarmPoolStatus};
use session_core::{Catalog, Cluster, ClusterName, ClusterStatus, ProfileName, Provider};
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
            let sizes = sizes(&cluster);
            let Provider::Kubernetes(pods) = &cluster.provider else {
                continue;
            };
            if cluster.status != ClusterStatus::Active || sizes.is_empty() {
                continue;
            }
            let catalogs = if pods.warm_catalogs.is_empty() {
                vec![None]
            } else {
                self.catalogs(&cluster.name, &pods.warm_catalogs).await?
            };
            for (sized, size) in sizes {
                wanted.extend(catalogs.iter().map(|catalog| WarmPool {
                    cluster: sized.clone(),
                    catalog: catalog.clone(),
                    size,
                }));
            }
        }
        Ok(wanted)
    }

    /// Those of the catalogs, as `org/catalog`, that exist.
    async fn catalogs(&self, cluster: &ClusterName, names: &[String]) -> Result<Vec<Option<Catalog>>, Error> {
        let mut found = Vec::new();
        for name in names {
            let Some((Ok(org), Ok(catalog))) = name
                .split_once('/')
                .map(|(org, name)| (org.parse(), name.parse()))
            else {
                continue;
            };
            match self.definitions.catalog(&org, &catalog).await? {
                Some(catalog) => found.push(Some(catalog)),
                None => tracing::debug!(%cluster, catalog = name, "catalog of a warm pool does not exist"),
            }
        }
        Ok(found)
    }

    /// Passes the figures of the pools to the metrics.
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
        self.metrics.pools(&all);
    }
}

/// The cluster in the size of each profile that has warm pods, and their number.
fn sizes(cluster: &Cluster) -> Vec<(Cluster, usize)> {
    let names = cluster.profiles().keys();
    let mut profiles: Vec<Option<ProfileName>> =
        names.filter_map(|name| name.parse().ok().map(Some)).collect();
    if cluster.profiles().is_empty() {
        profiles.push(None);
    }
    let sized = profiles
        .iter()
        .filter_map(|profile| cluster.with_profile(profile.as_ref()).ok());
    sized
        .filter_map(|cluster| match &cluster.provider {
            Provider::Kubernetes(pods) if pods.warm_pods > 0 => {
                let size = usize::try_from(pods.warm_pods).unwrap_or(usize::MAX);
                Some((cluster, size))
            }
            Provider::Kubernetes(_) | Provider::Static { .. } | Provider::Process { .. } => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, NOW};
    use async_trait::async_trait;
    use compute::{
        Capabilities, ComputeChanged, ComputeProvider, ComputeSpec, Error as ComputeError, Found,
        ProviderRegistry, WarmPools,
    };
    use futures::stream::BoxStream;
    use parking_lot::Mutex;
    use service_kit::metrics::Registry;
    use session_core::machine::Observation;
    use session_core::time::ManualClock;
    use session_core::{KubernetesPods, Profile, ProviderKind};
    use session_store::memory::MemoryStore;

    /// Notes what it is given; it has one pool.
    #[derive(Debug, Default)]
    struct Recorder {
        calls: Mutex<Vec<(Vec<String>, Duration)>>,
    }

    impl WarmPools for Recorder {
        fn set(&self, pools: Vec<WarmPool>, refill_for: Duration) {
            let names = pools.iter().map(|pool| {
                let (profile, catalog) = (pool.profile_name(), pool.catalog_name());
                format!("{}/{profile} {catalog} {}", pool.cluster.name, pool.size)
            });
            self.calls.lock().push((names.collect(), refill_for));
        }

        fn status(&self) -> Vec<WarmPoolStatus> {
            let pool = |profile: &str, catalog: &str, available| WarmPoolStatus {
                cluster: "warm".parse().unwrap(),
                profile: profile.to_owned(),
                catalog: catalog.to_owned(),
                available,
                starting: 1,
                oldest: Some(Duration::from_secs(30 * available as u64)),
                stopped: (profile == "large").then(|| "no room".to_owned()),
            };
            vec![
                pool("small", "acme/lake", 2),
                pool("small", "acme/pond", 3),
                pool("large", "", 1),
            ]
        }

        fn take_uses(&self) -> Vec<PoolUse> {
            vec![
                PoolUse::Hit(Duration::from_millis(20)),
                PoolUse::Empty,
                PoolUse::Different,
            ]
        }
    }

    #[async_trait]
    impl ComputeProvider for Recorder {
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
        fn warm_pools(&self) -> Option<&dyn WarmPools> {
            Some(self)
        }
        async fn ensure(&self, _: &ComputeSpec) -> Result<(), ComputeError> {
            Ok(())
        }
        async fn observe(&self, _: &ComputeSpec) -> Result<Observation, ComputeError> {
            Ok(Observation::Missing)
        }
        async fn release(&self, _: &ComputeSpec) -> Result<(), ComputeError> {
            Ok(())
        }
        async fn inventory(&self) -> Result<Vec<Found>, ComputeError> {
            Ok(Vec::new())
        }
        fn watch(&self) -> BoxStream<'static, ComputeChanged> {
            Box::pin(futures::stream::pending())
        }
    }

    fn feed(store: &Arc<MemoryStore>, registry: &Registry) -> (WarmPoolFeed, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let providers =
            ProviderRegistry::default().with(ProviderKind::Kubernetes, Arc::clone(&recorder) as _);
        let store: Arc<dyn SessionStore> = Arc::clone(store) as _;
        let definitions = DefinitionStore::new(Arc::clone(&store));
        let metrics = Arc::new(Metrics::new(registry));
        let feed = WarmPoolFeed::new(store, definitions, Providers::new(providers), metrics);
        (feed, recorder)
    }

    fn cluster(name: &str, status: ClusterStatus, warm_pods: u32, catalogs: &[&str]) -> Cluster {
        Cluster {
            name: name.parse().unwrap(),
            status,
            provider: Provider::Kubernetes(Box::new(KubernetesPods {
                warm_pods,
                warm_catalogs: catalogs.iter().map(|name| (*name).to_owned()).collect(),
                ..KubernetesPods::default()
            })),
            ..fixtures::cluster()
        }
    }

    #[tokio::test]
    async fn active_clusters_have_pools_and_one_manager_refills_them() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        for cluster in [
            cluster("warm", ClusterStatus::Active, 3, &[]),
            cluster("draining", ClusterStatus::Draining, 3, &[]),
            cluster("destroyed", ClusterStatus::Destroyed, 3, &[]),
            cluster("without", ClusterStatus::Active, 0, &[]),
            cluster("catalogs", ClusterStatus::Active, 2, &["acme/not-there"]),
        ] {
            fixtures::define(&store, &cluster).await;
        }
        let registry = Registry::new();
        let (first, seen_by_first) = feed(&store, &registry);
        let (second, seen_by_second) = feed(&store, &Registry::new());
        first.pass().await.unwrap();
        second.pass().await.unwrap();
        let (pools, refill_for) = seen_by_first.calls.lock()[0].clone();
        assert_eq!(pools, ["warm/  3"]);
        assert!(refill_for > Duration::from_secs(10), "{refill_for:?}");
        let (pools, refill_for) = seen_by_second.calls.lock()[0].clone();
        assert_eq!((pools, refill_for), (vec!["warm/  3".to_owned()], Duration::ZERO));
        // The next manager takes over when the first has stopped.
        let stop = CancellationToken::new();
        stop.cancel();
        first.run(stop).await;
        second.pass().await.unwrap();
        assert!(seen_by_second.calls.lock()[1].1 > Duration::ZERO);

        let text = registry.render();
        for line in [
            "session_manager_warm_pool_starts_total{outcome=\"hit\"} 2",
            "session_manager_warm_pool_starts_total{outcome=\"empty\"} 2",
            "session_manager_warm_pool_pods{cluster=\"warm\",profile=\"small\",state=\"available\"} 5",
            "session_manager_warm_pool_pods{cluster=\"warm\",profile=\"small\",state=\"starting\"} 2",
            "session_manager_warm_pool_pods{cluster=\"warm\",profile=\"large\",state=\"available\"} 1",
            "session_manager_warm_pools_stopped{cluster=\"warm\",profile=\"small\"} 0",
            "session_manager_warm_pools_stopped{cluster=\"warm\",profile=\"large\"} 1",
            "session_manager_warm_pool_oldest_seconds{cluster=\"warm\",profile=\"small\"} 90",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
    }

    #[tokio::test]
    async fn each_profile_with_warm_pods_has_its_pools() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let mut sized = cluster("sized", ClusterStatus::Active, 3, &[]);
        let Provider::Kubernetes(pods) = &mut sized.provider else {
            panic!("not kubernetes");
        };
        let profile = |warm_pods, default| Profile {
            warm_pods,
            default,
            ..Profile::default()
        };
        pods.profiles = [
            ("large", profile(1, false)),
            ("medium", profile(0, false)),
            ("small", profile(0, true)),
        ]
        .map(|(name, profile)| (name.to_owned(), profile))
        .into();
        fixtures::define(&store, &sized).await;
        let (feed, seen) = feed(&store, &Registry::new());
        feed.pass().await.unwrap();
        assert_eq!(seen.calls.lock()[0].0, ["sized/large  1", "sized/small  3"]);
    }
}
