//! Compute against records: what nobody wants any more is found and given back.
//!
//! Once a minute all compute is listed, then its records are read, in this
//! order, so that compute without a record never had one later. [`decide`] is
//! pure. Deleting needs proof: the session ended, or has a newer generation.
//! Compute without any record is kept under watch for 15 minutes, and goes only
//! if nothing was lost from the store since before it was made. A pass that
//! would delete too much deletes nothing and calls for a human.

use crate::definitions::DefinitionStore;
use crate::lifecycle::reconciler::Reconciler;
use crate::lifecycle::report_freshness::ReportFreshness;
use crate::metrics::{Metrics, Proof, Standing};
use crate::providers::installation::{Identity, Install};
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

/// How often compute is compared with the records.
pub(crate) const PASS: Duration = Duration::from_secs(60);
/// How soon again when something is about to be given back.
const SOON: Duration = Duration::from_secs(6);
/// What is proven to be superfluous is left to the usual way for so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// So long compute without a record is kept under watch.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(15 * 60);
/// More than so many deletions in one pass, or than a tenth of all, need a human.
const MOST: usize = 20;
/// So few are no mass deletion, however little there is in all.
const FEW: usize = 3;
const TOGETHER: usize = 16;

type Id = (SessionKey, u64);

/// How compute stands to its session's record.
fn judge(found: &Found, record: Option<&Session>, install: &Install) -> Standing {
    if found.install_id != install.id {
        return Standing::Foreign;
    }
    let Some(session) = record else {
        return Standing::Unknown;
    };
    if found.generation > session.generation {
        // The record went back in time; nothing can be proven by it.
        return Standing::Ahead;
    }
    match session.state {
        State::Closed | State::Failed => Standing::Ended,
        State::Pending { .. }
        | State::Active { .. }
        | State::IdleKept { .. }
        | State::IdleReleasing { .. }
        | State::IdleReleased { .. }
            if found.generation < session.generation =>
        {
            Standing::Replaced
        }
        State::IdleReleased { .. } => Standing::Leaving,
        State::Pending { .. }
        | State::Active { .. }
        | State::IdleKept { .. }
        | State::IdleReleasing { .. } => Standing::Wanted,
    }
}

/// All that a pass sees.
#[derive(Debug)]
struct Sight {
    /// The store's present.
    now: Timestamp,
    /// The present of a clock that never jumps.
    at: Duration,
    install: Install,
    /// How long this manager has had the store without a break.
    calm: Duration,
    /// Compute, and the record that was read after it was listed.
    found: Vec<(Found, Option<Session>)>,
    /// Organizations that have any record at all, of those that were asked for.
    peopled: BTreeSet<OrgId>,
}

/// Since when compute has stood as it does, by [`Sight::at`].
type Memory = BTreeMap<Id, (Standing, Duration)>;

/// What a pass does.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    release: Vec<(Found, Proof)>,
    /// Sessions that must be looked at: their own entry gives back.
    look: Vec<SessionKey>,
    counts: BTreeMap<Standing, u64>,
    /// So many would have been given back, which is too many at once.
    braked: Option<usize>,
    /// Something is about to be given back.
    soon: bool,
}

fn decide(sight: &Sight, memory: &mut Memory) -> Plan {
    let mut plan = Plan::default();
    let before = std::mem::take(memory);
    let mut own = 0;
    for (found, record) in &sight.found {
        let standing = judge(found, record.as_ref(), &sight.install);
        *plan.counts.entry(standing).or_default() += 1;
        own += usize::from(standing != Standing::Foreign);
        let id = (found.key.clone(), found.generation);
        let since = match before.get(&id) {
            Some((as_before, since)) if *as_before == standing => *since,
            Some(_) | None => sight.at,
        };
        memory.insert(id, (standing, since));
        let stood = sight.at.saturating_sub(since);
        let proof = match standing {
            Standing::Wanted | Standing::Ahead | Standing::Foreign => None,
            Standing::Leaving => {
                plan.look.push(found.key.clone());
                None
            }
            Standing::Ended => Some((Proof::Ended, stood >= PATIENCE)),
            Standing::Replaced => Some((Proof::Replaced, stood >= PATIENCE)),
            Standing::Unknown => {
                let made = sight.now.before(found.age);
                let sure = made > sight.install.whole_since
                    && sight.calm >= QUARANTINE
                    && sight.peopled.contains(&found.key.org);
                (stood >= QUARANTINE && sure).then_some((Proof::Quarantined, true))
            }
        };
        match proof {
            Some((proof, true)) => plan.release.push((found.clone(), proof)),
            Some((_, false)) => plan.soon = true,
            None => {}
        }
    }
    if plan.release.len() > (own / 10).clamp(FEW, MOST) {
        plan.braked = Some(plan.release.len());
        plan.release.clear();
    }
    plan
}

/// Makes the passes.
#[derive(Debug)]
pub(crate) struct OrphanCollector {
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    computes: Providers,
    reconciler: Arc<Reconciler>,
    freshness: Arc<ReportFreshness>,
    metrics: Arc<Metrics>,
    identity: Identity,
    memory: Mutex<Memory>,
    origin: Instant,
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
            identity: Identity::new(Arc::clone(&store)),
            store,
            definitions,
            computes,
            reconciler,
            freshness,
            metrics,
            memory: Mutex::default(),
            origin: Instant::now(),
        }
    }

    /// Passes until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        loop {
            let outcome = self.pass().await;
            self.metrics.reconciled(outcome.is_ok());
            let wait = match outcome {
                Ok(true) => SOON,
                Ok(false) => PASS,
                Err(error) => {
                    tracing::warn!(%error, "compute cannot be compared with the records");
                    // What was seen before counts for nothing now.
                    self.memory().clear();
                    PASS
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// True if another pass should follow soon.
    async fn pass(&self) -> Result<bool, Error> {
        let Some(install) = self.identity.confirm().await? else {
            tracing::error!(
                "the state store belongs to another installation than this session-manager began with; \
                 no compute is given back by comparison until it is started again"
            );
            self.memory().clear();
            return Ok(false);
        };
        let sight = self.see(install).await?;
        let plan = decide(&sight, &mut self.memory());
        self.metrics.compared(&plan.counts, plan.braked.is_some());
        if let Some(count) = plan.braked {
            tracing::error!(
                count,
                of = sight.found.len(),
                "so much compute belongs to no session that none of it is given back; look into it"
            );
        }
        for (standing, told) in [
            (
                Standing::Ahead,
                "compute is newer than its session's record: the store went back in time",
            ),
            (Standing::Unknown, "compute without a record is kept under watch"),
        ] {
            let count = plan.counts.get(&standing).copied().unwrap_or(0);
            if count > 0 {
                tracing::warn!(count, "{told}");
            }
        }
        for key in plan.look {
            self.reconciler.enqueue(key);
        }
        for (found, proof) in &plan.release {
            self.release(found, *proof).await?;
        }
        Ok(plan.soon)
    }

    async fn see(&self, install: Install) -> Result<Sight, Error> {
        let found = self.computes.inventory().await;
        let found: Vec<(Found, Option<Session>)> = stream::iter(found)
            .map(async |found| {
                let record = self.store.get(&found.key).await?;
                Ok::<_, Error>((found, record))
            })
            .buffered(TOGETHER)
            .try_collect()
            .await?;
        let mut peopled = BTreeSet::new();
        let unknown = found.iter().filter(|(_, record)| record.is_none());
        for org in unknown.map(|(found, _)| &found.key.org).collect::<BTreeSet<_>>() {
            let any = ListQuery::of_org(org.clone(), 1);
            if !self.store.list(&any).await?.sessions.is_empty() {
                peopled.insert(org.clone());
            }
        }
        let now = self.store.now().await?;
        Ok(Sight {
            now,
            at: self.origin.elapsed(),
            install,
            calm: self.freshness.calm(now),
            found,
            peopled,
        })
    }

    async fn release(&self, found: &Found, proof: Proof) -> Result<(), Error> {
        let Some(cluster) = self.definitions.cluster(&found.cluster).await? else {
            tracing::warn!(session = %found.key.id, cluster = %found.cluster, "superfluous compute of a cluster that is gone stays");
            return Ok(());
        };
        tracing::warn!(
            session = %found.key.id, generation = found.generation, proof = ?proof,
            "compute that no session wants is given back"
        );
        let spec = ComputeSpec {
            key: found.key.clone(),
            generation: found.generation,
            cluster,
            catalog: None,
        };
        let outcome = self.computes.release(&spec).await;
        self.metrics.reconcile_released(proof);
        if let Err(error) = outcome {
            tracing::warn!(session = %found.key.id, %error, "it could not be given back yet");
        }
        Ok(())
    }

    fn memory(&self) -> parking_lot::MutexGuard<'_, Memory> {
        self.memory.lock()
    }
}

#[cfg(test)]
mod tests;
