//! The reconciler.
//!
//! Every session has one entry in the store's due-queue. The reconciler claims due
//! entries, observes compute, decides the next record by the status machine,
//! commits it, and only then starts effects. A claim is a lease: if the process
//! crashes at any point, the entry becomes due again and another manager claims it.

mod effects;
mod retries;

use crate::definitions::DefinitionStore;
use crate::lifecycle::disabling::DisabledState;
use crate::lifecycle::report_freshness::ReportFreshness;
use crate::metrics::Metrics;
use crate::providers::registry::Providers;
use crate::spark_sessions::Bindings;
use futures::{Stream, StreamExt, stream};
use parking_lot::{Mutex, MutexGuard};
use retries::Retries;
use service_kit::root_span;
use session_core::invariant;
use session_core::machine::{self, Event, Observation, Step, Transition};
use session_core::{
    Activity, Actor, ChangeReason, Cluster, ClusterStatus, Reason, Session, SessionKey, Timestamp,
};
use session_proto::error::Refused;
use session_store::{Commit, Error, Loaded, SessionStore};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Term of the claim of a due entry, after which it is due again.
const CLAIM_LEASE: Duration = Duration::from_secs(30);
/// Time between two claims while the due-queue is empty.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Time until the next claim after a failed one.
const CLAIM_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Entries of one claim, and concurrent reconciliations.
const BATCH: usize = 64;
/// Attempts after a conflict before a due entry is left to its lease.
const MAX_ATTEMPTS: usize = 8;
/// Time between two searches for sessions whose local compute is missing.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Time between two checks whether this manager is the leader for local compute.
const LEADER_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Sessions that one read of a sweep returns.
const SWEEP_PAGE: usize = 256;
/// Sessions that wait for their reconciliation.
const MAX_ENQUEUED: usize = 65_536;

/// Reconciles sessions, and applies events to them.
#[derive(Debug)]
pub(crate) struct Reconciler {
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    computes: Providers,
    pub(crate) bindings: Arc<Bindings>,
    enqueue_sender: mpsc::Sender<SessionKey>,
    /// The sessions that are being reconciled, and whether to repeat it afterwards.
    in_progress: Mutex<HashMap<SessionKey, bool>>,
    /// Sessions whose reconciliation failed because the store was unavailable.
    retries: Retries,
    freshness: Arc<ReportFreshness>,
    metrics: Arc<Metrics>,
}

impl Reconciler {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        definitions: DefinitionStore,
        computes: Providers,
        freshness: Arc<ReportFreshness>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, mpsc::Receiver<SessionKey>) {
        let (enqueue_sender, enqueued) = mpsc::channel(MAX_ENQUEUED);
        let bindings = Bindings::new(Arc::clone(&store), computes.clone(), enqueue_sender.clone());
        let reconciler = Self {
            bindings,
            store,
            definitions,
            computes,
            enqueue_sender,
            in_progress: Mutex::default(),
            retries: Retries::default(),
            freshness,
            metrics,
        };
        (Arc::new(reconciler), enqueued)
    }

    /// Enqueues a session for reconciliation. If the queue is full, the session's
    /// due entry replaces it.
    pub(crate) fn enqueue(&self, key: SessionKey) {
        let _ = self.enqueue_sender.try_send(key);
    }

    /// Reconciles until `stop`, then completes the reconciliations in progress,
    /// which have time limits of their own.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut enqueued: mpsc::Receiver<SessionKey>,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(BATCH));
        let claimer = tasks.spawn(Arc::clone(&self).claim(tasks.clone(), Arc::clone(&permits), stop.clone()));
        let sweeper = tasks.spawn(Arc::clone(&self).sweep(stop.clone()));
        let changed = self.computes.watch().map(|changed| changed.key);
        let enqueued = stream::poll_fn(move |cx| enqueued.poll_recv(cx));
        tokio::join!(
            self.reconcile_all(changed, &tasks, &permits, &stop),
            self.reconcile_all(enqueued, &tasks, &permits, &stop),
        );
        tasks.close();
        drop((claimer, sweeper));
        tasks.wait().await;
    }

    /// Reconciles the sessions of a stream until `stop`.
    async fn reconcile_all(
        self: &Arc<Self>,
        keys: impl Stream<Item = SessionKey>,
        tasks: &TaskTracker,
        permits: &Arc<Semaphore>,
        stop: &CancellationToken,
    ) {
        let mut keys = pin!(keys.take_until(stop.cancelled()));
        while let Some(key) = keys.next().await {
            let Ok(permit) = Arc::clone(permits).acquire_owned().await else {
                return;
            };
            self.spawn_reconciliation(tasks, key, permit);
        }
    }

    fn spawn_reconciliation(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        key: SessionKey,
        permit: OwnedSemaphorePermit,
    ) {
        let this = Arc::clone(self);
        tasks.spawn(async move {
            this.reconcile(&key).await;
            drop(permit);
        });
    }

    /// Claims due sessions and reconciles them until `stop`.
    async fn claim(self: Arc<Self>, tasks: TaskTracker, permits: Arc<Semaphore>, stop: CancellationToken) {
        let mut wait = POLL_INTERVAL;
        let mut retried_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let mut due = match self.store.claim_due(BATCH, CLAIM_LEASE).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%error, "claiming due sessions failed");
                    self.freshness.store_unavailable();
                    wait = CLAIM_RETRY_DELAY;
                    continue;
                }
            };
            wait = if due.len() == BATCH {
                Duration::ZERO
            } else {
                POLL_INTERVAL
            };
            // The store answers again. Of several servers one may still be unavailable, so
            // retries leave room for other sessions, and are as rare as those of a claim.
            if retried_at.elapsed() >= CLAIM_RETRY_DELAY {
                retried_at = Instant::now();
                let free = permits.available_permits().saturating_sub(BATCH / 2);
                due.extend(self.retries.take(free));
            }
            for key in due {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                    return;
                };
                self.spawn_reconciliation(&tasks, key, permit);
            }
        }
    }

    /// Reconciles every session whose local compute is missing. Local compute ends
    /// with its manager, without an event that would make the session due.
    async fn sweep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let wait = match self.computes.local().await {
                Some(there) => {
                    if let Err(error) = self.sweep_once(&there).await {
                        tracing::warn!(%error, "searching for sessions without compute failed");
                    }
                    SWEEP_INTERVAL
                }
                None => LEADER_CHECK_INTERVAL,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn sweep_once(&self, there: &HashSet<SessionKey>) -> Result<(), Error> {
        for cluster in self.definitions.all::<Cluster>().await? {
            if !self.computes.dies_with_manager(&cluster) {
                continue;
            }
            let mut after = None;
            loop {
                let keys = self
                    .store
                    .list_live_on_cluster(&cluster.name, after.as_ref(), SWEEP_PAGE)
                    .await?;
                let Some(last) = keys.last().cloned() else { break };
                after = Some(last);
                for key in keys.into_iter().filter(|key| !there.contains(key)) {
                    if self.enqueue_sender.send(key).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Reconciles one session. A request during a reconciliation repeats it once
    /// afterwards, because it may have read the state before the request.
    pub(crate) async fn reconcile(&self, key: &SessionKey) {
        match self.in_progress().entry(key.clone()) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                return;
            }
            Entry::Vacant(first) => {
                first.insert(false);
            }
        }
        let mut reconciliation = Reconciliation {
            reconciler: self,
            key,
            ended: false,
        };
        while {
            let span = root_span!(
                "reconcile",
                session = %key.id,
                otel.status_code = tracing::field::Empty,
            );
            let outcome = self.reconcile_until_settled(key).instrument(span.clone()).await;
            self.metrics.reconciled(outcome.is_ok());
            if let Err(error) = outcome {
                span.record("otel.status_code", "ERROR");
                tracing::warn!(parent: &span, session = %key.id, %error, "reconciling a session failed; it is retried when the store is available, or when its claim expires");
                if matches!(error, Error::Unavailable(_) | Error::Full) {
                    self.retries.add(key);
                }
            }
            reconciliation.must_repeat()
        } {}
    }

    fn in_progress(&self) -> MutexGuard<'_, HashMap<SessionKey, bool>> {
        self.in_progress.lock()
    }

    /// Repeats load, decide and carry out until nothing remains to be done now.
    async fn reconcile_until_settled(&self, key: &SessionKey) -> Result<(), Error> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(loaded) = self.store.get_with_activity(key).await? else {
                return self.remove_dangling_entry(key).await;
            };
            let (cluster, disabled) = self.definitions.load_dependencies(&loaded.session).await?;
            if self
                .close_if_required(&loaded, cluster.as_ref(), &disabled)
                .await?
            {
                continue;
            }
            let decision = self.decide(&loaded, cluster.as_ref()).await?;
            if self.carry_out(&loaded, decision).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Removes the due entry of a session without a record.
    async fn remove_dangling_entry(&self, key: &SessionKey) -> Result<(), Error> {
        match self.store.set_due(key, 0, None).await {
            Err(Error::NotFound) => Ok(()),
            outcome => outcome,
        }
    }

    /// Closes a session if its cluster or its owner requires it. True if the
    /// session must be loaded again.
    async fn close_if_required(
        &self,
        loaded: &Loaded,
        cluster: Option<&Cluster>,
        disabled: &DisabledState,
    ) -> Result<bool, Error> {
        let Some((reason, actor)) = external_close_reason(cluster, disabled) else {
            return Ok(false);
        };
        let (session, now) = (&loaded.session, loaded.at);
        let close = Event::Close { reason };
        let Ok(Some(change)) = machine::apply(session, &close, &actor, now) else {
            return Ok(false);
        };
        let due = Some(now.after(machine::RECHECK));
        match self.commit(session, change, due, loaded.activity).await {
            Ok(_) | Err(Error::Conflict) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Observes compute and decides the next step.
    async fn decide(&self, loaded: &Loaded, cluster: Option<&Cluster>) -> Result<Decision, Error> {
        let (session, now) = (&loaded.session, loaded.at);
        // Read before the observation that it fences.
        let fence = self.computes.fence(cluster);
        let observation = match session.compute_fence > fence {
            // The lease passed to another manager, which has the session's compute.
            true => None,
            false => self.observe(session, cluster).await,
        };
        let mut activity = loaded.activity;
        let mut step = machine::step(session, observation.as_ref(), activity, now);
        let idles = step.transition.as_ref().is_some_and(Transition::by_idle_timeout);
        if idles && !self.freshness.is_fresh().await? {
            self.metrics.idle_timeout_deferred();
            activity = Activity::Unknown;
            step = machine::step(session, observation.as_ref(), activity, now);
        }
        Ok(Decision {
            fence,
            observation,
            activity,
            step,
        })
    }

    /// Commits a decided transition, or starts the effects of an earlier one. True
    /// if nothing remains to be done now.
    async fn carry_out(&self, loaded: &Loaded, decision: Decision) -> Result<bool, Error> {
        let (session, now) = (&loaded.session, loaded.at);
        let Decision {
            fence,
            observation,
            activity,
            step,
        } = decision;
        let Some(mut change) = step.transition else {
            self.start(session, &step.effects).await;
            let set = self
                .store
                .set_due(&session.key(), session.version, step.due)
                .await;
            return match set {
                Ok(()) => Ok(true),
                Err(Error::Conflict) => Ok(false),
                Err(error) => Err(error),
            };
        };
        if observation.is_some() && session.policy.dedicated {
            change.session.compute_fence = fence;
        }
        match self.commit(session, change, step.due, activity).await {
            Ok(changed) if changed.generation == session.generation => {
                let next = machine::step(&changed, observation.as_ref(), activity, now);
                Ok(next.transition.is_none() && next.effects.is_empty() && next.due == step.due)
            }
            // The new state may require more: reconcile again at once.
            Ok(_) | Err(Error::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Commits a change that was decided from `activity`, then starts its effects.
    async fn commit(
        &self,
        before: &Session,
        change: Transition,
        due: Option<Timestamp>,
        activity: Activity,
    ) -> Result<Session, Error> {
        let sound = invariant::check_transition(Some(before), &change)
            .and_then(|()| invariant::check_idle(&change, activity));
        if let Err(broken) = sound {
            tracing::error!(%broken, "invariant violated by the status machine; the change is discarded");
            return Err(Error::Corrupt(broken.to_string()));
        }
        let by_idle_timeout = change.by_idle_timeout();
        let Transition {
            session,
            record,
            effects,
        } = change;
        let commit = Commit {
            session: session.clone(),
            record: record.clone(),
            due,
        };
        match activity {
            // A report that arrives in the meantime overrides the decision.
            Activity::Quiet { last_activity_at } if by_idle_timeout => {
                self.store.commit_if_idle(commit, last_activity_at).await?;
            }
            Activity::Quiet { .. } | Activity::Busy | Activity::Unknown => self.store.commit(commit).await?,
        }
        tracing::info!(
            session = %session.id, org = %session.org, version = session.version, generation = session.generation,
            from = before.status().as_str(), to = session.status().as_str(), phase = session.state.phase().as_str(),
            reason = record.reason.as_str(), actor = %record.actor, cause = session.status_message,
            detail = session.status_detail, "session changed"
        );
        self.metrics.changed(session.status());
        self.metrics.provisioned(before, &session);
        self.start(&session, &effects).await;
        Ok(session)
    }

    /// Applies an event to a session and starts its effects. `check` authorizes it
    /// on the record that is changed. Returns the session and its activity.
    ///
    /// # Errors
    /// The error of `check`, an event that the state does not allow, a store error,
    /// or a conflict after [`MAX_ATTEMPTS`].
    pub(crate) async fn apply(
        &self,
        key: &SessionKey,
        event: &Event,
        actor: &Actor,
        check: impl Fn(&Session) -> Result<(), Refused>,
    ) -> Result<(Session, Activity), Refused> {
        self.apply_from("", key, event, actor, check).await
    }

    /// The same for a caller with this address.
    pub(crate) async fn apply_from(
        &self,
        address: &str,
        key: &SessionKey,
        event: &Event,
        actor: &Actor,
        check: impl Fn(&Session) -> Result<(), Refused>,
    ) -> Result<(Session, Activity), Refused> {
        for _ in 0..MAX_ATTEMPTS {
            let loaded = self
                .store
                .get_with_activity(key)
                .await
                .map_err(crate::error::store)?;
            let loaded = loaded.ok_or_else(Refused::not_authorized)?;
            let (session, now) = (loaded.session, loaded.at);
            check(&session)?;
            let change = machine::apply(&session, event, actor, now)
                .map_err(|refusal| crate::error::machine(&refusal, &session))?;
            let Some(mut change) = change else {
                return Ok((session, loaded.activity));
            };
            address.clone_into(&mut change.record.address);
            let due = if change.effects.is_empty() {
                machine::next_due(&change.session, loaded.activity, now)
            } else {
                Some(now.after(machine::RECHECK))
            };
            match self.commit(&session, change, due, loaded.activity).await {
                Ok(session) => return Ok((session, loaded.activity)),
                Err(Error::Conflict) => {}
                Err(error) => return Err(crate::error::store(error)),
            }
        }
        Err(Refused::new(
            Reason::Conflict,
            "The session keeps changing. Try again.",
        ))
    }

    /// Whether the cluster has live sessions.
    pub(crate) async fn has_sessions(&self, cluster: &Cluster) -> Result<bool, Refused> {
        let live = self
            .store
            .list_live_on_cluster(&cluster.name, None, 1)
            .await
            .map_err(crate::error::store)?;
        Ok(!live.is_empty())
    }
}

/// What a reconciliation decided, and from what.
struct Decision {
    /// The fencing number of the observation.
    fence: u64,
    observation: Option<Observation>,
    activity: Activity,
    step: Step,
}

/// Why a session must close whatever its own timeouts, and by whom. A session may
/// be created while its cluster is destroyed, or its organization or owner
/// disabled.
fn external_close_reason(
    cluster: Option<&Cluster>,
    disabled: &DisabledState,
) -> Option<(ChangeReason, Actor)> {
    let destroyed = cluster.is_some_and(|cluster| cluster.status == ClusterStatus::Destroyed);
    let destroyed = destroyed.then_some((ChangeReason::ClusterDestroyed, Actor::System));
    destroyed.or_else(|| disabled.close_reason())
}

/// A reconciliation in progress. Its end, even by a panic, permits the next one.
struct Reconciliation<'a> {
    reconciler: &'a Reconciler,
    key: &'a SessionKey,
    ended: bool,
}

impl Reconciliation<'_> {
    /// Whether the reconciliation was requested again in the meantime. If not, it
    /// ends atomically with this check.
    fn must_repeat(&mut self) -> bool {
        let mut in_progress = self.reconciler.in_progress();
        match in_progress.get_mut(self.key) {
            Some(again) if *again => {
                *again = false;
                true
            }
            Some(_) | None => {
                in_progress.remove(self.key);
                self.ended = true;
                false
            }
        }
    }
}

impl Drop for Reconciliation<'_> {
    fn drop(&mut self) {
        // After its end the entry may belong to the next reconciliation.
        if !self.ended {
            self.reconciler.in_progress().remove(self.key);
        }
    }
}
