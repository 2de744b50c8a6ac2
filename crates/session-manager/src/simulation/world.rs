//! The shared state of a simulation: the seeded random source, the store's clock,
//! the trace, and the violated invariants.

use super::coverage::{Coverage, Fault, Focus};
use super::ledger::Ledger;
use compute::SimCompute;
use parking_lot::{Mutex, MutexGuard};
use session_core::{Clock, EventRecord, SessionKey, Timestamp};
use session_store::memory::MemoryStore;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

const START: u64 = 1_795_000_000_000;
/// Step of the store's clock in milliseconds that every manager detects as a jump.
const MIN_DETECTED_JUMP: u64 = 8000;
/// Shortest outage that every manager must detect: two health checks.
const MIN_DETECTED_OUTAGE: Duration = Duration::from_secs(5);

/// The store's clock: tokio's paused clock plus the steps of the simulation.
#[derive(Debug)]
pub(super) struct SimClock {
    began: Instant,
    offset: AtomicI64,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap();
        let millis = elapsed + self.offset.load(Relaxed);
        Timestamp::from_millis(START.saturating_add_signed(millis))
    }
}

/// A call through a proxy.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) proxy: String,
    pub(super) key: SessionKey,
    pub(super) generation: u64,
    pub(super) opened: Duration,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) trace: Vec<String>,
    pub(super) broken: Vec<String>,
    /// The last fault, crash or clock jump.
    pub(super) last_fault: Duration,
    /// The last fault of each part; `world` affects all.
    pub(super) faults_of: BTreeMap<String, Duration>,
    /// All store requests are lost until then.
    pub(super) outage_until: Duration,
    /// Open calls by number.
    pub(super) calls: BTreeMap<u64, Call>,
    /// Creation time of the last complete report that was acknowledged, by live proxy.
    pub(super) accepted: BTreeMap<String, Duration>,
    /// End of the last call of each session.
    pub(super) used: BTreeMap<SessionKey, Duration>,
    /// The last announced closing time.
    pub(super) announced: BTreeMap<SessionKey, Timestamp>,
    /// The changes in the feed, in order.
    pub(super) fed: BTreeMap<SessionKey, Vec<EventRecord>>,
    pub(super) ledger: Ledger,
    pub(super) sessions: BTreeSet<SessionKey>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) coverage: Coverage,
    /// When a user or an engine last did something to a session.
    pub(super) stimulated: BTreeMap<SessionKey, Duration>,
}

/// A simulation.
#[derive(Debug)]
pub(super) struct World {
    random: AtomicU64,
    /// The rate of faults in thousandths of the normal rate; 0 is calm.
    fault_rate: AtomicU64,
    began: Instant,
    pub(super) clock: Arc<SimClock>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) sim: SimCompute,
    /// The fault that this seed looks for.
    pub(super) focus: Option<Focus>,
    /// Sessions that a proxy is to call although their state has changed.
    pub(super) late_calls: mpsc::UnboundedSender<SessionKey>,
    state: Mutex<State>,
}

impl World {
    pub(super) fn new(seed: u64) -> (Arc<Self>, mpsc::UnboundedReceiver<SessionKey>) {
        let clock = Arc::new(SimClock {
            began: Instant::now(),
            offset: AtomicI64::new(0),
        });
        let sim = SimCompute::new();
        sim.forget_releases();
        let (late_calls, wanted_calls) = mpsc::unbounded_channel();
        let world = Arc::new(Self {
            random: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            fault_rate: AtomicU64::new(0),
            began: Instant::now(),
            store: Arc::new(MemoryStore::new(Arc::clone(&clock) as _)),
            clock,
            sim,
            focus: Focus::of(seed),
            late_calls,
            state: Mutex::default(),
        });
        (world, wanted_calls)
    }

    /// The next number of this seed (splitmix64).
    pub(super) fn random(&self) -> u64 {
        let mut z = self
            .random
            .fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&self, n: u64) -> u64 {
        self.random() % n
    }

    pub(super) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn between(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }

    /// Whether a fault of this normal probability, in millionths, occurs now.
    pub(super) fn strikes(&self, per_million: u64) -> bool {
        let rate = self.fault_rate.load(Relaxed);
        rate > 0 && self.below(1_000_000_000) < per_million * rate
    }

    pub(super) fn set_fault_rate(&self, thousandths: u64) {
        self.fault_rate.store(thousandths, Relaxed);
        self.note("world", format_args!("fault rate {thousandths}"));
    }

    pub(super) fn is_calm(&self) -> bool {
        self.fault_rate.load(Relaxed) == 0
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// All requests to the store are lost for a while.
    pub(super) fn interrupt_store(&self) {
        let length = self.between(500, 90_000);
        self.all_meet(Fault::StoreOutage);
        self.fault("world", format_args!("the store is unavailable for {length:?}"));
        let until = self.elapsed() + length;
        let mut state = self.state();
        state.outage_until = until.max(state.outage_until);
        if length > MIN_DETECTED_OUTAGE {
            state.ledger.outage_ends.push(until);
        }
    }

    pub(super) fn step_clock_at_random(&self) {
        let millis = i64::try_from(self.below(600_000)).unwrap();
        self.step_clock(if self.one_in(3) { -(millis / 100) } else { millis });
    }

    fn step_clock(&self, millis: i64) {
        self.clock.offset.fetch_add(millis, Relaxed);
        self.drop_call_leases();
        if millis.unsigned_abs() > MIN_DETECTED_JUMP {
            let now = self.elapsed();
            self.state().ledger.outage_ends.push(now);
        }
        self.all_meet(Fault::ClockStep);
        self.fault("world", format_args!("the store's clock steps by {millis} ms"));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn note(&self, who: &str, what: std::fmt::Arguments<'_>) {
        let at = self.elapsed().as_millis();
        let line = format!("{:>8}.{:03} {who}: {what}", at / 1000, at % 1000);
        self.state().trace.push(line);
    }

    pub(super) fn fault(&self, who: &str, what: std::fmt::Arguments<'_>) {
        self.note(who, what);
        self.count("faults");
        let now = self.elapsed();
        let mut state = self.state();
        state.last_fault = now;
        state.faults_of.insert(who.to_owned(), now);
    }

    pub(super) fn broken(&self, what: String) {
        self.note("BROKEN", format_args!("{what}"));
        self.state().broken.push(what);
    }

    pub(super) fn count(&self, what: &'static str) {
        *self.state().counts.entry(what).or_default() += 1;
    }

    /// Waits for a short random time, to vary the order of tasks.
    pub(super) async fn dawdle(&self) {
        let stormy = !self.is_calm();
        match self.below(if stormy { 32 } else { 64 }) {
            0 => tokio::time::sleep(self.between(1, 30)).await,
            1 if stormy => {
                tokio::time::sleep(self.between(1, 1500)).await;
                let now = self.elapsed();
                self.state().last_fault = now;
            }
            2..=7 => tokio::task::yield_now().await,
            _ => {}
        }
    }
}

/// The short form of a session id in the trace.
pub(super) fn short(key: &SessionKey) -> String {
    let id = key.id.as_str();
    id[id.len() - 3..].to_owned()
}
