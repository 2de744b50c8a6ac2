//! What proxies report, on its way to the store.
//!
//! A report that changes whether a session is in use is written at once. Mere
//! activity is written every 10 s for each proxy and session; until then its
//! amounts wait here. The store tells a repeated report by its number, so its
//! amounts count once whichever manager it reaches; an amount has a name, so
//! it also counts once when a write's answer was lost. What waits in a manager
//! that dies is lost, and was never counted. What another manager took between
//! makes this one write at once: its memory is no longer what the store has.

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

/// Mere activity is written this often.
const COALESCE: Duration = Duration::from_secs(10);
/// What waits is written by itself when no report took it along by then: of a
/// session without calls a look earlier, as users see when it will idle.
const LATEST: Duration = COALESCE.saturating_add(REPORT_INTERVAL);
/// Nothing is remembered of a session that nobody reported for so long.
const FORGET: Duration = Duration::from_secs(60);
/// How often it is looked for what must not wait longer.
const TICK: Duration = Duration::from_secs(1);
/// Writes of one report, or of one look, that are under way together.
const TOGETHER: usize = 64;
/// Pairs of proxy and session that are remembered, and proxies; beyond it
/// every report is written at once.
const MOST_KEPT: usize = 200_000;
/// What waits at the end gets this long.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What a proxy says of one session.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) key: SessionKey,
    pub(crate) generation: u64,
    pub(crate) open_calls: u32,
    pub(crate) last_activity_at: Option<Timestamp>,
    pub(crate) operations: Vec<Operation>,
    pub(crate) totals: Totals,
    pub(crate) token_uses: Vec<TokenUse>,
}

type Pair = (ProxyId, SessionKey);
type Shared = Arc<tokio::sync::Mutex<Kept>>;

/// Takes reports.
#[derive(Debug)]
pub(crate) struct ReportIntake {
    store: Arc<dyn SessionStore>,
    reconciler: Arc<Reconciler>,
    freshness: Arc<ReportFreshness>,
    metrics: Arc<Metrics>,
    kept: Mutex<BTreeMap<Pair, Shared>>,
    taken: Mutex<BTreeMap<ProxyId, Taken>>,
    /// Nobody will write later what waits from now on.
    closing: AtomicBool,
}

/// The last reports of one proxy that were taken here, and by no other manager.
#[derive(Debug, Clone, Copy)]
struct Taken {
    first: u64,
    last: u64,
    at: Timestamp,
}

/// What is remembered of one proxy's word on one session. Its lock is held
/// during a write, so that writes reach the store in order.
#[derive(Debug, Default)]
struct Kept {
    sequence: u64,
    generation: u64,
    last_activity_at: Option<Timestamp>,
    /// What the store was told last, and when.
    written: Option<Written>,
    /// Something was said that the store was not told.
    waits: bool,
    more: Totals,
    token_uses: BTreeMap<TokenId, TokenUse>,
    /// An amount that was sent, and perhaps added.
    sent: Option<UsageDelta>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    at: Timestamp,
    open: bool,
    generation: u64,
}

/// What the store is told of calls.
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
            kept: Mutex::default(),
            taken: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// Takes a report. Sessions that are unknown or ended are passed over.
    ///
    /// # Errors
    /// When the store could not be told all of it. What it was not told must
    /// come again; amounts are kept here and do not count twice.
    pub(crate) async fn take(&self, proxy: &ProxyId, sequence: u64, said: Vec<Said>) -> Result<(), Error> {
        let outcome = self.take_all(proxy, sequence, said).await;
        if matches!(outcome, Err(Error::Unavailable(_))) {
            self.freshness.lost();
        }
        self.metrics.reported(outcome.is_ok());
        outcome
    }

    async fn take_all(&self, proxy: &ProxyId, sequence: u64, said: Vec<Said>) -> Result<(), Error> {
        let heard = self.store.begin_proxy_report(proxy, sequence).await?;
        let first = self.first_in_row(proxy, sequence);
        let outcomes: Vec<_> = stream::iter(said)
            .map(|said| self.take_one(proxy, sequence, heard, first, said))
            .buffer_unordered(TOGETHER)
            .collect()
            .await;
        outcomes.into_iter().collect::<Result<(), Error>>()?;
        self.remember(
            proxy,
            Taken {
                first,
                last: sequence,
                at: heard.at,
            },
        );
        // Only now: an idle clock that stood still because of this proxy's
        // silence must find its calls known.
        self.store.mark_proxy_alive(proxy, heard.at).await
    }

    /// Since which of its reports has every one been taken here? Before that
    /// another manager may have told the store what is not remembered here.
    fn first_in_row(&self, proxy: &ProxyId, sequence: u64) -> u64 {
        let taken = self.taken().get(proxy).copied();
        let follows = |taken: &Taken| taken.last == sequence || taken.last.checked_add(1) == Some(sequence);
        taken.filter(follows).map_or(sequence, |taken| taken.first)
    }

    fn remember(&self, proxy: &ProxyId, taken: Taken) {
        let mut all = self.taken();
        if all.len() < MOST_KEPT || all.contains_key(proxy) {
            all.insert(proxy.clone(), taken);
        }
    }

    async fn take_one(
        &self,
        proxy: &ProxyId,
        sequence: u64,
        heard: ReportStart,
        first: u64,
        said: Said,
    ) -> Result<(), Error> {
        let pair = (proxy.clone(), said.key.clone());
        let kept = self.kept_of(&pair);
        let mut kept = kept.lock().await;
        if kept.sequence < first {
            kept.written = None;
        }
        if heard.fresh {
            kept.add(&said);
        }
        if sequence < kept.sequence && sequence > 0 {
            // It was overtaken by a later report, which knows better.
            return Ok(());
        }
        kept.sequence = sequence;
        kept.waits |= said.last_activity_at > kept.last_activity_at;
        kept.last_activity_at = kept.last_activity_at.max(said.last_activity_at);
        kept.generation = said.generation;
        let closing = self.closing.load(Ordering::Relaxed);
        if !closing && !kept.must_tell(heard.at, said.open_calls > 0) {
            return Ok(());
        }
        let calls = Calls {
            open: said.open_calls,
            operations: said.operations,
        };
        self.write(&pair, &mut kept, Some(calls), heard.at).await
    }

    /// Writes what must not wait longer, until `stop`; then all that waits.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(TICK) => {}
            }
            if let Err(error) = self.write_waiting(LATEST).await {
                tracing::warn!(%error, "activity of sessions cannot be written yet");
            }
        }
        self.closing.store(true, Ordering::Relaxed);
        let last = tokio::time::timeout(LAST_WRITES, self.write_waiting(Duration::ZERO)).await;
        if !matches!(last, Ok(Ok(()))) {
            tracing::warn!("the last seconds of some sessions' usage were not written");
        }
    }

    async fn write_waiting(&self, after: Duration) -> Result<(), Error> {
        if self.all().is_empty() && self.taken().is_empty() {
            return Ok(());
        }
        let now = self.store.now().await?;
        self.taken().retain(|_, taken| now.since(taken.at) < FORGET);
        let (mut waiting, mut outcome) = (Vec::new(), Ok(()));
        self.all().retain(|pair, shared| {
            let Ok(kept) = shared.try_lock() else { return true };
            let look = if kept.is_open() { Duration::ZERO } else { TICK };
            if kept.waits && kept.age(now) >= after.saturating_sub(look) {
                waiting.push((pair.clone(), Arc::clone(shared)));
            }
            let in_use = kept.waits || kept.age(now) < FORGET;
            drop(kept);
            in_use || Arc::strong_count(shared) > 1
        });
        let mut writes = stream::iter(waiting)
            .map(async |(pair, shared)| {
                let mut kept = shared.lock().await;
                if kept.waits {
                    self.write(&pair, &mut kept, None, now).await
                } else {
                    Ok(())
                }
            })
            .buffer_unordered(TOGETHER);
        while let Some(written) = writes.next().await {
            outcome = outcome.and(written);
        }
        outcome
    }

    /// Tells the store all that is known; of calls only what was said just now.
    async fn write(
        &self,
        pair: &Pair,
        kept: &mut Kept,
        calls: Option<Calls>,
        now: Timestamp,
    ) -> Result<(), Error> {
        kept.waits = true;
        let open = calls.as_ref().map(|calls| calls.open);
        let (proxy, key) = pair;
        let report = Report {
            proxy: proxy.clone(),
            generation: kept.generation,
            open_calls: open,
            last_activity_at: kept.last_activity_at,
            operations: calls.map(|calls| calls.operations).unwrap_or_default(),
            usage_delta: kept.next_amount(),
            token_uses: kept.token_uses.values().cloned().collect(),
        };
        let taken = self.store.apply_report(key, &report).await;
        self.metrics.activity_written(taken.is_ok());
        let taken = taken?;
        kept.sent = None;
        kept.token_uses.clear();
        // An amount that came while another one was under way.
        kept.waits = !kept.more.is_zero();
        match (open, &mut kept.written) {
            (Some(open), written) => {
                *written = Some(Written {
                    at: now,
                    open: open > 0,
                    generation: kept.generation,
                });
            }
            // A lease was not renewed by this.
            (None, Some(written)) if !written.open => written.at = now,
            (None, _) => {}
        }
        match taken {
            // The idle decision and this report passed each other.
            ReportOutcome::Live(Status::Idle) => self.reconciler.enqueue(key.clone()),
            ReportOutcome::Live(Status::Pending | Status::Active | Status::Closed | Status::Failed)
            | ReportOutcome::Unknown
            | ReportOutcome::Ended => {}
        }
        Ok(())
    }

    fn kept_of(&self, pair: &Pair) -> Shared {
        let mut all = self.all();
        if let Some(kept) = all.get(pair) {
            return Arc::clone(kept);
        }
        let kept = Shared::default();
        if all.len() < MOST_KEPT {
            all.insert(pair.clone(), Arc::clone(&kept));
        }
        kept
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<ProxyId, Taken>> {
        self.taken.lock()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Pair, Shared>> {
        self.kept.lock()
    }
}

impl Kept {
    fn add(&mut self, said: &Said) {
        self.more = self.more.plus(said.totals);
        self.waits |= !said.totals.is_zero() || !said.token_uses.is_empty();
        for one in &said.token_uses {
            let kept = self
                .token_uses
                .entry(one.id.clone())
                .or_insert_with(|| one.clone());
            kept.first = kept.first.min(one.first);
            kept.last = kept.last.max(one.last);
        }
    }

    /// The beginning and the end of use at once, mere activity now and then.
    fn must_tell(&self, now: Timestamp, open: bool) -> bool {
        match self.written {
            None => true,
            Some(written) if written.open != open || written.generation != self.generation => true,
            Some(written) => now.since(written.at) >= COALESCE && (open || self.waits),
        }
    }

    fn is_open(&self) -> bool {
        self.written.is_some_and(|written| written.open)
    }

    fn age(&self, now: Timestamp) -> Duration {
        self.written
            .map_or(Duration::MAX, |written| now.since(written.at))
    }

    /// What is to be added: first what may have been, under its old name.
    fn next_amount(&mut self) -> Option<UsageDelta> {
        if self.sent.is_none() && !self.more.is_zero() {
            self.sent = Some(UsageDelta {
                name: rand::random(),
                totals: std::mem::take(&mut self.more),
            });
        }
        self.sent
    }
}
