//! One pod per session generation, in namespaces of one Kubernetes cluster.
//!
//! ```text
//! definition, size ─ what a cluster says  names, layout, pod ─ the objects made from it
//! template ─ merged over the pod          dry_run ─ asks the API server about it
//! starter ─ one task per start: create, wait, ask the engine
//! watcher ─ pods and events as they are   reasons, quota ─ what they mean, in words
//! works ─ what this manager started       api ─ the calls, bounded in time
//! connect ─ the client of the API server   shared ─ works and watched pods, for all
//! pool ─ pods without a session           owners ─ pods that sessions claimed
//! duplicates ─ second pods of a session
//! log_tail ─ the end of a log, without secrets
//! distributed ─ engines whose driver creates worker pods
//! ```
//!
//! The pods are the truth: their names and labels make every call idempotent,
//! so any number of managers may run this provider, and one that restarts finds
//! what there is. "Missing" is only ever the API server's own answer, never that
//! of a watch, which may be behind.

mod api;
mod connect;
mod definition;
mod distributed;
mod dry_run;
mod duplicates;
mod layout;
mod log_tail;
mod names;
mod owners;
mod pod;
mod pool;
mod quota;
mod reasons;
mod shared;
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
pub use connect::{ConnectError, connect};
pub(crate) use definition::check_definition;
pub use definition::{is_namespace, is_object_name};
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff;
use names::{CLAIMED_ANNOTATION, Owner, pod_name};
pub use names::{CLUSTER_LABEL, GENERATION_LABEL, INSTALL_LABEL, ORG_LABEL, ROLE_LABEL, SESSION_LABEL};
use owners::Owners;
use parking_lot::Mutex;
use pod::pods_of;
use pool::{Pools, Reserved};
use reasons::{Verdict, judge};
use session_core::Cluster;
use session_core::machine::Observation;
use session_core::route::Secret;
use starter::Starter;
use std::collections::BTreeMap;
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
    /// Age above which a pod of a warm pool is replaced, counted from its creation;
    /// `None` means never.
    pub warm_max_age: Option<Duration>,
    /// The installation that the pods belong to.
    pub install_id: String,
    /// Key of the hash in the label of pods of warm pools: the same at all managers of
    /// the installation and over restarts, and unknown to whoever reads pods.
    pub pool_secret: Secret,
    /// Whether a network policy denies everything in these namespaces, so that
    /// each session with workers needs one that connects its pods.
    pub is_isolated: bool,
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
        tokio::spawn(duplicates::sweep_duplicates(
            Arc::downgrade(&shared),
            stop.clone(),
        ));
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
                        spec,
                        namespace.unwrap_or_default(),
                        name.unwrap_or_default(),
                        cause,
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
