//! One pod per session generation, in namespaces of one Kubernetes cluster.
//!
//! ```text
//! definition, size ─ what a cluster says  names, layout, pod ─ the objects made from it
//! template ─ merged over the pod          dry_run ─ asks the API server about it
//! starter ─ one task per start: create, wait, ask the engine
//! watcher ─ pods and events as they are   reasons, quota ─ what they mean, in words
//! works ─ what this manager started       api ─ the calls, bounded in time
//! pool ─ pods without a session           owners ─ pods that sessions claimed
//! distributed ─ engines whose driver creates worker pods
//! ```
//!
//! The pods are the truth: their names and labels make every call idempotent,
//! so any number of managers may run this provider, and one that restarts finds
//! what there is. "Missing" is only ever the API server's own answer, never that
//! of a watch, which may be behind.

mod api;
mod definition;
mod distributed;
mod dry_run;
mod layout;
mod names;
mod owners;
mod pod;
mod pool;
mod quota;
mod reasons;
mod size;
mod starter;
mod template;
mod watcher;
mod works;

use crate::change_feed::Changes;
use crate::properties::unfit;
use crate::{
    Capabilities, ComputeChanged, ComputeProvider, ComputeSpec, DefinitionError, Error, Found, WarmPools,
};
use api::KubeApi;
use async_trait::async_trait;
pub(crate) use definition::check_definition;
pub use definition::{is_namespace, is_object_name};
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff;
use kube::config::{KubeConfigOptions, Kubeconfig};
use names::{CLAIMED_ANNOTATION, Owner, POOL_LABEL, pod_name};
pub use names::{CLUSTER_LABEL, GENERATION_LABEL, INSTALL_LABEL, ORG_LABEL, ROLE_LABEL, SESSION_LABEL};
use owners::Owners;
use parking_lot::Mutex;
use pod::pods_of;
use pool::{Pools, Reserved};
use reasons::{PodEvent, Verdict, judge};
use session_core::Cluster;
use session_core::machine::Observation;
use starter::Starter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use watcher::Pods;
use works::{Admission, Stage, WorkId, Works};

/// Where and how many pods are made.
#[derive(Debug, Clone)]
pub struct KubernetesConfig {
    /// Namespaces that clusters may name.
    pub namespaces: Vec<String>,
    /// Name of a ConfigMap in each of these namespaces that owns the pods, so
    /// that they go with it; none if `None`.
    pub anchor: Option<String>,
    /// Limit on the pods of this installation.
    pub max_pods: usize,
    /// Limit on the pods that this manager starts at a time.
    pub max_starting: usize,
    /// The installation that the pods belong to.
    pub install_id: String,
    /// Whether a network policy denies everything in these namespaces, so that
    /// each session with workers needs one that connects its pods.
    pub is_isolated: bool,
}

/// Why the API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {path}: {cause}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: kube::config::KubeconfigError,
    },
    /// This process does not run in a pod with a service account.
    #[error("no kubeconfig is set, and there is no service account of a pod: {0}")]
    NotInCluster(#[from] kube::config::InClusterError),
    /// The client cannot be made.
    #[error(transparent)]
    Client(#[from] kube::Error),
}

/// Connects to the API server of a kubeconfig file, or to that of the pod in
/// which this process runs. Nothing is sent yet.
///
/// # Errors
/// [`ConnectError`] if no client can be made.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<kube::Client, ConnectError> {
    let config = match kubeconfig {
        None => kube::Config::incluster()?,
        Some(path) => {
            let about = |cause| ConnectError::Kubeconfig {
                path: path.to_owned(),
                cause,
            };
            let file = Kubeconfig::read_from(path).map_err(about)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(about)?
        }
    };
    Ok(kube::Client::try_from(config)?)
}

/// See the module.
#[derive(Debug)]
pub struct KubernetesProvider {
    shared: Arc<Shared>,
    /// Ends the watches.
    _watches: DropGuard,
}

#[derive(Debug)]
struct Shared {
    config: KubernetesConfig,
    api: KubeApi,
    namespaces: BTreeMap<String, Pods>,
    works: Mutex<Works>,
    changes: Changes,
    owners: Mutex<Owners>,
    pools: Mutex<Pools>,
    /// Pods of pools changed.
    pools_changed: Arc<Notify>,
}

impl KubernetesProvider {
    /// Begins to watch the namespaces. Must be called within a Tokio runtime.
    pub fn new(config: KubernetesConfig, client: kube::Client) -> Self {
        let stop = CancellationToken::new();
        let (namespaces, writers): (BTreeMap<_, _>, Vec<_>) = config
            .namespaces
            .iter()
            .map(|namespace| {
                let (pods, writer) = Pods::new();
                ((namespace.clone(), pods), (namespace.clone(), writer))
            })
            .unzip();
        let shared = Arc::new(Shared {
            config,
            api: KubeApi::new(client),
            namespaces,
            works: Mutex::default(),
            changes: Changes::default(),
            owners: Mutex::default(),
            pools: Mutex::default(),
            pools_changed: Arc::default(),
        });
        tokio::spawn(pool::keep(Arc::downgrade(&shared), stop.clone()));
        for (namespace, writer) in writers {
            let weak = Arc::downgrade(&shared);
            tokio::spawn(watcher::watch_events(
                weak.clone(),
                namespace.clone(),
                stop.clone(),
            ));
            tokio::spawn(distributed::sweep::sweep_workers(
                weak.clone(),
                namespace.clone(),
                stop.clone(),
            ));
            tokio::spawn(watcher::watch_pods(weak, namespace, writer, stop.clone()));
        }
        Self {
            shared,
            _watches: stop.drop_guard(),
        }
    }

    fn start(&self, spec: &ComputeSpec, admission: Admission, warm: Option<Reserved>) {
        let Admission::Start { run, stop, changed } = admission else {
            if let Some(warm) = warm {
                self.shared.pools.lock().give_back(&warm);
            }
            return;
        };
        let id = (spec.key.id.clone(), spec.generation);
        let claimed = self.shared.owners.lock().get(&id).map(|pod| pod.name);
        let starter = Starter {
            shared: Arc::clone(&self.shared),
            spec: spec.clone(),
            name: claimed.unwrap_or_else(|| pod_name(&id.0, id.1)),
            warm,
            run,
            stop,
            changed,
        };
        tokio::spawn(starter.start());
    }

    /// Starts what a manager that is gone, or another one, left unfinished: its
    /// pod exists, and nobody here asks its engine.
    /// It takes no turn: after a restart all sessions come together, and new ones
    /// must not wait for them.
    fn take_over(&self, spec: &ComputeSpec) {
        let admission = {
            let mut works = self.shared.works.lock();
            if works.starting().count() >= self.shared.config.max_starting {
                return;
            }
            works.admit(&spec.key, spec.generation, None, |_| false)
        };
        self.start(spec, admission, None);
    }

    /// What a pod that exists means for its generation.
    async fn observe_pod(&self, spec: &ComputeSpec, pod: &Pod) -> Observation {
        let shared = &self.shared;
        let id = (spec.key.id.clone(), spec.generation);
        if shared.works.lock().released.contains(&spec.key, spec.generation) {
            return Observation::Starting {
                cause: "its pod is being deleted".into(),
            };
        }
        let (stage, events) = shared.work(&id).unzip();
        let failed = |cause, permanent| Observation::Failed { cause, permanent };
        match (
            judge(spec.cluster.engine, pod, &events.unwrap_or_default()),
            stage,
        ) {
            (Verdict::Leaving(cause), _) => failed(cause, false),
            (_, Some(Stage::Failed { cause, permanent })) => failed(cause, permanent),
            (Verdict::Lost(cause), _) => failed(cause, false),
            (Verdict::Terminal(_), Some(Stage::Starting { cause })) => Observation::Starting { cause },
            (Verdict::Terminal(cause), Some(Stage::Ready { .. } | Stage::Queued) | None) => {
                let metadata = &pod.metadata;
                let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
                let cause = shared
                    .with_log(
                        namespace.unwrap_or_default(),
                        name.unwrap_or_default(),
                        cause,
                        &[],
                    )
                    .await;
                shared
                    .works
                    .lock()
                    .fail(&spec.key, spec.generation, cause.clone(), true);
                failed(cause, true)
            }
            (Verdict::Running(_), Some(Stage::Ready { route, uid }))
                if pod.metadata.uid.as_ref() == Some(&uid) =>
            {
                Observation::Ready { route }
            }
            (Verdict::Running(_) | Verdict::Waiting(_), Some(Stage::Starting { cause })) => {
                Observation::Starting { cause }
            }
            (Verdict::Running(_) | Verdict::Waiting(_), Some(Stage::Ready { .. } | Stage::Queued) | None) => {
                self.take_over(spec);
                Observation::Starting {
                    cause: format!("{} has not answered yet", spec.cluster.engine).into(),
                }
            }
        }
    }
}

#[async_trait]
impl ComputeProvider for KubernetesProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    async fn try_cluster(&self, cluster: &Cluster) -> Result<(), DefinitionError> {
        self.shared.try_cluster(cluster).await
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let pods = pods_of(spec)?;
        let shared = &self.shared;
        if let Some(cause) = unfit(spec, check_definition) {
            shared.works.lock().fail(&spec.key, spec.generation, cause, true);
            shared.changes.publish(&spec.key, spec.generation);
            return Ok(());
        }
        shared.must_watch(&pods.namespace)?;
        let existing = shared.pod_of(spec);
        let is_up = |uid: &str| {
            existing.as_ref().is_some_and(|pod| {
                pod.metadata.uid.as_deref() == Some(uid)
                    && matches!(judge(spec.cluster.engine, pod, &[]), Verdict::Running(_))
            })
        };
        let count = shared.count();
        let pool = shared.pool_of(spec).filter(|_| existing.is_none());
        let warm = pool
            .as_ref()
            .and_then(|pool| shared.pools.lock().reserve_for(pool, &spec.key.id));
        let max_starting = warm.is_none().then_some(shared.config.max_starting);
        let admission = {
            let mut works = shared.works.lock();
            if existing.is_none() && warm.is_none() && count >= shared.config.max_pods {
                let text = format!(
                    "all {} pods of this installation are in use",
                    shared.config.max_pods
                );
                if !works.released.contains(&spec.key, spec.generation) {
                    works.fail_new(&spec.key, spec.generation, text.into());
                }
                None
            } else {
                Some(works.admit(&spec.key, spec.generation, max_starting, is_up))
            }
        };
        if let Some(admission) = admission {
            if let (Some(pool), None, Admission::Start { .. }) = (&pool, &warm, &admission) {
                shared.pools.lock().missed(pool);
            }
            self.start(spec, admission, warm);
        }
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        let pods = pods_of(spec)?;
        let shared = &self.shared;
        if let Some(pod) = shared.pod_of(spec) {
            return Ok(self.observe_pod(spec, &pod).await);
        }
        shared.must_watch(&pods.namespace)?;
        let id = (spec.key.id.clone(), spec.generation);
        if let Some((stage, _)) = shared.work(&id)
            && let Some(observation) = stage.without_pod()
        {
            return Ok(observation);
        }
        match shared.read_pod(&pods.namespace, spec).await {
            Ok(Some(pod)) => Ok(self.observe_pod(spec, &pod).await),
            Ok(None) => {
                shared.works.lock().forget_ready(&id);
                Ok(Observation::Missing)
            }
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let pods = pods_of(spec)?;
        let shared = &self.shared;
        shared.works.lock().release(&spec.key, spec.generation);
        let name = pod_name(&spec.key.id, spec.generation);
        let mut going = shared.pods_up_to(spec);
        if shared.pod_of(spec).is_none() {
            // A watch may be behind.
            going.push((pods.namespace.clone(), name, None));
            going.extend(shared.unseen_claims(&pods.namespace, spec).await);
        }
        let mut failed = None;
        let has_begun = !going.is_empty();
        for (namespace, name, uid) in going {
            if let Err(error) = shared.api.delete_pod(&namespace, &name, uid.as_deref()).await {
                failed = Some(error);
            }
        }
        // Without anything to delete, the next change is that the pod is gone.
        if has_begun {
            shared.changes.publish(&spec.key, spec.generation);
        }
        failed.map_or(Ok(()), |error| Err(Error::Unavailable(error.to_string())))
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        let now = jiff::Timestamp::now();
        let mut all = Vec::new();
        for namespace in self.shared.namespaces.keys() {
            let pods = self.shared.api.all_pods(namespace).await;
            let pods = pods.map_err(|error| Error::Unavailable(error.to_string()))?;
            all.extend(pods.iter().filter_map(|pod| found(pod, now)));
        }
        Ok(all)
    }

    fn warm_pools(&self) -> Option<&dyn WarmPools> {
        Some(self)
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.shared.changes.watch()
    }
}

fn found(pod: &Pod, now: jiff::Timestamp) -> Option<Found> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let owner = Owner::read(pod.metadata.labels.as_ref()?)?;
    let claimed = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(CLAIMED_ANNOTATION));
    let created = match claimed.and_then(|text| text.parse().ok()) {
        Some(claimed) => claimed,
        None => pod.metadata.creation_timestamp.as_ref()?.0,
    };
    Some(Found {
        key: owner.key,
        generation: owner.generation,
        cluster: owner.cluster,
        install_id: owner.install_id,
        age: Duration::try_from(now.duration_since(created)).unwrap_or_default(),
    })
}

impl Shared {
    /// Nothing can be said about a namespace that is not watched, or not listed yet.
    fn must_watch(&self, namespace: &str) -> Result<(), Error> {
        match self.namespaces.get(namespace) {
            None => Err(Error::Unavailable(format!(
                "namespace {namespace} is not in compute.kubernetes.namespaces"
            ))),
            Some(pods) if !pods.are_listed() => Err(Error::Unavailable(format!(
                "the pods of namespace {namespace} could not be listed yet"
            ))),
            Some(_) => Ok(()),
        }
    }

    /// A pod as the watches show it, in whatever namespace: the definition of a
    /// cluster may have changed since.
    fn seen_pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.namespaces
            .iter()
            .find_map(|(namespace, pods)| pods.get(namespace, name))
    }

    /// The pods of this installation, those included that are about to be created.
    fn count(&self) -> usize {
        let unseen = self.pools.lock().unseen();
        let starting: Vec<WorkId> = self.works.lock().creating().cloned().collect();
        let unseen = unseen
            + starting
                .iter()
                .filter(|(id, generation)| self.seen_pod(&pod_name(id, *generation)).is_none())
                .count();
        unseen + self.namespaces.values().map(Pods::count).sum::<usize>()
    }

    /// The pods of a session up to a generation that are not being deleted yet:
    /// namespace, name, uid.
    fn pods_up_to(&self, spec: &ComputeSpec) -> Vec<(String, String, Option<String>)> {
        let all = self.namespaces.iter().flat_map(|(namespace, pods)| {
            let goes = |pod: &Arc<Pod>| {
                let owner = pod.metadata.labels.as_ref().and_then(Owner::read);
                pod.metadata.deletion_timestamp.is_none()
                    && owner.is_some_and(|owner| owner.key == spec.key && owner.generation <= spec.generation)
            };
            pods.all()
                .into_iter()
                .filter(goes)
                .map(move |pod| (namespace, pod))
        });
        let mut all: Vec<_> = all
            .map(|(namespace, pod)| {
                let name = pod.metadata.name.clone().unwrap_or_default();
                (namespace.clone(), name, pod.metadata.uid.clone())
            })
            .collect();
        self.add_claimed(spec, &mut all);
        all
    }

    fn work(&self, id: &WorkId) -> Option<(Stage, Vec<PodEvent>)> {
        let works = self.works.lock();
        works
            .map
            .get(id)
            .map(|work| (work.stage.clone(), work.events.clone()))
    }

    fn events_of(&self, id: &WorkId) -> Vec<PodEvent> {
        let works = self.works.lock();
        works
            .map
            .get(id)
            .map_or_else(Vec::new, |work| work.events.clone())
    }

    fn pod_changed(&self, pod: &Pod) {
        let labels = pod.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(POOL_LABEL)) {
            self.pools_changed.notify_one();
            return;
        }
        let Some(owner) = labels.and_then(Owner::read) else {
            return;
        };
        self.saw_owner(&owner, pod);
        let id = (owner.key.id.clone(), owner.generation);
        if let Some(work) = self.works.lock().map.get(&id) {
            work.changed.notify_one();
        }
        self.changes.publish(&owner.key, owner.generation);
    }

    fn pod_deleted(&self, pod: &Pod) {
        if let Some(owner) = pod.metadata.labels.as_ref().and_then(Owner::read) {
            let id = (owner.key.id, owner.generation);
            self.works.lock().forget_ready(&id);
        }
        self.pod_changed(pod);
        self.forget_owner(pod);
    }

    /// A namespace was listed: everything may have changed since it was seen last.
    fn listed(&self, namespace: &str) {
        self.list_owners(namespace);
        let works: Vec<_> = {
            let works = self.works.lock();
            let all = works.map.iter();
            all.map(|((_, generation), work)| {
                work.changed.notify_one();
                (work.key.clone(), *generation)
            })
            .collect()
        };
        tracing::debug!(namespace, works = works.len(), "pods listed");
        for (key, generation) in works {
            self.changes.publish(&key, generation);
        }
    }

    fn event_arrived(&self, id: &WorkId, event: PodEvent) {
        let key = self.works.lock().add_event(id, event);
        if let Some(key) = key {
            self.changes.publish(&key, id.1);
        }
    }
}
