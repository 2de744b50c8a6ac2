//! The task that keeps pools filled, and asks the engines of their pods.

use super::entry::{Action, SeenPod, SeenState};
use super::key::{PoolKey, pool_plan};
use super::state::Limits;
use crate::connector::Target;
use crate::kubernetes::Shared;
use crate::kubernetes::names::POOL_LABEL;
use crate::kubernetes::pod::{PORT, Plan};
use crate::kubernetes::reasons::{self, Verdict, judge};
use crate::kubernetes::starter::until_listening;
use crate::probe::{self, CatalogQuestion, Question};
use crate::user_message;
use crate::warm_pools::WarmPool;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff;
use session_core::machine::Cause;
use session_core::route::Secret;
use session_core::{Engine, Route};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Pools are looked at this often even if nothing changed.
const TICK: Duration = Duration::from_secs(1);
/// Changes within this time are handled together.
const SETTLE: Duration = Duration::from_millis(20);
/// Time for an engine that listens to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// The user of the Spark session that asks.
const USER: &str = "berth-warm-pool";

/// Keeps the pools until `stop`.
pub(in crate::kubernetes) async fn keep(shared: Weak<Shared>, stop: CancellationToken) {
    let Some(changed) = shared.upgrade().map(|shared| Arc::clone(&shared.pools_changed)) else {
        return;
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed.notified() => sleep(SETTLE).await,
            () = sleep(TICK) => {}
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.keep_pools();
    }
}

impl Shared {
    /// One pass: notes what the watches show, and starts what follows.
    fn keep_pools(self: &Arc<Self>) {
        // Nothing may be created while existing pods are unknown.
        if !self.namespaces.values().all(super::super::Pods::are_listed) {
            return;
        }
        let seen = self.pool_pods();
        let limits = Limits {
            max_starting: (self.config.max_starting / 2).max(1),
            room: self.config.max_pods.saturating_sub(self.count()),
            max_age: self.config.warm_max_age,
        };
        let actions = self.pools.lock().scan(seen, &limits);
        for action in actions {
            let shared = Arc::clone(self);
            match action {
                Action::Create(key) => {
                    let name = format!("warm-{}", uuid::Uuid::new_v4().simple());
                    self.pools.lock().creating(&key, &name);
                    tokio::spawn(async move { shared.create_warm(&key, &name).await });
                }
                Action::CreateSecret { uid } => drop(tokio::spawn(async move {
                    shared.complete_warm(&uid).await;
                })),
                Action::Ask { uid } => drop(tokio::spawn(async move { shared.ask_warm(&uid).await })),
                Action::Delete { uid, why } => drop(tokio::spawn(async move {
                    shared.delete_warm(&uid, why).await;
                })),
            }
        }
    }

    fn pool_pods(&self) -> Vec<SeenPod> {
        let now = jiff::Timestamp::now();
        let engines = |key: &PoolKey| self.pools.lock().pool(key).map(|pool| pool.cluster.engine);
        let all = self.namespaces.values().flat_map(super::super::Pods::all);
        all.filter_map(|pod| {
            let hash = pod.metadata.labels.as_ref()?.get(POOL_LABEL)?;
            let key = PoolKey(hash.clone());
            let engine = engines(&key);
            seen(&pod, key, engine, now)
        })
        .collect()
    }

    async fn create_warm(&self, key: &PoolKey, name: &str) {
        if let Err(cause) = self.try_create_warm(key, name).await {
            let why = shown(&cause);
            let mut pools = self.pools.lock();
            pools.not_created(name);
            pools.failed(key, &why);
        }
    }

    async fn try_create_warm(&self, key: &PoolKey, name: &str) -> Result<(), Cause> {
        let plan = self.plan_warm(key, name).await?;
        let namespace = plan.pod.metadata.namespace.clone().unwrap_or_default();
        let created = self.api.create_pod(&namespace, &plan.pod).await;
        let pod = created.map_err(|error| reasons::refusal(&error).cause)?;
        let uid = pod.metadata.uid.unwrap_or_default();
        let Err(cause) = self.create_warm_secret(&plan, &namespace, &uid).await else {
            return Ok(());
        };
        // Without its Secret it would wait for ever.
        if let Err(error) = self.api.delete_pod(&namespace, name, Some(&uid)).await {
            tracing::warn!(pod = name, %error, "deleting a warm pod failed");
        }
        Err(cause)
    }

    async fn plan_warm(&self, key: &PoolKey, name: &str) -> Result<Plan, Cause> {
        let pool = self.pools.lock().pool(key);
        let pool = pool.ok_or_else(|| Cause::from("its pool is not wanted any more".to_owned()))?;
        let namespace = match &pool.cluster.provider {
            session_core::Provider::Kubernetes(pods) => pods.namespace.clone(),
            session_core::Provider::Static { .. } | session_core::Provider::Process { .. } => String::new(),
        };
        if !self.namespaces.contains_key(&namespace) {
            return Err("its namespace is not in compute.kubernetes.namespaces".into());
        }
        let anchor = match &self.config.anchor {
            None => None,
            Some(anchor) => match self.api.anchor(&namespace, anchor).await {
                Ok(Some(found)) => Some(found),
                Ok(None) => return Err("the ConfigMap that owns its pods does not exist".into()),
                Err(error) => {
                    let text = "the ConfigMap that owns its pods cannot be read";
                    return Err(user_message::cause(text, error));
                }
            },
        };
        pool_plan(&pool, key, name, &self.config.install_id, anchor)
    }

    async fn create_warm_secret(&self, plan: &Plan, namespace: &str, uid: &str) -> Result<(), Cause> {
        if plan.secret.is_empty() {
            return Ok(());
        }
        let made = self.api.create_secret(namespace, &plan.secret_of(uid), uid).await;
        made.map(|_| ())
            .map_err(|error| user_message::cause("the Secret of its pod cannot be created", error))
    }

    /// Creates the Secret that a manager which is gone may not have created.
    async fn complete_warm(&self, uid: &str) {
        let Some(pod) = self.pools.lock().entry(uid).map(|entry| entry.seen.clone()) else {
            return;
        };
        let made = async {
            let plan = self.plan_warm(&pod.key, &pod.name).await?;
            self.create_warm_secret(&plan, &pod.namespace, uid).await
        };
        if let Err(cause) = made.await {
            self.fail_warm(uid, &shown(&cause)).await;
        }
    }

    async fn delete_warm(&self, uid: &str, why: &str) {
        let Some(pod) = self.pools.lock().entry(uid).map(|entry| entry.seen.clone()) else {
            return;
        };
        let deleted = self
            .api
            .delete_unchanged(&pod.namespace, &pod.name, uid, &pod.version)
            .await;
        match deleted {
            Ok(true) => tracing::info!(pod = pod.name, reason = why, "warm pod deleted"),
            // It changed; if it is still there, the next pass decides again.
            Ok(false) => self.pools.lock().start_again(uid),
            Err(error) => {
                tracing::warn!(pod = pod.name, %error, "deleting a warm pod failed; it is tried again");
                self.pools.lock().start_again(uid);
            }
        }
    }

    async fn fail_warm(&self, uid: &str, why: &str) {
        self.pools.lock().failed_pod(uid, why);
        self.delete_warm(uid, "it failed").await;
    }

    async fn ask_warm(&self, uid: &str) {
        let Some((pod, pool, stop)) = ({
            let pools = self.pools.lock();
            pools.entry(uid).and_then(|entry| {
                let pool = pools.pool(&entry.seen.key)?;
                Some((entry.seen.clone(), pool, entry.stop.clone()))
            })
        }) else {
            return;
        };
        let SeenState::Running(ip) = pod.is else {
            return;
        };
        let answer = stop.run_until_cancelled(self.answer_of(&pod, &pool, ip)).await;
        match answer {
            None => {}
            Some(Ok(route)) => {
                self.pools.lock().answered(uid, route);
                self.pools_changed.notify_one();
            }
            Some(Err(cause)) => {
                let refills = self.pools.lock().refills();
                if refills {
                    self.fail_warm(uid, &shown(&cause)).await;
                } else {
                    // The manager that refills the pool decides.
                    sleep(TICK).await;
                    self.pools.lock().start_again(uid);
                }
            }
        }
    }

    async fn answer_of(&self, pod: &SeenPod, pool: &WarmPool, ip: IpAddr) -> Result<Route, Cause> {
        let engine = pool.cluster.engine;
        let address = SocketAddr::new(ip, PORT);
        let asked = async {
            until_listening(address).await;
            let credential = match engine {
                Engine::Sail => None,
                Engine::Spark => Some(self.warm_token(pod).await),
            };
            let target = Target {
                address: address.to_string(),
                tls: None,
                credential,
                allow: None,
            };
            let question = Question {
                user_id: USER.to_owned(),
                catalog: pool.catalog.as_ref().map(|catalog| CatalogQuestion {
                    name: catalog.name.to_string(),
                    database: catalog.default_database.clone(),
                    select: false,
                }),
            };
            let version = probe::until_ready(&target, &question, |_| {}).await;
            let version = version.map_err(|cause| {
                let plan = pool_plan(pool, &pod.key, &pod.name, &self.config.install_id, None);
                let mut secrets = plan.map_or_else(|_| Vec::new(), |plan| plan.secrets);
                secrets.extend(target.credential.clone());
                user_message::masked(&cause, &secrets)
            })?;
            Ok(Route {
                endpoint: target.address,
                tls_server_name: None,
                credential: target.credential,
                engine,
                engine_version: version,
                dedicated: true,
                host: None,
            })
        };
        timeout(ANSWER_LIMIT, asked).await.unwrap_or_else(|_| {
            Err(format!("{engine} did not answer within {} s", ANSWER_LIMIT.as_secs()).into())
        })
    }

    async fn warm_token(&self, pod: &SeenPod) -> Secret {
        loop {
            if let Ok(Some(token)) = self.api.token(&pod.namespace, &pod.name).await {
                return token;
            }
            sleep(TICK).await;
        }
    }
}

/// The cause for operators.
fn shown(cause: &Cause) -> String {
    if cause.detail.is_empty() {
        cause.text.clone()
    } else {
        format!("{}: {}", cause.text, cause.detail)
    }
}

fn seen(pod: &Pod, key: PoolKey, engine: Option<Engine>, now: jiff::Timestamp) -> Option<SeenPod> {
    let metadata = &pod.metadata;
    let created = metadata.creation_timestamp.as_ref()?.0;
    // Without a pool nobody reads the state.
    let verdict = judge(engine.unwrap_or(Engine::Sail), pod, &[]);
    Some(SeenPod {
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        uid: metadata.uid.clone()?,
        version: metadata.resource_version.clone()?,
        key,
        age: Duration::try_from(now.duration_since(created)).unwrap_or_default(),
        is: match verdict {
            Verdict::Waiting(_) => SeenState::Waiting,
            Verdict::Running(ip) => SeenState::Running(ip),
            Verdict::Terminal(cause) | Verdict::Lost(cause) => SeenState::Failed(shown(&cause)),
            Verdict::Leaving(_) => SeenState::Leaving,
        },
    })
}
