//! The providers by cluster, and the places on shared servers, kept in the store.

use async_trait::async_trait;
use compute::address::AddressError;
use compute::connector::Target;
use compute::{
    ComputeChanged, ComputeProvider, ComputeSpec, DefinitionError, Found, Placements, ProviderRegistry,
    SharedCompute, WarmPools,
};
use futures::stream::BoxStream;
use service_kit::host;
use session_core::machine::{Cause, Observation};
use session_core::{Cluster, Route, SessionKey};
use session_store::SessionStore;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Time limit of a request to a provider.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The providers of this manager, with a time limit on each request.
#[derive(Debug, Clone)]
pub struct Providers {
    providers: ProviderRegistry,
}

impl Providers {
    /// The registry of the enabled providers.
    pub fn new(providers: ProviderRegistry) -> Self {
        Self { providers }
    }

    /// The provider of a cluster whose servers are shared.
    ///
    /// # Errors
    /// [`compute::Error::WrongProvider`] if its compute is dedicated.
    pub(crate) fn shared(&self, cluster: &Cluster) -> Result<&dyn SharedCompute, compute::Error> {
        self.providers.shared(cluster)
    }

    /// The connection target of a route's compute.
    ///
    /// # Errors
    /// Why it is not reachable from here.
    pub(crate) fn target(&self, cluster: &Cluster, route: &Route) -> Result<Target, Cause> {
        if !cluster.provider.is_dedicated() {
            let shared = self
                .shared(cluster)
                .map_err(|error| Cause::from(error.to_string()))?;
            return shared.target_at(cluster, &route.endpoint);
        }
        if is_on_another_host(route, host::id()) {
            return Err("the session's compute runs on another host".into());
        }
        Ok(Target::dedicated(route))
    }

    /// The addresses that proxies may dial for a route, resolved and checked now. A
    /// route does not name its provider, so the first shared provider checks it.
    ///
    /// # Errors
    /// Why the endpoint is not permitted.
    pub(crate) async fn addresses(&self, route: &Route) -> Result<Arc<[SocketAddr]>, AddressError> {
        let mut shared = self.providers.iter().filter_map(ComputeProvider::shared);
        if let (false, Some(shared)) = (route.dedicated, shared.next()) {
            return shared.addresses(&route.endpoint).await;
        }
        // Dedicated compute has an address that its provider chose.
        let address = route.endpoint.parse();
        let address = address.map_err(|_| AddressError::Malformed(route.endpoint.clone()))?;
        Ok(Arc::new([address]))
    }

    /// The fencing number for decisions from observations of now; 0 if the
    /// provider of the cluster needs no leader.
    pub(crate) fn fence(&self, cluster: Option<&Cluster>) -> u64 {
        match cluster {
            Some(cluster) => self.providers.of(cluster).map_or(0, ComputeProvider::fence),
            None => self
                .providers
                .iter()
                .map(ComputeProvider::fence)
                .max()
                .unwrap_or(0),
        }
    }

    /// Whether the provider of the cluster is enabled.
    pub(crate) fn supports(&self, cluster: &Cluster) -> bool {
        self.providers.of(cluster).is_ok()
    }

    /// Whether compute of this cluster ends with its manager, without an event.
    pub(crate) fn dies_with_manager(&self, cluster: &Cluster) -> bool {
        let provider = self.providers.of(cluster);
        provider.is_ok_and(|provider| provider.capabilities().dies_with_manager)
    }

    /// Asks the platform of a cluster whether it would create its compute.
    ///
    /// # Errors
    /// Why the cluster cannot be defined.
    pub(crate) async fn try_cluster(&self, cluster: &Cluster) -> Result<(), DefinitionError> {
        let unavailable = |error: compute::Error| DefinitionError::Unavailable(error.to_string());
        let provider = self.providers.of(cluster).map_err(unavailable)?;
        tokio::time::timeout(REQUEST_TIMEOUT, provider.try_cluster(cluster))
            .await
            .unwrap_or_else(|_| {
                let text = "the provider did not answer in time".to_owned();
                Err(DefinitionError::Unavailable(text))
            })
    }

    pub(crate) async fn ensure(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
        bounded(self.providers.of(&spec.cluster)?.ensure(spec)).await
    }

    /// Observes compute. [`Observation::Missing`] makes the session start new
    /// compute, so it must come from the provider itself; without that provider
    /// this is an error.
    pub(crate) async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, compute::Error> {
        bounded(self.providers.of(&spec.cluster)?.observe(spec)).await
    }

    pub(crate) async fn release(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
        bounded(self.providers.of(&spec.cluster)?.release(spec)).await
    }

    /// The sessions with compute on this manager's machine; none if this manager is
    /// not the leader.
    pub(crate) async fn local(&self) -> Option<HashSet<SessionKey>> {
        let mut all: Option<HashSet<_>> = None;
        for provider in self.providers.iter() {
            if provider.capabilities().dies_with_manager {
                let found = bounded(provider.inventory()).await.ok()?;
                let keys = found.into_iter().map(|found| found.key);
                all.get_or_insert_default().extend(keys);
            }
        }
        all
    }

    /// All compute of those providers that can list it now.
    pub(crate) async fn inventory(&self) -> Vec<Found> {
        let mut all = Vec::new();
        for provider in self.providers.iter() {
            match bounded(provider.inventory()).await {
                Ok(found) => all.extend(found),
                // Another manager is the leader, or the provider is unavailable.
                Err(error) => tracing::debug!(%error, "listing compute of a provider failed"),
            }
        }
        all
    }

    /// The providers that keep compute ready without sessions.
    pub(crate) fn warm_pools(&self) -> impl Iterator<Item = &dyn WarmPools> {
        self.providers.iter().filter_map(ComputeProvider::warm_pools)
    }

    pub(crate) fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.providers.watch()
    }
}

/// Whether the route is a loopback address of another host; here it would lead to
/// other compute.
pub(crate) fn is_on_another_host(route: &Route, here: &str) -> bool {
    route.host.as_deref().is_some_and(|host| host != here)
}

async fn bounded<T>(request: impl Future<Output = Result<T, compute::Error>>) -> Result<T, compute::Error> {
    tokio::time::timeout(REQUEST_TIMEOUT, request)
        .await
        .unwrap_or_else(|_| {
            Err(compute::Error::Unavailable(
                "the provider did not answer in time".into(),
            ))
        })
}

/// Placements on static servers, shared by all replicas.
#[derive(Debug)]
pub struct StorePlacements {
    /// The store with the placements.
    pub store: Arc<dyn SessionStore>,
}

fn unavailable(error: session_store::Error) -> compute::Error {
    compute::Error::Unavailable(error.to_string())
}

#[async_trait]
impl Placements for StorePlacements {
    async fn place(
        &self,
        servers: &[String],
        key: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, compute::Error> {
        let placed = self.store.place_session(servers, key, org_alone).await;
        placed.map_err(unavailable)
    }

    async fn remove(&self, server: &str, key: &SessionKey) -> Result<(), compute::Error> {
        self.store
            .remove_placement(server, key)
            .await
            .map_err(unavailable)
    }

    async fn list(&self, key: &SessionKey) -> Result<Vec<String>, compute::Error> {
        self.store.list_placements(key).await.map_err(unavailable)
    }
}
