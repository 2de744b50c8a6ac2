//! The configuration section `[compute]` and the providers that it enables. A new
//! provider adds its section and its construction here.

use super::installation::{self, Installation};
use super::leader_lease::LeasedProvider;
use super::registry::{Providers, StorePlacements};
use anyhow::{Context, Result};
use compute::properties::Problem;
use compute::{
    AllowList, ComputeProvider, Invalid, KubernetesConfig, KubernetesProvider, ProcessConfig,
    ProviderRegistry,
};
use serde::{Deserialize, Serialize};
use service_kit::config::{Problems, Validate, duration};
use session_core::policy::{PolicyRequest, SessionPolicy};
use session_core::{Cluster, Provider, ProviderKind};
use session_store::SessionStore;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Compute providers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// Existing servers.
    pub r#static: StaticConfig,
    /// Child processes; disabled unless set.
    pub process: Option<ProcessSettings>,
    /// Kubernetes pods; off unless set.
    pub kubernetes: Option<KubernetesSettings>,
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

/// Pods of one Kubernetes cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSettings {
    /// Namespaces that clusters may name.
    pub namespaces: Vec<String>,
    /// Path of the kubeconfig file; empty means the service account of the pod
    /// in which session-manager runs.
    #[serde(default)]
    pub kubeconfig: PathBuf,
    /// Name of a ConfigMap in each of these namespaces that owns the pods, so
    /// that Kubernetes deletes them with it; empty means none.
    #[serde(default)]
    pub anchor: String,
    /// Limit on the pods of this installation.
    #[serde(default = "max_pods")]
    pub max_pods: usize,
    /// Limit on the pods that this manager starts at a time.
    #[serde(default = "max_starting_pods")]
    pub max_starting: usize,
    /// Age above which a warm pod is replaced; 0 means never, else at least
    /// 10 minutes.
    #[serde(default = "warm_pod_max_age", with = "duration")]
    pub warm_pod_max_age: Duration,
    /// Whether network policies deny everything in these namespaces; then each
    /// session with workers gets one that connects its pods.
    #[serde(default)]
    pub isolated: bool,
}

fn max_pods() -> usize {
    500
}

fn max_starting_pods() -> usize {
    32
}

fn warm_pod_max_age() -> Duration {
    Duration::from_secs(24 * 3600)
}

/// Pods that are replaced more often are hardly ever available.
const MIN_WARM_AGE: Duration = Duration::from_secs(600);

impl KubernetesSettings {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            !self.namespaces.is_empty(),
            "kubernetes.namespaces",
            "must name at least one namespace",
        );
        for namespace in &self.namespaces {
            problems.require(
                compute::kubernetes::is_namespace(namespace),
                "kubernetes.namespaces",
                "must be names of namespaces: DNS labels",
            );
        }
        problems.require(
            self.anchor.is_empty() || compute::kubernetes::is_object_name(&self.anchor),
            "kubernetes.anchor",
            "must be the name of a ConfigMap",
        );
        for (key, limit) in [
            ("kubernetes.max_pods", self.max_pods),
            ("kubernetes.max_starting", self.max_starting),
        ] {
            problems.require(limit > 0, key, "must not be 0");
        }
        problems.require(
            self.warm_pod_max_age.is_zero() || self.warm_pod_max_age >= MIN_WARM_AGE,
            "kubernetes.warm_pod_max_age",
            "must be 0s (no limit) or at least 10min",
        );
    }

    async fn provider(&self, installation: Installation) -> Result<KubernetesProvider> {
        let kubeconfig = Some(self.kubeconfig.as_path()).filter(|path| !path.as_os_str().is_empty());
        let client = compute::kubernetes::connect(kubeconfig).await?;
        let config = KubernetesConfig {
            namespaces: self.namespaces.clone(),
            anchor: Some(self.anchor.clone()).filter(|name| !name.is_empty()),
            max_pods: self.max_pods,
            max_starting: self.max_starting,
            warm_max_age: Some(self.warm_pod_max_age).filter(|age| !age.is_zero()),
            install_id: installation.id,
            pool_secret: installation.pool_secret,
            is_isolated: self.isolated,
        };
        Ok(KubernetesProvider::new(config, client))
    }
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
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.validate(problems);
        }
    }
}

fn problem(key: &str, problem: impl Into<String>) -> Problem {
    Problem {
        key: key.to_owned(),
        problem: problem.into(),
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
                .then_some("process is off: set compute.process.state_dir"),
            ProviderKind::Kubernetes => self
                .kubernetes
                .is_none()
                .then_some("kubernetes is off: set compute.kubernetes.namespaces"),
        }
    }

    /// The problem of a namespace that the settings do not allow.
    fn namespace_problem(&self, cluster: &Cluster) -> Option<Problem> {
        let (Provider::Kubernetes(pods), Some(settings)) = (&cluster.provider, &self.kubernetes) else {
            return None;
        };
        (!settings.namespaces.contains(&pods.namespace)).then(|| {
            problem(
                "namespace",
                format!(
                    "must be one of compute.kubernetes.namespaces ({})",
                    settings.namespaces.join(", ")
                ),
            )
        })
    }

    /// Checks a cluster definition.
    ///
    /// # Errors
    /// All problems, each with its field.
    pub fn check_cluster(&self, cluster: &Cluster) -> Result<(), Invalid> {
        let mut problems = Vec::new();
        if let Err(bounds) = SessionPolicy::resolve(cluster, &PolicyRequest::default()) {
            problems.push(problem(bounds.field, bounds.range()));
        }
        if let Err(invalid) = compute::validate_cluster(cluster) {
            problems.extend(invalid.problems);
        }
        let disabled = self.disabled_reason(cluster.provider.kind());
        problems.extend(disabled.map(|reason| problem("provider", reason)));
        problems.extend(self.namespace_problem(cluster));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Invalid { problems })
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
        if let Some(settings) = &self.kubernetes {
            let installation = installation::read(store).await.context("store.url")?;
            let provider = settings.provider(installation).await;
            let provider = provider.context("compute.kubernetes")?;
            registry = registry.with(ProviderKind::Kubernetes, Arc::new(provider));
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

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::Engine;
    use test_support::fixtures;

    type Edit = fn(&mut KubernetesSettings);

    fn settings(namespaces: &[&str]) -> KubernetesSettings {
        KubernetesSettings {
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            kubeconfig: PathBuf::new(),
            anchor: String::new(),
            max_pods: max_pods(),
            max_starting: max_starting_pods(),
            warm_pod_max_age: warm_pod_max_age(),
            isolated: false,
        }
    }

    fn pods_in(namespace: &str) -> Cluster {
        fixtures::cluster("pods", Engine::Sail, fixtures::pods(namespace))
    }

    #[test]
    fn pods_need_the_provider_and_a_namespace_of_its_list() {
        let off = ComputeConfig::default().check_cluster(&pods_in("a")).unwrap_err();
        let off = off.to_string();
        assert!(off.contains("set compute.kubernetes.namespaces"), "{off}");
        let on = ComputeConfig {
            kubernetes: Some(settings(&["a", "b"])),
            ..ComputeConfig::default()
        };
        assert_eq!(on.check_cluster(&pods_in("b")), Ok(()));
        let elsewhere = on.check_cluster(&pods_in("c")).unwrap_err();
        assert_eq!(
            elsewhere.to_string(),
            "namespace: must be one of compute.kubernetes.namespaces (a, b)"
        );
    }

    #[test]
    fn wrong_settings_of_pods_are_named() {
        let validated = |edit: Edit| {
            let mut settings = settings(&["sessions"]);
            edit(&mut settings);
            let mut problems = Problems::default();
            problems.check(
                "compute",
                &ComputeConfig {
                    kubernetes: Some(settings),
                    ..ComputeConfig::default()
                },
            );
            let found = problems.found().iter();
            found.map(|problem| problem.key.clone()).collect::<Vec<_>>()
        };
        assert_eq!(validated(|_| {}), Vec::<String>::new());
        assert_eq!(
            validated(|settings| settings.warm_pod_max_age = Duration::ZERO),
            Vec::<String>::new()
        );
        let cases: [(Edit, &str); 6] = [
            (
                |settings| settings.warm_pod_max_age = Duration::from_secs(599),
                "compute.kubernetes.warm_pod_max_age",
            ),
            (
                |settings| settings.namespaces.clear(),
                "compute.kubernetes.namespaces",
            ),
            (
                |settings| settings.namespaces[0] = "A".into(),
                "compute.kubernetes.namespaces",
            ),
            (
                |settings| settings.anchor = "a/b".into(),
                "compute.kubernetes.anchor",
            ),
            (|settings| settings.max_pods = 0, "compute.kubernetes.max_pods"),
            (
                |settings| settings.max_starting = 0,
                "compute.kubernetes.max_starting",
            ),
        ];
        for (edit, key) in cases {
            assert_eq!(validated(edit), [key]);
        }
    }
}
