//! The loop that moves sessions on.
//!
//! Every session has one entry in the store's due-queue. The driver claims
//! what is due, looks at the compute, asks the status machine, commits the
//! change it decided, and only then starts effects. The claim is a lease: if
//! this process dies anywhere between, the entry comes due again elsewhere.

mod effects;

use crate::definitions::DefinitionStore;
use crate::lifecycle::disabling::Standing;
use crate::lifecycle::report_freshness::ReportFreshness;
use crate::metrics::Metrics;
use crate::providers::registry::Providers;
use crate::spark_sessions::Bindings;
use futures::{Stream, StreamExt, stream};
use parking_lot::{Mutex, MutexGuard};
use service_kit::root_span;
use session_core::invariant;
use session_core::machine::{self, Event, Transition};
use session_core::{
    Activity, Actor, ChangeReason, Cluster, ClusterStatus, Reason, Session, SessionKey, Timestamp,
};
use session_proto::error::Refused;
use session_store::{Commit, Error, SessionStore};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// A claimed entry comes due again after this, unless it was dealt with.
const LEASE: Duration = Duration::from_secs(30);
/// How often an empty due-queue is asked again.
const POLL: Duration = Duration::from_millis(250);
/// How many entries one claim takes, and how many are looked at together.
const BATCH: usize = 64;
/// How often a lost race is run again before the entry is left to its lease.
const RACES: usize = 8;
/// How often dedicated local compute is compared with the records.
const SWEEP: Duration = Duration::from_secs(60);
/// How often a manager asks whether it is its turn to run local compute.
const TURN: Duration = Duration::from_secs(2);
/// Sessions that somebody asked to look at and nobody has yet.
const MAX_ENQUEUED: usize = 65_536;

/// Moves sessions on, by their clocks and by what is asked of them.
#[derive(Debug)]
pub(crate) struct Reconciler {
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    computes: Providers,
    pub(crate) bindings: Arc<Bindings>,
    enqueue_sender: mpsc::Sender<SessionKey>,
    /// The sessions being looked at, and whether to look once more after it.
    looking: Mutex<HashMap<SessionKey, bool>>,
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
            looking: Mutex::default(),
            freshness,
            metrics,
        };
        (Arc::new(reconciler), enqueued)
    }

    /// Looks at a session soon. When too many wait, its due entry does it later.
    pub(crate) fn enqueue(&self, key: SessionKey) {
        let _ = self.enqueue_sender.try_send(key);
    }

    /// Drives until cancelled; the looks under way are finished, bounded by
    /// their own time limits.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut enqueued: mpsc::Receiver<SessionKey>,
        stop: CancellationToken,
    ) {
        let looks = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(BATCH));
        let claimer = looks.spawn(Arc::clone(&self).claim(looks.clone(), Arc::clone(&slots), stop.clone()));
        let sweeper = looks.spawn(Arc::clone(&self).sweep(stop.clone()));
        let changed = self.computes.watch().map(|changed| changed.key);
        let enqueued = stream::poll_fn(move |cx| enqueued.poll_recv(cx));
        tokio::join!(
            self.hear(changed, &looks, &slots, &stop),
            self.hear(enqueued, &looks, &slots, &stop),
        );
        looks.close();
        drop((claimer, sweeper));
        looks.wait().await;
    }

    /// Looks at every session that is named.
    async fn hear(
        self: &Arc<Self>,
        names: impl Stream<Item = SessionKey>,
        looks: &TaskTracker,
        slots: &Arc<Semaphore>,
        stop: &CancellationToken,
    ) {
        let mut names = pin!(names.take_until(stop.cancelled()));
        while let Some(key) = names.next().await {
            let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
                return;
            };
            let this = Arc::clone(self);
            looks.spawn(async move {
                this.look(&key).await;
                drop(slot);
            });
        }
    }

    async fn claim(self: Arc<Self>, looks: TaskTracker, slots: Arc<Semaphore>, stop: CancellationToken) {
        let mut wait = POLL;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let due = match self.store.claim_due(BATCH, LEASE).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%error, "the due-queue cannot be read");
                    self.freshness.lost();
                    wait = Duration::from_secs(1);
                    continue;
                }
            };
            wait = if due.len() == BATCH { Duration::ZERO } else { POLL };
            for key in due {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                    return;
                };
                let this = Arc::clone(&self);
                looks.spawn(async move {
                    this.look(&key).await;
                    drop(slot);
                });
            }
        }
    }

    /// Dedicated local compute dies with its manager and leaves no trace that
    /// would make a session due: so look at every session that has none.
    async fn sweep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let wait = match self.computes.local().await {
                Some(there) => {
                    if let Err(error) = self.sweep_once(&there).await {
                        tracing::warn!(%error, "sessions cannot be compared with their compute");
                    }
                    SWEEP
                }
                None => TURN,
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
                    .list_live_on_cluster(&cluster.name, after.as_ref(), 256)
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

    /// Looks at one session. What is heard of it during a look makes for one
    /// more look after it, because the first may have seen the world before.
    pub(crate) async fn look(&self, key: &SessionKey) {
        match self.looking().entry(key.clone()) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                return;
            }
            Entry::Vacant(first) => {
                first.insert(false);
            }
        }
        let mut looking = Looking {
            reconciler: self,
            key,
            over: false,
        };
        while {
            let span = root_span!(
                "reconcile",
                session = %key.id,
                otel.status_code = tracing::field::Empty,
            );
            let outcome = self.look_until_settled(key).instrument(span.clone()).await;
            self.metrics.looked(outcome.is_ok());
            if let Err(error) = outcome {
                span.record("otel.status_code", "ERROR");
                tracing::warn!(parent: &span, session = %key.id, %error, "a session could not be moved on; its lease brings it back");
            }
            looking.again()
        } {}
    }

    fn looking(&self) -> MutexGuard<'_, HashMap<SessionKey, bool>> {
        self.looking.lock()
    }

    async fn look_until_settled(&self, key: &SessionKey) -> Result<(), Error> {
        for _ in 0..RACES {
            let Some(loaded) = self.store.get_with_activity(key).await? else {
                // Drops the stray entry.
                return match self.store.set_due(key, 0, None).await {
                    Err(Error::NotFound) => Ok(()),
                    outcome => outcome,
                };
            };
            let (session, now) = (loaded.session, loaded.at);
            let (cluster, standing) = self.definitions.ground_of(&session).await?;
            if let Some((reason, actor)) = closed_from_outside(cluster.as_ref(), &standing) {
                let close = Event::Close { reason };
                if let Ok(Some(change)) = machine::apply(&session, &close, &actor, now) {
                    match self
                        .commit(
                            &session,
                            change,
                            Some(now.after(machine::RECHECK)),
                            loaded.activity,
                        )
                        .await
                    {
                        Ok(_) | Err(Error::Conflict) => continue,
                        Err(error) => return Err(error),
                    }
                }
            }
            // Read before what it bounds.
            let fence = self.computes.fence(cluster.as_ref());
            let observation = match session.compute_fence > fence {
                // Our lease passed on: what we see is not the session's compute.
                true => None,
                false => self.observe(&session, cluster.as_ref()).await,
            };
            let mut activity = loaded.activity;
            let mut step = machine::step(&session, observation.as_ref(), activity, now);
            let idles = step.transition.as_ref().is_some_and(Transition::by_idle_timeout);
            if idles && !self.freshness.is_known().await? {
                self.metrics.idle_put_off();
                activity = Activity::Unknown;
                step = machine::step(&session, observation.as_ref(), activity, now);
            }
            if let Some(mut change) = step.transition {
                if observation.is_some() && session.policy.dedicated {
                    change.session.compute_fence = fence;
                }
                match self.commit(&session, change, step.due, activity).await {
                    Ok(changed) if changed.generation == session.generation => {
                        let next = machine::step(&changed, observation.as_ref(), activity, now);
                        if next.transition.is_none() && next.effects.is_empty() && next.due == step.due {
                            return Ok(());
                        }
                    }
                    // The new state may have more to do: look again at once.
                    Ok(_) | Err(Error::Conflict) => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            self.start(&session, &step.effects).await;
            return match self.store.set_due(key, session.version, step.due).await {
                Err(Error::Conflict) => continue,
                outcome => outcome,
            };
        }
        Ok(())
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
            tracing::error!(%broken, "the status machine decided something impossible; nothing was written");
            return Err(Error::Corrupt(broken.to_string()));
        }
        let by_idle_timeout = change.by_idle_timeout();
        let Transition {
            session,
            record,
            effects,
        } = change;
        tracing::info!(
            session = %session.id, org = %session.org, version = session.version, generation = session.generation,
            from = before.status().as_str(), to = session.status().as_str(), phase = session.state.phase().as_str(),
            reason = record.reason.as_str(), actor = %record.actor, cause = session.status_message,
            detail = session.status_detail, "session changed"
        );
        let commit = Commit {
            session: session.clone(),
            record,
            due,
        };
        match activity {
            // What is reported from here on wins over the decision.
            Activity::Quiet { last_activity_at } if by_idle_timeout => {
                self.store.commit_if_idle(commit, last_activity_at).await?;
            }
            Activity::Quiet { .. } | Activity::Busy | Activity::Unknown => self.store.commit(commit).await?,
        }
        self.metrics.changed(session.status());
        self.metrics.provisioned(before, &session);
        self.start(&session, &effects).await;
        Ok(session)
    }

    /// Carries out what somebody asked of a session they may manage, again
    /// when a race is lost. `check` sees the very record that is changed.
    pub(crate) async fn ask(
        &self,
        key: &SessionKey,
        event: &Event,
        actor: &Actor,
        check: impl Fn(&Session) -> Result<(), Refused>,
    ) -> Result<(Session, Activity), Refused> {
        self.ask_from("", key, event, actor, check).await
    }

    /// The same, for somebody who calls from this address.
    pub(crate) async fn ask_from(
        &self,
        address: &str,
        key: &SessionKey,
        event: &Event,
        actor: &Actor,
        check: impl Fn(&Session) -> Result<(), Refused>,
    ) -> Result<(Session, Activity), Refused> {
        for _ in 0..RACES {
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

    /// Does any live session run on this cluster?
    pub(crate) async fn has_sessions(&self, cluster: &Cluster) -> Result<bool, Refused> {
        let live = self
            .store
            .list_live_on_cluster(&cluster.name, None, 1)
            .await
            .map_err(crate::error::store)?;
        Ok(!live.is_empty())
    }
}

/// What ends a session whatever its own clocks say, and by whom. A create may
/// slip in while its cluster is destroyed, or its organization or owner disabled.
fn closed_from_outside(cluster: Option<&Cluster>, standing: &Standing) -> Option<(ChangeReason, Actor)> {
    let destroyed = cluster.is_some_and(|cluster| cluster.status == ClusterStatus::Destroyed);
    let destroyed = destroyed.then_some((ChangeReason::ClusterDestroyed, Actor::System));
    destroyed.or_else(|| standing.closes())
}

/// A look on its way; its end, even by a panic, lets the next one begin.
struct Looking<'a> {
    reconciler: &'a Reconciler,
    key: &'a SessionKey,
    over: bool,
}

impl Looking<'_> {
    /// Was something heard meanwhile? If not, the look is over in the same moment.
    fn again(&mut self) -> bool {
        let mut looking = self.reconciler.looking();
        match looking.get_mut(self.key) {
            Some(again) if *again => {
                *again = false;
                true
            }
            Some(_) | None => {
                looking.remove(self.key);
                self.over = true;
                false
            }
        }
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        // When it is over, the entry may be the next look's already.
        if !self.over {
            self.reconciler.looking().remove(self.key);
        }
    }
}
