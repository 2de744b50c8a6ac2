//! The providers of one manager by kind.

use crate::{ComputeChanged, ComputeProvider, Error, SharedCompute};
use futures::StreamExt;
use futures::stream::BoxStream;
use session_core::{Cluster, ProviderKind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The providers that a manager runs. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct ProviderRegistry {
    providers: BTreeMap<ProviderKind, Arc<dyn ComputeProvider>>,
}

impl ProviderRegistry {
    /// Adds a provider.
    #[must_use]
    pub fn with(mut self, kind: ProviderKind, provider: Arc<dyn ComputeProvider>) -> Self {
        self.providers.insert(kind, provider);
        self
    }

    /// Returns the provider of a kind, if this manager runs it.
    pub fn get(&self, kind: ProviderKind) -> Option<&dyn ComputeProvider> {
        self.providers.get(&kind).map(|provider| &**provider)
    }

    /// Returns the provider of a cluster.
    ///
    /// # Errors
    /// [`Error::NotLeader`] if this manager does not run it.
    pub fn of(&self, cluster: &Cluster) -> Result<&dyn ComputeProvider, Error> {
        let kind = cluster.provider.kind();
        self.get(kind).ok_or_else(|| {
            Error::NotLeader(format!(
                "the {kind} provider is off: set compute.{kind} in the configuration"
            ))
        })
    }

    /// Returns the provider of a cluster with shared servers.
    ///
    /// # Errors
    /// [`Error::WrongProvider`] if compute of this cluster is dedicated.
    pub fn shared(&self, cluster: &Cluster) -> Result<&dyn SharedCompute, Error> {
        self.of(cluster)?
            .shared()
            .ok_or_else(|| Error::WrongProvider(cluster.name.to_string()))
    }

    /// All providers.
    pub fn iter(&self) -> impl Iterator<Item = &dyn ComputeProvider> {
        self.providers.values().map(|provider| &**provider)
    }

    /// Changes of all providers.
    pub fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        futures::stream::select_all(self.iter().map(ComputeProvider::watch)).boxed()
    }
}
