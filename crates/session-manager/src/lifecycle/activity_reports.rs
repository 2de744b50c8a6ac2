//! Intake of activity reports from proxies.
//!
//! A report that changes whether a session is in use is written at once. Activity
//! alone is written every 10 s per proxy and session; until then its usage delta
//! waits here. The store recognizes a repeated report by its sequence number, so
//! its usage counts once whichever manager receives it. Each usage delta has a
//! random name, so it also counts once if the response to a write was lost. Usage
//! that waits in a manager that crashes is lost. If another manager accepted a
//! report in between, the state here is outdated and the next report is written at
//! once.

use crate::lifecycle::reconciler::Reconciler;
use crate::lifecycle::report_freshness::ReportFreshness;
use crate::metrics::Metrics;
use futures::{StreamExt, stream};
use parking_lot::{Mutex, MutexGuard};
use session_core::machine::REPORT_INTERVAL;
use session_core::{Operation, ProxyId, SessionKey, Status, Timestamp, TokenId, TokenUse, Totals};
use session_store::{Error, Report, ReportOutcome, ReportStart, SessionStore, UsageDelta};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two writes of activity that does not change whether a session is
/// in use.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);
/// Age at which a pending write is made without a further report. Without open
/// calls it is one tick less, because the shown idle time depends on it.
const MAX_PENDING_AGE: Duration = WRITE_INTERVAL.saturating_add(REPORT_INTERVAL);
/// Time without reports after which the state of a session is dropped.
const RETENTION: Duration = Duration::from_secs(60);
/// Time between two checks for pending writes.
const TICK: Duration = Duration::from_secs(1);
/// Concurrent writes of one report, or of one check.
const MAX_CONCURRENT_WRITES: usize = 64;
/// Pairs of proxy and session, and proxies, with state here. Above the limit every
/// report is written at once.
const MAX_TRACKED: usize = 200_000;
/// Time limit of the pending writes at the shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// A proxy's report on one session.
#[derive(Debug)]
pub(crate) struct SessionReport {
    pub(crate) key: SessionKey,
    pub(crate) generation: u64,
    pub(crate) open_calls: u32,
    pub(crate) last_activity_at: Option<Timestamp>,
    pub(crate) operations: Vec<Operation>,
    pub(crate) totals: Totals,
    pub(crate) token_uses: Vec<TokenUse>,
}

type Pair = (ProxyId, SessionKey);
type Shared = Arc<tokio::sync::Mutex<PendingWrite>>;

/// Accepts reports and writes them to the store.
#[derive(Debug)]
pub(crate) struct ReportIntake {
    store: Arc<dyn SessionStore>,
    reconciler: Arc<Reconciler>,
    freshness: Arc<ReportFreshness>,
    metrics: Arc<Metrics>,
    pending: Mutex<BTreeMap<Pair, Shared>>,
    accepted: Mutex<BTreeMap<ProxyId, AcceptedRun>>,
    /// Set at the shutdown: every report is written at once.
    closing: AtomicBool,
}

/// The latest consecutive reports of one proxy that this manager accepted.
#[derive(Debug, Clone, Copy)]
struct AcceptedRun {
    first: u64,
    last: u64,
    at: Timestamp,
}

/// State of one proxy and session: the last write and the usage that waits. Its
/// lock is held during a write, so that writes reach the store in order.
#[derive(Debug, Default)]
struct PendingWrite {
    sequence: u64,
    generation: u64,
    last_activity_at: Option<Timestamp>,
    written: Option<Written>,
    /// Whether reported activity or usage is not yet written.
    waits: bool,
    usage: Totals,
    token_uses: BTreeMap<TokenId, TokenUse>,
    /// A usage delta that was sent and is not acknowledged.
    sent: Option<UsageDelta>,
}

/// The last write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    at: Timestamp,
    open: bool,
    generation: u64,
}

/// The open calls of a report.
struct Calls {
    open: u32,
    operations: Vec<Operation>,
}

impl ReportIntake {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        reconciler: Arc<Reconciler>,
        freshness: Arc<ReportFreshness>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            reconciler,
            freshness,
            metrics,
            pending: Mutex::default(),
            accepted: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// Accepts a report. Unknown and ended sessions are skipped.
    ///
    /// # Errors
    /// If the store did not accept every write. The proxy must repeat the report;
    /// usage is kept here and does not count twice.
    pub(crate) async fn accept(
        &self,
        proxy: &ProxyId,
        sequence: u64,
        sessions: Vec<SessionReport>,
    ) -> Result<(), Error> {
        let outcome = self.accept_all(proxy, sequence, sessions).await;
        // Calls of this report may be missing in the store.
        if matches!(outcome, Err(Error::Unavailable(_) | Error::Full)) {
            self.freshness.store_unavailable();
        }
        self.metrics.reported(outcome.is_ok());
        outcome
    }

    async fn accept_all(
        &self,
        proxy: &ProxyId,
        sequence: u64,
        sessions: Vec<SessionReport>,
    ) -> Result<(), Error> {
        let begun = self.store.begin_proxy_report(proxy, sequence).await?;
        let first = self.first_of_run(proxy, sequence);
        let outcomes: Vec<_> = stream::iter(sessions)
            .map(|session| self.accept_one(proxy, sequence, begun, first, session))
            .buffer_unordered(MAX_CONCURRENT_WRITES)
            .collect()
            .await;
        outcomes.into_iter().collect::<Result<(), Error>>()?;
        self.record_accepted(
            proxy,
            AcceptedRun {
                first,
                last: sequence,
                at: begun.at,
            },
        );
        // Last: an idle timeout that was deferred because this proxy's reports were
        // missing must find its calls in the store.
        self.store.mark_proxy_alive(proxy, begun.at).await
    }

    /// The first of the consecutive reports that this manager accepted. Another
    /// manager may have written earlier reports, which outdates the state here.
    fn first_of_run(&self, proxy: &ProxyId, sequence: u64) -> u64 {
        let run = self.accepted().get(proxy).copied();
        let follows = |run: &AcceptedRun| run.last == sequence || run.last.checked_add(1) == Some(sequence);
        run.filter(follows).map_or(sequence, |run| run.first)
    }

    fn record_accepted(&self, proxy: &ProxyId, run: AcceptedRun) {
        let mut all = self.accepted();
        if all.len() < MAX_TRACKED || all.contains_key(proxy) {
            all.insert(proxy.clone(), run);
        }
    }

    async fn accept_one(
        &self,
        proxy: &ProxyId,
        sequence: u64,
        begun: ReportStart,
        first: u64,
        session: SessionReport,
    ) -> Result<(), Error> {
        let pair = (proxy.clone(), session.key.clone());
        let pending = self.pending_of(&pair);
        let mut pending = pending.lock().await;
        if pending.sequence < first {
            pending.written = None;
        }
        if begun.fresh {
            pending.add(&session);
        }
        if sequence < pending.sequence && sequence > 0 {
            // A later report was accepted before this one.
            return Ok(());
        }
        pending.sequence = sequence;
        pending.waits |= session.last_activity_at > pending.last_activity_at;
        pending.last_activity_at = pending.last_activity_at.max(session.last_activity_at);
        pending.generation = session.generation;
        let closing = self.closing.load(Ordering::Relaxed);
        if !closing && !pending.must_write(begun.at, session.open_calls > 0) {
            return Ok(());
        }
        let calls = Calls {
            open: session.open_calls,
            operations: session.operations,
        };
        self.write(&pair, &mut pending, Some(calls), begun.at).await
    }

    /// Makes pending writes of [`MAX_PENDING_AGE`] until `stop`, then all of them.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(TICK) => {}
            }
            if let Err(error) = self.write_pending(MAX_PENDING_AGE).await {
                tracing::warn!(%error, "writing session activity failed; it is retried");
            }
        }
        self.closing.store(true, Ordering::Relaxed);
        let last = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.write_pending(Duration::ZERO)).await;
        if !matches!(last, Ok(Ok(()))) {
            tracing::warn!(
                "writing session activity at the shutdown failed; the last seconds of usage are lost"
            );
        }
    }

    /// Makes the pending writes of this age, and drops unused state.
    async fn write_pending(&self, age: Duration) -> Result<(), Error> {
        if self.pending().is_empty() && self.accepted().is_empty() {
            return Ok(());
        }
        let now = self.store.now().await?;
        self.accepted().retain(|_, run| now.since(run.at) < RETENTION);
        let (mut waiting, mut outcome) = (Vec::new(), Ok(()));
        self.pending().retain(|pair, shared| {
            let Ok(pending) = shared.try_lock() else {
                return true;
            };
            let earlier = if pending.is_open() { Duration::ZERO } else { TICK };
            if pending.waits && pending.age(now) >= age.saturating_sub(earlier) {
                waiting.push((pair.clone(), Arc::clone(shared)));
            }
            let in_use = pending.waits || pending.age(now) < RETENTION;
            drop(pending);
            in_use || Arc::strong_count(shared) > 1
        });
        let mut writes = stream::iter(waiting)
            .map(async |(pair, shared)| {
                let mut pending = shared.lock().await;
                if pending.waits {
                    self.write(&pair, &mut pending, None, now).await
                } else {
                    Ok(())
                }
            })
            .buffer_unordered(MAX_CONCURRENT_WRITES);
        while let Some(written) = writes.next().await {
            outcome = outcome.and(written);
        }
        outcome
    }

    /// Writes the pending state of a session; open calls only if they were just
    /// reported.
    async fn write(
        &self,
        pair: &Pair,
        pending: &mut PendingWrite,
        calls: Option<Calls>,
        now: Timestamp,
    ) -> Result<(), Error> {
        pending.waits = true;
        let open = calls.as_ref().map(|calls| calls.open);
        let (proxy, key) = pair;
        let report = Report {
            proxy: proxy.clone(),
            generation: pending.generation,
            open_calls: open,
            last_activity_at: pending.last_activity_at,
            operations: calls.map(|calls| calls.operations).unwrap_or_default(),
            usage_delta: pending.next_delta(),
            token_uses: pending.token_uses.values().cloned().collect(),
        };
        let applied = self.store.apply_report(key, &report).await;
        self.metrics.activity_written(applied.is_ok());
        let applied = applied?;
        pending.sent = None;
        pending.token_uses.clear();
        // Usage that was reported while another delta was unacknowledged.
        pending.waits = !pending.usage.is_zero();
        match (open, &mut pending.written) {
            (Some(open), written) => {
                *written = Some(Written {
                    at: now,
                    open: open > 0,
                    generation: pending.generation,
                });
            }
            // This write does not renew the lease of open calls.
            (None, Some(written)) if !written.open => written.at = now,
            (None, _) => {}
        }
        match applied {
            // The idle decision was committed before this report.
            ReportOutcome::Live(Status::Idle) => self.reconciler.enqueue(key.clone()),
            ReportOutcome::Live(Status::Pending | Status::Active | Status::Closed | Status::Failed)
            | ReportOutcome::Unknown
            | ReportOutcome::Ended => {}
        }
        Ok(())
    }

    fn pending_of(&self, pair: &Pair) -> Shared {
        let mut all = self.pending();
        if let Some(pending) = all.get(pair) {
            return Arc::clone(pending);
        }
        let pending = Shared::default();
        if all.len() < MAX_TRACKED {
            all.insert(pair.clone(), Arc::clone(&pending));
        }
        pending
    }

    fn accepted(&self) -> MutexGuard<'_, BTreeMap<ProxyId, AcceptedRun>> {
        self.accepted.lock()
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<Pair, Shared>> {
        self.pending.lock()
    }
}

impl PendingWrite {
    fn add(&mut self, session: &SessionReport) {
        self.usage = self.usage.plus(session.totals);
        self.waits |= !session.totals.is_zero() || !session.token_uses.is_empty();
        for used in &session.token_uses {
            let merged = self
                .token_uses
                .entry(used.id.clone())
                .or_insert_with(|| used.clone());
            merged.first = merged.first.min(used.first);
            merged.last = merged.last.max(used.last);
        }
    }

    /// Whether a report must be written now: at the beginning and the end of use,
    /// otherwise every [`WRITE_INTERVAL`].
    fn must_write(&self, now: Timestamp, open: bool) -> bool {
        match self.written {
            None => true,
            Some(written) if written.open != open || written.generation != self.generation => true,
            Some(written) => now.since(written.at) >= WRITE_INTERVAL && (open || self.waits),
        }
    }

    fn is_open(&self) -> bool {
        self.written.is_some_and(|written| written.open)
    }

    fn age(&self, now: Timestamp) -> Duration {
        self.written
            .map_or(Duration::MAX, |written| now.since(written.at))
    }

    /// The usage delta to send: an unacknowledged one first, under its old name.
    fn next_delta(&mut self) -> Option<UsageDelta> {
        if self.sent.is_none() && !self.usage.is_zero() {
            self.sent = Some(UsageDelta {
                name: rand::random(),
                totals: std::mem::take(&mut self.usage),
            });
        }
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definitions::DefinitionStore;
    use crate::providers::registry::Providers;
    use crate::service::Lifecycle;
    use service_kit::metrics::Registry;
    use session_store::redis::Options;
    use test_support::redis::PrivateRedis;

    /// Reports that are not stored may contain calls, so no idle timeout may fire.
    #[tokio::test]
    async fn a_store_without_memory_pauses_idle_timeouts() {
        let redis = PrivateRedis::start().await.unwrap();
        let store = session_store::open(&redis.url(), &Options::default())
            .await
            .unwrap();
        let freshness = Arc::new(ReportFreshness::new(Arc::clone(&store)));
        let definitions = DefinitionStore::new(Arc::clone(&store));
        let metrics = Arc::new(Metrics::new(&Registry::new()));
        let computes = Providers::new(compute::SimCompute::new().registry());
        let lifecycle = Lifecycle::new(&store, &definitions, &computes, &freshness, &metrics);
        let proxy: ProxyId = "p".parse().unwrap();
        freshness.store_available().await;
        let later = store.now().await.unwrap().after(Duration::from_secs(60));
        lifecycle.reports.accept(&proxy, 1, Vec::new()).await.unwrap();
        assert!(!freshness.available_for(later).is_zero());

        redis.command("CONFIG SET maxmemory 1").await.unwrap();
        let rejected = lifecycle.reports.accept(&proxy, 2, Vec::new()).await;
        assert!(matches!(rejected, Err(Error::Full)), "{rejected:?}");
        assert!(freshness.available_for(later).is_zero());
    }
}
