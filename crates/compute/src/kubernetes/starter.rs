//! The task that starts one generation: its pod, its Secret, its engine's first
//! answer. It ends when the engine is ready, has failed or is not wanted.

use super::Shared;
use super::names::pod_name;
use super::pod::{PORT, Plan, pods_of};
use super::pool::Reserved;
use super::reasons::{self, Verdict, judge};
use super::works::{Stage, WorkId};
use crate::ComputeSpec;
use crate::connector::Target;
use crate::probe::{self, CatalogQuestion, Question};
use crate::user_message;
use k8s_openapi::api::core::v1::Pod;
use session_core::machine::Cause;
use session_core::route::Secret;
use session_core::{Engine, Route};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Longer than any session waits for its compute.
const START_LIMIT: Duration = Duration::from_secs(16 * 60);
/// The pod is looked at this often even if no watch reports a change.
const TICK: Duration = Duration::from_secs(1);
const LISTEN_POLL: Duration = Duration::from_millis(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Starts one generation.
pub(super) struct Starter {
    pub(super) shared: Arc<Shared>,
    pub(super) spec: ComputeSpec,
    pub(super) name: String,
    pub(super) run: u64,
    pub(super) stop: CancellationToken,
    pub(super) changed: Arc<Notify>,
    /// A pod of a pool to claim.
    pub(super) warm: Option<Reserved>,
}

/// How a start ended.
pub(super) enum End {
    /// It is not wanted any more.
    Stopped,
    /// Its pod was deleted by somebody else.
    Gone,
    Ready {
        route: Route,
        uid: String,
    },
    Failed {
        cause: Cause,
        permanent: bool,
    },
}

impl End {
    pub(super) fn failed(cause: impl Into<Cause>, permanent: bool) -> Self {
        Self::Failed {
            cause: cause.into(),
            permanent,
        }
    }
}

/// What a starter has done and seen so far.
#[derive(Default)]
struct Progress {
    /// The answer to the creation, until a watch shows the pod.
    made: Option<Pod>,
    /// A watch has shown the pod.
    was_seen: bool,
    /// The Secret of the pod with this uid exists.
    has_secret: Option<String>,
    /// The network policy of the pod with this uid exists, if it needs one.
    has_peers: Option<String>,
    plan: Option<Plan>,
}

impl Starter {
    pub(super) async fn start(self) {
        // One that takes longer is begun again when somebody asks for it.
        let end = timeout(START_LIMIT, Box::pin(self.until_ready()))
            .await
            .unwrap_or(End::Gone);
        let id = self.id();
        let stage = match end {
            End::Stopped | End::Gone => None,
            End::Ready { route, uid } => Some(Stage::Ready { route, uid }),
            End::Failed { cause, permanent } => {
                tracing::info!(session = %id.0, generation = id.1, cause = %cause.text, detail = %cause.detail, permanent, "compute failed");
                Some(Stage::Failed { cause, permanent })
            }
        };
        let next = {
            let mut works = self.shared.works.lock();
            works.end(&id, self.run, stage);
            works.next_in_queue()
        };
        self.shared.changes.publish(&self.spec.key, self.spec.generation);
        if let Some((key, generation)) = next {
            self.shared.changes.publish(&key, generation);
        }
    }

    fn id(&self) -> WorkId {
        (self.spec.key.id.clone(), self.spec.generation)
    }

    fn namespace(&self) -> &str {
        pods_of(&self.spec).map_or("", |pods| pods.namespace.as_str())
    }

    async fn until_ready(&self) -> End {
        if let Some(warm) = &self.warm {
            return self.claim(warm).await;
        }
        let mut progress = Progress::default();
        self.read_events().await;
        loop {
            if self.stop.is_cancelled() {
                self.withdraw(&progress).await;
                return End::Stopped;
            }
            match Box::pin(self.turn(&mut progress)).await {
                Ok(()) => self.wait().await,
                Err(end) => return end,
            }
        }
    }

    /// Looks at the pod and does what follows; `Err` is the end.
    async fn turn(&self, progress: &mut Progress) -> Result<(), End> {
        let Some(pod) = self.pod(progress).await? else {
            return self.create(progress).await;
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        match judge(self.spec.cluster.engine, &pod, &self.shared.events_of(&self.id())) {
            // Whether a new one follows is decided by the session's record.
            Verdict::Leaving(why) => return Err(End::failed(why, false)),
            Verdict::Waiting(why) => {
                self.waiting(why);
                self.create_secret(progress, &uid).await?;
            }
            Verdict::Terminal(why) => {
                let shared = &self.shared;
                let cause = shared
                    .with_log(&self.spec, self.namespace(), &self.name, why)
                    .await;
                return Err(End::failed(cause, true));
            }
            Verdict::Lost(why) => {
                let deleted = self
                    .shared
                    .api
                    .delete_pod(self.namespace(), &self.name, Some(&uid))
                    .await;
                if let Err(error) = deleted {
                    tracing::warn!(pod = self.name, %error, "deleting a lost pod failed");
                }
                return Err(End::failed(why, false));
            }
            Verdict::Running(ip) => {
                self.create_peers(progress, &uid).await?;
                return self.ask(progress, &uid, ip).await;
            }
        }
        Ok(())
    }

    /// The pod as last seen; `None` if there is none yet.
    async fn pod(&self, progress: &mut Progress) -> Result<Option<Arc<Pod>>, End> {
        if let Some(pod) = self.shared.seen_pod(&self.name) {
            progress.was_seen = true;
            return Ok(Some(pod));
        }
        if progress.was_seen {
            return Err(End::Gone);
        }
        if progress.made.is_none() {
            return Ok(None);
        }
        // The watch is behind.
        match self.shared.api.pod(self.namespace(), &self.name).await {
            Ok(Some(pod)) => Ok(Some(Arc::new(pod))),
            Ok(None) => Err(End::Gone),
            Err(_) => Ok(progress.made.clone().map(Arc::new)),
        }
    }

    async fn create(&self, progress: &mut Progress) -> Result<(), End> {
        if self.shared.owners.lock().get(&self.id()).is_some() {
            // Another manager claimed a pod for it.
            return Err(End::Gone);
        }
        let namespace = self.namespace();
        let plan = self.plan().await?;
        let pod = match self.shared.api.create_pod(namespace, &plan.pod).await {
            Ok(pod) => pod,
            Err(error) => {
                let refusal = reasons::refusal(&error);
                return Err(End::failed(refusal.cause, refusal.permanent));
            }
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return Err(End::failed("an earlier pod of it is being deleted", false));
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        progress.made = Some(pod);
        progress.plan = Some(plan);
        if self.shared.pool_of(&self.spec).is_some() {
            self.yield_to_rival(progress, &uid).await?;
        }
        self.create_secret(progress, &uid).await
    }

    /// Withdraws the new pod if another manager claimed one for this generation.
    async fn yield_to_rival(&self, progress: &Progress, uid: &str) -> Result<(), End> {
        match self.shared.has_rival(self.namespace(), &self.spec, uid).await {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.withdraw(progress).await;
                Err(End::Gone)
            }
            Err(error) => Err(End::failed(error.to_string(), false)),
        }
    }

    async fn plan(&self) -> Result<Plan, End> {
        let pods = pods_of(&self.spec).map_err(|error| End::failed(error.to_string(), true))?;
        let anchor = match &self.shared.config.anchor {
            None => None,
            Some(name) => match self.shared.api.anchor(&pods.namespace, name).await {
                Ok(Some(anchor)) => Some(anchor),
                Ok(None) => {
                    let text =
                        format!("the ConfigMap {name} that owns its pod does not exist in its namespace");
                    return Err(End::failed(text, false));
                }
                Err(error) => {
                    let cause = user_message::cause("the ConfigMap that owns its pod cannot be read", error);
                    return Err(End::failed(cause, false));
                }
            },
        };
        Plan::new(&self.spec, pods, &self.shared.config.install_id, anchor)
            .map_err(|cause| End::failed(cause, true))
    }

    /// Creates the Secret of a pod that waits for it. A pod that was found may
    /// have lost the manager that would have created it.
    async fn create_secret(&self, progress: &mut Progress, uid: &str) -> Result<(), End> {
        // Who created the pod of a pool creates its Secret.
        let is_claimed = self.name != pod_name(&self.spec.key.id, self.spec.generation);
        if is_claimed || progress.has_secret.as_deref() == Some(uid) {
            return Ok(());
        }
        if progress.plan.is_none() {
            progress.plan = Some(self.plan().await?);
        }
        let Some(plan) = &progress.plan else {
            return Ok(());
        };
        if !plan.secret.is_empty() {
            let secret = plan.secret_of(uid);
            let made = self
                .shared
                .api
                .create_secret(self.namespace(), &secret, uid)
                .await;
            if let Err(error) = made {
                let cause = user_message::cause("the Secret of its pod cannot be created", error);
                return Err(End::failed(cause, false));
            }
        }
        progress.has_secret = Some(uid.to_owned());
        self.create_peers(progress, uid).await
    }

    /// Creates the network policy that connects a driver and its workers.
    async fn create_peers(&self, progress: &mut Progress, uid: &str) -> Result<(), End> {
        let has_workers = pods_of(&self.spec).is_ok_and(|pods| pods.workers.is_some());
        let is_done = progress.has_peers.as_deref() == Some(uid);
        if is_done || !has_workers || !self.shared.config.is_isolated {
            return Ok(());
        }
        if progress.plan.is_none() {
            progress.plan = Some(self.plan().await?);
        }
        if let Some(policy) = progress.plan.as_ref().and_then(|plan| plan.peers_of(uid)) {
            let made = self.shared.api.create_peers(self.namespace(), &policy, uid).await;
            if let Err(error) = made {
                let cause = user_message::cause("the network policy of its workers cannot be created", error);
                return Err(End::failed(cause, false));
            }
        }
        progress.has_peers = Some(uid.to_owned());
        Ok(())
    }

    /// Asks the engine until it is ready, unless its pod stops running first.
    async fn ask(&self, progress: &Progress, uid: &str, ip: IpAddr) -> Result<(), End> {
        let engine = self.spec.cluster.engine;
        self.waiting(format!("{engine} is starting").into());
        let Ok(credential) = self.credential().await else {
            self.waiting("the Secret of its pod cannot be read".into());
            return Ok(());
        };
        let target = Target {
            address: SocketAddr::new(ip, PORT).to_string(),
            tls: None,
            credential,
            allow: None,
        };
        let mut secrets = self.masks(progress).await;
        secrets.extend(target.credential.clone());
        let question = Question {
            user_id: self.spec.key.id.to_string(),
            catalog: self.spec.catalog.as_ref().map(|catalog| CatalogQuestion {
                name: catalog.name.to_string(),
                database: catalog.default_database.clone(),
                select: false,
            }),
        };
        let answer = async {
            until_listening(SocketAddr::new(ip, PORT)).await;
            let listening = Instant::now();
            let answer = probe::until_ready(&target, &question, |why| {
                let why = user_message::masked(&why, &secrets);
                tracing::debug!(session = %self.spec.key.id, cause = %why.text, detail = %why.detail, "not ready yet");
                self.waiting(user_message::prefixed(&format!("{engine} is not ready"), why));
            })
            .await;
            if answer.is_ok() {
                tracing::info!(session = %self.spec.key.id, generation = self.spec.generation, pod = self.name, after_listening = ?listening.elapsed(), "engine ready");
            }
            answer
        };
        let answer = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            () = self.until_not_running(ip) => return Ok(()),
            answer = answer => answer,
        };
        match answer {
            Ok(version) => {
                self.yield_to_first(uid).await?;
                let route = self.route(&target, version);
                Err(End::Ready {
                    route,
                    uid: uid.to_owned(),
                })
            }
            Err(cause) => Err(End::failed(user_message::masked(&cause, &secrets), true)),
        }
    }

    /// What must not appear in the engine's answers.
    async fn masks(&self, progress: &Progress) -> Vec<Secret> {
        // With secrets the pod may be one that another manager planned with older values.
        if let Some(plan) = &progress.plan
            && plan.secret.is_empty()
        {
            return plan.secrets.clone();
        }
        let shared = &self.shared;
        let read = shared.masks_of(&self.spec, self.namespace(), &self.name);
        read.await.unwrap_or_else(|planned| planned)
    }

    /// Deletes the pod if the generation has another one that stays. The check at
    /// its creation may have had no answer, or the other claim none.
    async fn yield_to_first(&self, uid: &str) -> Result<(), End> {
        if self.shared.pool_of(&self.spec).is_none() {
            return Ok(());
        }
        let namespace = self.namespace();
        match self.shared.stays(namespace, &self.spec, uid).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let deleted = self.shared.api.delete_pod(namespace, &self.name, Some(uid)).await;
                match deleted {
                    Ok(_) => Err(End::Gone),
                    Err(error) => Err(End::failed(error.to_string(), false)),
                }
            }
            Err(error) => Err(End::failed(error.to_string(), false)),
        }
    }

    /// The engine's own token: that of the Secret, which another manager may
    /// have created.
    ///
    /// # Errors
    /// If it cannot be read now.
    async fn credential(&self) -> Result<Option<Secret>, ()> {
        match self.spec.cluster.engine {
            Engine::Sail => Ok(None),
            Engine::Spark => match self.shared.api.token(self.namespace(), &self.name).await {
                Ok(Some(token)) => Ok(Some(token)),
                Ok(None) | Err(_) => Err(()),
            },
        }
    }

    fn route(&self, target: &Target, engine_version: String) -> Route {
        Route {
            endpoint: target.address.clone(),
            tls_server_name: None,
            credential: target.credential.clone(),
            engine: self.spec.cluster.engine,
            engine_version,
            dedicated: true,
            host: None,
        }
    }

    async fn until_not_running(&self, ip: IpAddr) {
        loop {
            let is_running = self
                .shared
                .seen_pod(&self.name)
                .is_none_or(|pod| judge(self.spec.cluster.engine, &pod, &[]) == Verdict::Running(ip));
            if !is_running {
                return;
            }
            self.wait().await;
        }
    }

    async fn wait(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.changed.notified() => {}
            () = sleep(TICK) => {}
        }
    }

    /// What happened to the pod before this manager watched it.
    async fn read_events(&self) {
        if self.shared.seen_pod(&self.name).is_none() {
            return;
        }
        if let Ok(events) = self.shared.api.events_of(self.namespace(), &self.name).await {
            for event in events {
                self.shared.works.lock().add_event(&self.id(), event);
            }
        }
    }

    /// Deletes what was created while the release came.
    async fn withdraw(&self, progress: &Progress) {
        let Some(made) = &progress.made else {
            return;
        };
        let uid = made.metadata.uid.as_deref();
        if let Err(error) = self
            .shared
            .api
            .delete_pod(self.namespace(), &self.name, uid)
            .await
        {
            tracing::warn!(pod = self.name, %error, "deleting a released pod failed; orphan collection finds it");
        }
    }

    /// Reports what the pod waits for, if that changed.
    fn waiting(&self, why: Cause) {
        {
            let mut works = self.shared.works.lock();
            match works.of_run(&self.id(), self.run).map(|work| &mut work.stage) {
                Some(Stage::Starting { cause }) if *cause != why => *cause = why,
                Some(_) | None => return,
            }
        }
        self.shared.changes.publish(&self.spec.key, self.spec.generation);
    }
}

/// A pod refuses connections at once until its engine listens.
pub(super) async fn until_listening(address: SocketAddr) {
    while !matches!(
        timeout(CONNECT_LIMIT, TcpStream::connect(address)).await,
        Ok(Ok(_))
    ) {
        sleep(LISTEN_POLL).await;
    }
}
