//! Orphan collection: compares compute with the records and deletes orphans.
//!
//! Once a minute it lists all compute and then reads the records, in this order,
//! so that a missing record is not one that was written later. [`decide`] is pure.
//! Deletion needs proof: the session ended, or has a newer generation. Compute
//! without any record is quarantined for 15 minutes, and is deleted only if the
//! store has lost nothing since before it was started. A pass with too many
//! deletions deletes nothing and logs an error.

use crate::definitions::DefinitionStore;
use crate::lifecycle::reconciler::Reconciler;
use crate::lifecycle::report_freshness::ReportFreshness;
use crate::metrics::{ComputeState, Metrics, Proof};
use crate::providers::installation::{Installation, InstallationIdentity};
use crate::providers::registry::Providers;
use compute::{ComputeSpec, Found};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use session_core::{OrgId, Session, SessionKey, State, Timestamp};
use session_store::{Error, ListQuery, SessionStore};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two passes.
const PASS_INTERVAL: Duration = Duration::from_secs(60);
/// Time until the next pass if proven orphans are within their grace period.
const REPEAT_INTERVAL: Duration = Duration::from_secs(6);
/// Time for which proven orphans are left to the reconciler.
const GRACE_PERIOD: Duration = Duration::from_secs(5);
/// Time for which compute without a record is kept.
const QUARANTINE: Duration = Duration::from_secs(15 * 60);
/// The deletion limit of a pass is a tenth of all compute, between these two.
const MAX_DELETION_LIMIT: usize = 20;
const MIN_DELETION_LIMIT: usize = 3;
/// Records that are read concurrently.
const MAX_CONCURRENT_READS: usize = 16;

type Id = (SessionKey, u64);

/// Compares compute with the record of its session.
fn classify(found: &Found, record: Option<&Session>, installation: &Installation) -> ComputeState {
    if found.install_id != installation.id {
        return ComputeState::OtherInstallation;
    }
    let Some(session) = record else {
        return ComputeState::Quarantined;
    };
    if found.generation > session.generation {
        // The record was rolled back, so it proves nothing.
        return ComputeState::NewerThanRecord;
    }
    match session.state {
        State::Closed | State::Failed => ComputeState::SessionEnded,
        State::Pending { .. }
        | State::Active { .. }
        | State::IdleKept { .. }
        | State::IdleReleasing { .. }
        | State::IdleReleased { .. }
            if found.generation < session.generation =>
        {
            ComputeState::Replaced
        }
        State::IdleReleased { .. } => ComputeState::Releasing,
        State::Pending { .. }
        | State::Active { .. }
        | State::IdleKept { .. }
        | State::IdleReleasing { .. } => ComputeState::InUse,
    }
}

/// The input of a pass.
#[derive(Debug)]
struct Snapshot {
    /// The store's time.
    now: Timestamp,
    /// The time by a monotonic clock, since the start of this manager.
    at: Duration,
    installation: Installation,
    /// How long this manager has reached the store without interruption.
    store_available_for: Duration,
    /// Compute, and the record that was read after it was listed.
    found: Vec<(Found, Option<Session>)>,
    /// Organizations with at least one record, of those with compute without one.
    orgs_with_records: BTreeSet<OrgId>,
}

/// Since when compute has had its state, by [`Snapshot::at`].
type History = BTreeMap<Id, (ComputeState, Duration)>;

/// The result of a pass.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    release: Vec<(Found, Proof)>,
    /// Sessions to reconcile, which releases their compute.
    reconcile: Vec<SessionKey>,
    counts: BTreeMap<ComputeState, u64>,
    /// The number of orphans, if it exceeds the deletion limit.
    halted: Option<usize>,
    deletion_limit: usize,
    /// Whether proven orphans are within their grace period.
    repeat: bool,
}

fn decide(snapshot: &Snapshot, history: &mut History) -> Plan {
    let mut plan = Plan::default();
    let before = std::mem::take(history);
    let mut own = 0;
    for (found, record) in &snapshot.found {
        let state = classify(found, record.as_ref(), &snapshot.installation);
        *plan.counts.entry(state).or_default() += 1;
        own += usize::from(state != ComputeState::OtherInstallation);
        let id = (found.key.clone(), found.generation);
        let since = match before.get(&id) {
            Some((unchanged, since)) if *unchanged == state => *since,
            Some(_) | None => snapshot.at,
        };
        history.insert(id, (state, since));
        let age = snapshot.at.saturating_sub(since);
        let proof = match state {
            ComputeState::InUse | ComputeState::NewerThanRecord | ComputeState::OtherInstallation => None,
            ComputeState::Releasing => {
                plan.reconcile.push(found.key.clone());
                None
            }
            ComputeState::SessionEnded => Some((Proof::SessionEnded, age >= GRACE_PERIOD)),
            ComputeState::Replaced => Some((Proof::Replaced, age >= GRACE_PERIOD)),
            ComputeState::Quarantined => {
                let started = snapshot.now.before(found.age);
                let nothing_lost = started > snapshot.installation.whole_since
                    && snapshot.store_available_for >= QUARANTINE
                    && snapshot.orgs_with_records.contains(&found.key.org);
                (age >= QUARANTINE && nothing_lost).then_some((Proof::Quarantined, true))
            }
        };
        match proof {
            Some((proof, true)) => plan.release.push((found.clone(), proof)),
            Some((_, false)) => plan.repeat = true,
            None => {}
        }
    }
    plan.deletion_limit = (own / 10).clamp(MIN_DELETION_LIMIT, MAX_DELETION_LIMIT);
    if plan.release.len() > plan.deletion_limit {
        plan.halted = Some(plan.release.len());
        plan.release.clear();
    }
    plan
}

/// Runs the passes.
#[derive(Debug)]
pub(crate) struct OrphanCollector {
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    computes: Providers,
    reconciler: Arc<Reconciler>,
    freshness: Arc<ReportFreshness>,
    metrics: Arc<Metrics>,
    identity: InstallationIdentity,
    history: Mutex<History>,
    started: Instant,
}

impl OrphanCollector {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        definitions: DefinitionStore,
        computes: Providers,
        reconciler: Arc<Reconciler>,
        freshness: Arc<ReportFreshness>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            identity: InstallationIdentity::new(Arc::clone(&store)),
            store,
            definitions,
            computes,
            reconciler,
            freshness,
            metrics,
            history: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Runs passes until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        loop {
            let outcome = self.pass().await;
            self.metrics.pass_finished(outcome.is_ok());
            let wait = match outcome {
                Ok(true) => REPEAT_INTERVAL,
                Ok(false) => PASS_INTERVAL,
                Err(error) => {
                    tracing::warn!(%error, "orphan collection failed");
                    // Grace periods and quarantines begin again.
                    self.history().clear();
                    PASS_INTERVAL
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One pass. True if the next one should follow after [`REPEAT_INTERVAL`].
    async fn pass(&self) -> Result<bool, Error> {
        let Some(installation) = self.identity.confirm().await? else {
            tracing::error!(
                "orphan collection halted: the state store belongs to another installation than at the \
                 start of this session-manager; restart it"
            );
            self.history().clear();
            return Ok(false);
        };
        let snapshot = self.snapshot(installation).await?;
        let plan = decide(&snapshot, &mut self.history());
        self.metrics.compared(&plan.counts, plan.halted.is_some());
        log_findings(&plan, snapshot.found.len());
        for key in plan.reconcile {
            self.reconciler.enqueue(key);
        }
        for (found, proof) in &plan.release {
            self.release(found, *proof).await?;
        }
        Ok(plan.repeat)
    }

    async fn snapshot(&self, installation: Installation) -> Result<Snapshot, Error> {
        let found = self.computes.inventory().await;
        let found: Vec<(Found, Option<Session>)> = stream::iter(found)
            .map(async |found| {
                let record = self.store.get(&found.key).await?;
                Ok::<_, Error>((found, record))
            })
            .buffered(MAX_CONCURRENT_READS)
            .try_collect()
            .await?;
        let mut orgs_with_records = BTreeSet::new();
        let unknown = found.iter().filter(|(_, record)| record.is_none());
        for org in unknown.map(|(found, _)| &found.key.org).collect::<BTreeSet<_>>() {
            let any = ListQuery::of_org(org.clone(), 1);
            if !self.store.list(&any).await?.sessions.is_empty() {
                orgs_with_records.insert(org.clone());
            }
        }
        let now = self.store.now().await?;
        Ok(Snapshot {
            now,
            at: self.started.elapsed(),
            installation,
            store_available_for: self.freshness.available_for(now),
            found,
            orgs_with_records,
        })
    }

    async fn release(&self, found: &Found, proof: Proof) -> Result<(), Error> {
        let Some(cluster) = self.definitions.cluster(&found.cluster).await? else {
            tracing::warn!(session = %found.key.id, cluster = %found.cluster, "releasing an orphan skipped: its cluster is not defined");
            return Ok(());
        };
        tracing::warn!(
            session = %found.key.id, generation = found.generation, proof = ?proof,
            "releasing an orphan"
        );
        let spec = ComputeSpec {
            key: found.key.clone(),
            generation: found.generation,
            cluster,
            catalog: None,
        };
        let outcome = self.computes.release(&spec).await;
        self.metrics.orphan_released(proof);
        if let Err(error) = outcome {
            tracing::warn!(session = %found.key.id, %error, "releasing an orphan failed; it is retried");
        }
        Ok(())
    }

    fn history(&self) -> parking_lot::MutexGuard<'_, History> {
        self.history.lock()
    }
}

/// Logs what an operator must act on or know of; `total` is the number of computes.
fn log_findings(plan: &Plan, total: usize) {
    if let Some(count) = plan.halted {
        tracing::error!(
            count,
            limit = plan.deletion_limit,
            total,
            "orphan collection halted: the orphans exceed the deletion limit"
        );
    }
    for (state, finding) in [
        (
            ComputeState::NewerThanRecord,
            "compute is newer than its session's record: the state store was rolled back",
        ),
        (
            ComputeState::Quarantined,
            "compute without a record is quarantined",
        ),
    ] {
        let count = plan.counts.get(&state).copied().unwrap_or(0);
        if count > 0 {
            tracing::warn!(count, "{finding}");
        }
    }
}

#[cfg(test)]
mod tests;
