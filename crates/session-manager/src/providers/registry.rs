//! The providers by cluster, and the places on shared servers kept in the store.

use async_trait::async_trait;
use compute::address::AddressError;
use compute::connector::Target;
use compute::{ComputeChanged, ComputeProvider, ComputeSpec, Found, Places, SharedCompute};
use futures::StreamExt;
use futures::stream::BoxStream;
use service_kit::host;
use session_core::machine::{Cause, Observation};
use session_core::{Cluster, Provider, Route, SessionKey};
use session_store::SessionStore;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// No question to a provider may take longer.
const ASK: Duration = Duration::from_secs(10);

/// Every provider that this manager runs.
#[derive(Debug, Clone)]
pub struct Providers {
    fixed: Arc<dyn SharedCompute>,
    process: Option<Arc<dyn ComputeProvider>>,
}

impl Providers {
    /// `process` is absent where the configuration does not allow it.
    pub fn new(fixed: Arc<dyn SharedCompute>, process: Option<Arc<dyn ComputeProvider>>) -> Self {
        Self { fixed, process }
    }

    fn of(&self, spec: &ComputeSpec) -> Result<&dyn ComputeProvider, compute::Error> {
        match &spec.cluster.provider {
            Provider::Static { .. } => Ok(&*self.fixed),
            Provider::Process { .. } => self.process.as_deref().ok_or_else(|| {
                compute::Error::NotLeader(
                    "the process provider is off: set compute.process in the configuration".into(),
                )
            }),
        }
    }

    /// The provider whose servers are shared.
    pub(crate) fn shared(&self) -> &dyn SharedCompute {
        &*self.fixed
    }

    /// How to speak to the compute that a route leads to.
    pub(crate) fn target(&self, cluster: &Cluster, route: &Route) -> Result<Target, Cause> {
        match &cluster.provider {
            Provider::Static { .. } => self.fixed.target_at(cluster, &route.endpoint),
            Provider::Process { .. } if is_on_another_host(route, host::id()) => {
                Err("the session's compute runs on another host".into())
            }
            Provider::Process { .. } => Ok(Target::dedicated(route)),
        }
    }

    /// What proxies may dial to reach the compute of a route, checked now.
    ///
    /// # Errors
    /// Why it may not be dialled.
    pub(crate) async fn addresses(&self, route: &Route) -> Result<Arc<[SocketAddr]>, AddressError> {
        if !route.dedicated {
            return self.fixed.addresses(&route.endpoint).await;
        }
        // Ours, at an address that its provider chose.
        let address = route.endpoint.parse();
        let address = address.map_err(|_| AddressError::Malformed(route.endpoint.clone()))?;
        Ok(Arc::new([address]))
    }

    /// The number that what is observed now is decided with.
    pub(crate) fn fence(&self) -> u64 {
        self.process.as_ref().map_or(0, |process| process.fence())
    }

    /// May clusters of this provider be defined here?
    pub(crate) fn supports(&self, provider: &Provider) -> bool {
        match provider {
            Provider::Static { .. } => true,
            Provider::Process { .. } => self.process.is_some(),
        }
    }

    pub(crate) async fn ensure(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
        bounded(self.of(spec)?.ensure(spec)).await
    }

    /// What there is of compute. "Missing" has its session make new compute, so
    /// only a provider that can see all of it may say so; a manager without that
    /// provider cannot tell, which is an error.
    pub(crate) async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, compute::Error> {
        bounded(self.of(spec)?.observe(spec)).await
    }

    pub(crate) async fn release(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
        bounded(self.of(spec)?.release(spec)).await
    }

    /// The sessions that have compute on this manager's machine; none if that is
    /// another manager's to tell.
    pub(crate) async fn local(&self) -> Option<HashSet<SessionKey>> {
        let provider = self.process.as_ref()?;
        let found = bounded(provider.inventory()).await.ok()?;
        Some(found.into_iter().map(|found| found.key).collect())
    }

    /// All compute of those providers that can tell now.
    pub(crate) async fn inventory(&self) -> Vec<Found> {
        let mut all = Vec::new();
        for provider in self.process.iter() {
            match bounded(provider.inventory()).await {
                Ok(found) => all.extend(found),
                // Another manager's turn, or it is away: what it has is not known.
                Err(error) => tracing::debug!(%error, "a provider cannot tell what it has"),
            }
        }
        all
    }

    pub(crate) fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        let mut watches = vec![self.fixed.watch()];
        watches.extend(self.process.iter().map(|process| process.watch()));
        futures::stream::select_all(watches).boxed()
    }
}

/// Is this a loopback address of another host? There it is somebody else's.
pub(crate) fn is_on_another_host(route: &Route, here: &str) -> bool {
    route.host.as_deref().is_some_and(|host| host != here)
}

async fn bounded<T>(ask: impl Future<Output = Result<T, compute::Error>>) -> Result<T, compute::Error> {
    tokio::time::timeout(ASK, ask).await.unwrap_or_else(|_| {
        Err(compute::Error::Unavailable(
            "the provider did not answer in time".into(),
        ))
    })
}

/// Places on static endpoints, the same for all replicas.
#[derive(Debug)]
pub struct StorePlaces {
    /// The store that records the places.
    pub store: Arc<dyn SessionStore>,
}

fn unavailable(error: session_store::Error) -> compute::Error {
    compute::Error::Unavailable(error.to_string())
}

#[async_trait]
impl Places for StorePlaces {
    async fn take(
        &self,
        servers: &[String],
        key: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, compute::Error> {
        let taken = self.store.take_place(servers, key, org_alone).await;
        taken.map_err(unavailable)
    }

    async fn leave(&self, server: &str, key: &SessionKey) -> Result<(), compute::Error> {
        self.store.leave_place(server, key).await.map_err(unavailable)
    }

    async fn of(&self, key: &SessionKey) -> Result<Vec<String>, compute::Error> {
        self.store.places_of(key).await.map_err(unavailable)
    }
}
