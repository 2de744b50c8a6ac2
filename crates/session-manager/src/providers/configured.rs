//! The configuration section `[compute]` and the providers that it enables. A new
//! provider adds its section and its construction here.

use super::installation;
use super::leader_lease::LeasedProvider;
use super::registry::{Providers, StorePlacements};
use anyhow::{Context, Result};
use compute::{AllowList, ComputeProvider, ProcessConfig, ProviderRegistry};
use serde::{Deserialize, Serialize};
use service_kit::config::{Problems, Validate};
use session_core::policy::{PolicyRequest, SessionPolicy};
use session_core::{Cluster, ProviderKind};
use session_store::SessionStore;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Compute providers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// Existing servers.
    pub r#static: StaticConfig,
    /// Child processes; disabled unless set.
    pub process: Option<ProcessSettings>,
}

/// Permitted endpoints of static clusters.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaticConfig {
    /// Networks (`10.0.0.0/8`), addresses and host names (`*.spark.internal`).
    pub allow: Vec<String>,
    /// Permit loopback and link-local addresses and Berth's own ports, for development.
    pub dev: bool,
}

/// Child processes on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSettings {
    /// Folder of the sessions' files; this manager alone uses it.
    pub state_dir: PathBuf,
    /// Maximum number of children.
    #[serde(default = "max_children")]
    pub max_children: usize,
    /// Maximum number of children that are starting.
    #[serde(default = "max_starting")]
    pub max_starting: usize,
    /// Permit several organizations, or a public port beyond loopback, although all
    /// children run as one user.
    #[serde(default)]
    pub trust_all_users: bool,
}

fn max_children() -> usize {
    64
}

fn max_starting() -> usize {
    4
}

impl Validate for ComputeConfig {
    fn validate(&self, problems: &mut Problems) {
        if let Err(invalid) = self.allow_list([]) {
            problems.add("static.allow", invalid);
        }
        if let Some(process) = &self.process {
            for (key, limit) in [
                ("process.max_children", process.max_children),
                ("process.max_starting", process.max_starting),
            ] {
                problems.require(limit > 0, key, "must not be 0");
            }
        }
    }
}

impl ComputeConfig {
    /// The reason why a provider is disabled, if it is.
    fn disabled_reason(&self, kind: ProviderKind) -> Option<&'static str> {
        match kind {
            ProviderKind::Static => None,
            ProviderKind::Process => self
                .process
                .is_none()
                .then_some("the process provider is off: set compute.process.state_dir"),
        }
    }

    /// Checks a cluster definition.
    ///
    /// # Errors
    /// All problems, as text.
    pub fn check_cluster(&self, cluster: &Cluster) -> Result<(), String> {
        let mut problems = Vec::new();
        if let Err(bounds) = SessionPolicy::resolve(cluster, &PolicyRequest::default()) {
            problems.push(bounds.to_string());
        }
        if let Err(invalid) = compute::validate_cluster(cluster) {
            problems.push(invalid.to_string());
        }
        problems.extend(self.disabled_reason(cluster.provider.kind()).map(str::to_owned));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        }
    }

    /// The permitted addresses of static endpoints, given Berth's own ports.
    fn allow_list(&self, own_ports: impl IntoIterator<Item = u16>) -> Result<AllowList, String> {
        let servers = &self.r#static;
        AllowList::new(servers.allow.iter().map(String::as_str), own_ports, servers.dev).map_err(|invalid| {
            invalid
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        })
    }

    /// Creates the providers that the configuration enables.
    ///
    /// # Errors
    /// If a provider cannot work on this machine, or the store is unavailable.
    pub(crate) async fn open(
        &self,
        store: &Arc<dyn SessionStore>,
        own_ports: impl IntoIterator<Item = u16>,
        stop: &CancellationToken,
    ) -> Result<Providers> {
        let allow = self
            .allow_list(own_ports)
            .map_err(anyhow::Error::msg)
            .context("compute.static.allow")?;
        let servers = compute::StaticProvider::new(
            compute::StaticConfig {
                allow: Arc::new(allow),
                tls: None,
            },
            Arc::new(StorePlacements {
                store: Arc::clone(store),
            }),
        );
        let mut registry = ProviderRegistry::default().with(ProviderKind::Static, Arc::new(servers));
        if let Some(settings) = &self.process {
            let provider = compute::ProcessProvider::new(ProcessConfig {
                max_children: settings.max_children,
                max_starting: settings.max_starting,
                trust_all_users: settings.trust_all_users,
                install_id: installation::id(store).await.context("store.url")?,
                host: Some(service_kit::host::id().to_owned()),
                ..ProcessConfig::new(&settings.state_dir)
            });
            let provider = provider.context("compute.process")?;
            let provider = leased_if_needed(provider, store, &settings.state_dir, stop).await;
            registry = registry.with(ProviderKind::Process, provider);
        }
        Ok(Providers::new(registry))
    }
}

/// The provider, restricted to the leader if it requires one.
async fn leased_if_needed(
    provider: impl ComputeProvider,
    store: &Arc<dyn SessionStore>,
    state_dir: &Path,
    stop: &CancellationToken,
) -> Arc<dyn ComputeProvider> {
    if !provider.capabilities().needs_leader {
        return Arc::new(provider);
    }
    LeasedProvider::new(provider, Arc::clone(store), state_dir, stop.clone()).await
}
