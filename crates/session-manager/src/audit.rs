//! Writing and exporting the audit trail.
//!
//! The store itself records changes of sessions, issued tokens and their first
//! use. Methods record everything else with one line:
//! `self.api.audit(&who, AuditAction::…, |record| record.on(name)).await`.
//! The trail is exported as log lines of the target `audit`, by the manager that
//! holds the export lease, so that each record is one line of one manager.

use crate::caller::AuthenticatedCaller;
use crate::metrics::Metrics;
use service_kit::limiter::RateLimiter;
use session_core::{Actor, AuditAction, AuditRecord, Clock, OrgId};
use session_proto::error::Refused;
use session_store::{Error, SessionStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Rejected calls that are recorded per second, after a burst of ten times as
/// many: a caller that is rejected must not be able to flood the trail.
const MAX_REFUSALS_PER_SECOND: u32 = 10;
const MAX_REFUSAL_BURST: u32 = 100;
/// Records of rejected calls that wait for the store.
const MAX_WAITING: usize = 1024;
/// Time between two exports.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Term of the export lease; each export renews it.
const LEASE: Duration = Duration::from_secs(15);
const LEASE_NAME: &str = "audit-export";
/// Records of one partition that one read returns.
const PAGE: usize = 256;

/// Writes the audit trail. Rejected calls do not wait for the store.
#[derive(Debug)]
pub(crate) struct Trail {
    store: Arc<dyn SessionStore>,
    clock: Arc<dyn Clock>,
    later: mpsc::Sender<AuditRecord>,
    refusals: RateLimiter<()>,
    metrics: Arc<Metrics>,
}

impl Trail {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, mpsc::Receiver<AuditRecord>) {
        let (later, waiting) = mpsc::channel(MAX_WAITING);
        let refusals = RateLimiter::new(MAX_REFUSALS_PER_SECOND, Duration::from_secs(1), MAX_REFUSAL_BURST);
        let trail = Self {
            store,
            clock,
            later,
            refusals,
            metrics,
        };
        (Arc::new(trail), waiting)
    }

    /// Records a rejected call. Above the rate limit it is only counted.
    pub(crate) fn refused(
        &self,
        action: AuditAction,
        refused: &Refused,
        more: impl FnOnce(AuditRecord) -> AuditRecord,
    ) {
        let room = self.refusals.take(&(), Instant::now()).is_ok();
        let record = AuditRecord::new(self.clock.now(), action).denied(refused.reason.as_str());
        if !room || self.later.try_send(more(record)).is_err() {
            self.metrics.audit_dropped();
        }
    }

    /// Records an action of `who`. If the store rejects the record, it is logged
    /// instead.
    pub(crate) async fn record(
        &self,
        who: &AuthenticatedCaller,
        action: AuditAction,
        more: impl FnOnce(AuditRecord) -> AuditRecord,
    ) {
        let record = AuditRecord::new(self.clock.now(), action)
            .by(Actor::Principal(who.id.clone()))
            .from_address(&who.address)
            .of_org(&who.org);
        write(&*self.store, &more(record)).await;
    }
}

async fn write(store: &dyn SessionStore, record: &AuditRecord) {
    if let Err(error) = store.append_audit(record).await {
        tracing::error!(%error, "storing an audit record failed; the next line is its only copy");
        line(record);
    }
}

/// Writes the records of rejected calls until `stop`, then those that still wait.
pub(crate) async fn write_later(
    store: Arc<dyn SessionStore>,
    mut waiting: mpsc::Receiver<AuditRecord>,
    stop: CancellationToken,
) {
    while let Some(Some(record)) = stop.run_until_cancelled(waiting.recv()).await {
        write(&*store, &record).await;
    }
    while let Ok(record) = waiting.try_recv() {
        write(&*store, &record).await;
    }
}

/// Exports the trail to the log until `stop`, whenever this manager has the lease.
pub(crate) async fn export(store: Arc<dyn SessionStore>, stop: CancellationToken) {
    let owner = format!("m-{:016x}", rand::random::<u64>());
    let mut warned = false;
    while stop
        .run_until_cancelled(tokio::time::sleep(EXPORT_INTERVAL))
        .await
        .is_some()
    {
        // If the log filter drops these lines, a manager whose filter does not exports them.
        if !tracing::enabled!(target: "audit", tracing::Level::INFO) {
            continue;
        }
        match export_once(&*store, &owner).await {
            Ok(()) => warned = false,
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%error, "exporting the audit trail failed; it is repeated later");
            }
            Err(_) => {}
        }
    }
    // Another manager need not wait for the end of the lease.
    let _ = store.release_lease(LEASE_NAME, &owner).await;
}

async fn export_once(store: &dyn SessionStore, owner: &str) -> Result<(), Error> {
    if store.acquire_lease(LEASE_NAME, owner, LEASE).await?.is_none() {
        return Ok(());
    }
    let begun = Instant::now();
    for partition in 0..OrgId::PARTITIONS {
        let mut place = store.audit_export_position(partition).await?;
        // Well within the lease, so that two managers never export the same record.
        while begun.elapsed() < LEASE / 3 {
            let page = store.read_audit(partition, &place, PAGE).await?;
            let Some(last) = page.last() else { break };
            place.clone_from(&last.position);
            // Lines first: a crash in between may repeat records but loses none.
            page.iter().for_each(|audited| line(&audited.record));
            store.set_audit_export_position(partition, &place).await?;
        }
    }
    Ok(())
}

/// Logs one record as one line.
fn line(record: &AuditRecord) {
    let text = |value: Option<String>| value.unwrap_or_default();
    tracing::info!(
        target: "audit",
        at = %record.at,
        at_ms = record.at.as_millis(),
        action = record.action.as_str(),
        outcome = record.outcome.as_str(),
        reason = record.reason,
        actor = text(record.actor.as_ref().map(ToString::to_string)),
        address = record.address,
        org = text(record.org.as_ref().map(ToString::to_string)),
        session = text(record.session.as_ref().map(ToString::to_string)),
        token = text(record.token.as_ref().map(ToString::to_string)),
        object = record.object,
        from = record.from.map(session_core::Status::as_str).unwrap_or_default(),
        to = record.to.map(session_core::Status::as_str).unwrap_or_default(),
        version = record.version.unwrap_or_default(),
        durability = if record.unreplicated { "weak" } else { "" },
        "audit"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_kit::metrics::Registry;
    use session_core::Timestamp;
    use session_core::time::ManualClock;
    use session_store::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn rejected_calls_are_recorded_at_a_bounded_rate() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(0)));
        let metrics = Arc::new(Metrics::new(&Registry::new()));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as Arc<dyn Clock>));
        let (trail, mut waiting) = Trail::new(store, clock, metrics);
        let mut written = || {
            for _ in 0..1000 {
                trail.refused(
                    AuditAction::SessionCreated,
                    &Refused::not_authorized(),
                    |record| record,
                );
            }
            std::iter::from_fn(|| waiting.try_recv().ok()).count()
        };
        assert_eq!(written(), 100);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(written(), 20);
    }
}
