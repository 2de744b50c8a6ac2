//! What everybody in a simulation shares: one seeded source of chance, the
//! store's clock, what happened, and what should not have.

use super::ledger::Ledger;
use compute::SimCompute;
use parking_lot::{Mutex, MutexGuard};
use session_core::{Clock, EventRecord, SessionKey, Timestamp};
use session_store::memory::MemoryStore;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

const START: u64 = 1_795_000_000_000;
/// What a manager takes for a jump of the store's clock, and some more.
const JUMP: u64 = 8000;

/// The store's clock: tokio's, which jumps from one wait to the next, and what
/// it was set forward or back.
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
    /// When something last went wrong: a fault, a crash, a jump of the clock.
    pub(super) last_fault: Duration,
    /// When each one last met a fault of its own; `world` is everybody's.
    pub(super) faults_of: BTreeMap<String, Duration>,
    /// Everything is lost until then.
    pub(super) outage_until: Duration,
    /// What is in flight, by a number.
    pub(super) calls: BTreeMap<u64, Call>,
    /// When each living proxy last had an answer to all it had to say.
    pub(super) heard: BTreeMap<String, Duration>,
    /// When a session last had a call.
    pub(super) used: BTreeMap<SessionKey, Duration>,
    /// The moment of closing that was announced last.
    pub(super) announced: BTreeMap<SessionKey, Timestamp>,
    /// What the feed told, in its order.
    pub(super) fed: BTreeMap<SessionKey, Vec<EventRecord>>,
    pub(super) ledger: Ledger,
    pub(super) sessions: BTreeSet<SessionKey>,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    random: AtomicU64,
    /// How often things go wrong, in thousandths of the usual; 0 is calm.
    temper: AtomicU64,
    began: Instant,
    pub(super) clock: Arc<SimClock>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) sim: SimCompute,
    state: Mutex<State>,
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let clock = Arc::new(SimClock {
            began: Instant::now(),
            offset: AtomicI64::new(0),
        });
        let sim = SimCompute::new();
        sim.forget_releases();
        Arc::new(Self {
            random: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            temper: AtomicU64::new(0),
            began: Instant::now(),
            store: Arc::new(MemoryStore::new(Arc::clone(&clock) as _)),
            clock,
            sim,
            state: Mutex::default(),
        })
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

    /// Does something happen now that happens so often in a million times, in
    /// bad weather?
    pub(super) fn strikes(&self, per_million: u64) -> bool {
        let temper = self.temper.load(Relaxed);
        temper > 0 && self.below(1_000_000_000) < per_million * temper
    }

    pub(super) fn set_temper(&self, thousandths: u64) {
        self.temper.store(thousandths, Relaxed);
        self.note("world", format_args!("temper {thousandths}"));
    }

    pub(super) fn is_calm(&self) -> bool {
        self.temper.load(Relaxed) == 0
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn step_clock(&self, millis: i64) {
        self.clock.offset.fetch_add(millis, Relaxed);
        self.forget_words();
        if millis.unsigned_abs() > JUMP {
            let now = self.elapsed();
            self.state().ledger.unsure.push(now);
        }
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

    /// A small wait of chance, so that others come first.
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

/// A session's id as the trace shows it.
pub(super) fn short(key: &SessionKey) -> String {
    let id = key.id.as_str();
    id[id.len() - 3..].to_owned()
}
