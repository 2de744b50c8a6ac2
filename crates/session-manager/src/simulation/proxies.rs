//! Proxies as the managers see them: calls that are open, and reports of them
//! that come late, twice or never. They keep the rules of the real ones: a
//! report each 5 s and one at once for a quiet session's first call, and one
//! without an answer is sent again before any other.

use super::engines::until_gone;
use super::ledger::{Ended, Saying};
use super::managers::Managers;
use super::world::{Call, World, short};
use crate::lifecycle::activity_reports::Said;
use session_core::{ProxyId, SessionKey, Timestamp, Totals};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(5);

/// One run of one proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) name: String,
    id: ProxyId,
    world: Arc<World>,
    managers: Arc<Managers>,
    tallies: std::sync::Mutex<BTreeMap<SessionKey, Tally>>,
    urgent: Notify,
    next_call: AtomicU64,
    pub(super) gone: CancellationToken,
}

#[derive(Debug, Default, Clone)]
struct Tally {
    generation: u64,
    open: u32,
    last: Option<Timestamp>,
    /// Something is to be said of it.
    listed: bool,
}

#[derive(Debug, Clone)]
struct Report {
    sequence: u64,
    built: Duration,
    tallies: Vec<(SessionKey, Tally)>,
    all: bool,
}

impl Proxy {
    pub(super) fn start(world: &Arc<World>, managers: &Arc<Managers>, name: String) -> Arc<Self> {
        world.note(&name, format_args!("starts"));
        let proxy = Arc::new(Self {
            id: name.parse().unwrap(),
            name,
            world: Arc::clone(world),
            managers: Arc::clone(managers),
            tallies: std::sync::Mutex::default(),
            urgent: Notify::new(),
            next_call: AtomicU64::new(world.random() << 16),
            gone: CancellationToken::new(),
        });
        tokio::spawn(Arc::clone(&proxy).report());
        proxy
    }

    /// It is gone without a word, and its calls with it.
    pub(super) fn vanish(&self) {
        self.world.fault(&self.name, format_args!("vanishes"));
        self.gone.cancel();
        let mut state = self.world.state();
        state.calls.retain(|_, call| call.proxy != self.name);
        state.heard.remove(&self.name);
    }

    /// A call on this generation, for so long at most.
    pub(super) async fn call(&self, key: &SessionKey, generation: u64, length: Duration) {
        if self.gone.is_cancelled() {
            return;
        }
        let n = self.next_call.fetch_add(1, Relaxed);
        let opened = self.world.elapsed();
        self.world.note(
            &self.name,
            format_args!("{} g{generation} call for {length:?}", short(key)),
        );
        let call = Call {
            proxy: self.name.clone(),
            key: key.clone(),
            generation,
            opened,
        };
        self.world.state().calls.insert(n, call);
        self.touch(key, generation, 1);
        tokio::select! {
            biased;
            () = self.gone.cancelled() => {}
            () = until_gone(&self.world, key, generation, length) => {}
        }
        let at = (self.world.elapsed(), self.world.now());
        let mut state = self.world.state();
        state.calls.remove(&n);
        state.used.insert(key.clone(), at.0);
        let ended = state.ledger.ended.entry(key.clone()).or_default();
        ended.push(Ended { generation, at });
        drop(state);
        self.touch(key, generation, -1);
    }

    fn touch(&self, key: &SessionKey, generation: u64, calls: i32) {
        let mut tallies = self.tallies.lock().unwrap();
        let tally = tallies.entry(key.clone()).or_default();
        if tally.generation < generation {
            tally.generation = generation;
        }
        let was_quiet = tally.open == 0;
        tally.open = tally.open.checked_add_signed(calls).unwrap();
        tally.last = Some(self.world.now());
        tally.listed = true;
        if was_quiet {
            self.urgent.notify_one();
        }
    }

    async fn report(self: Arc<Self>) {
        let (mut sequence, mut unsent): (u64, Option<Report>) = (0, None);
        let mut next = self.world.elapsed();
        loop {
            let wait = next.saturating_sub(self.world.elapsed());
            let all = tokio::select! {
                biased;
                () = self.gone.cancelled() => return,
                () = tokio::time::sleep(wait) => true,
                () = self.urgent.notified() => false,
            };
            if all {
                next = self.world.elapsed() + INTERVAL;
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Some(report) = unsent.take()
                && !self.send(&report).await
            {
                unsent = Some(report);
                continue;
            }
            let tallies: Vec<_> = {
                let mut tallies = self.tallies.lock().unwrap();
                let chosen = tallies
                    .iter_mut()
                    .filter(|(_, tally)| tally.listed || (all && tally.open > 0));
                chosen
                    .map(|(key, tally)| {
                        tally.listed = false;
                        (key.clone(), tally.clone())
                    })
                    .collect()
            };
            sequence += 1;
            let report = Report {
                sequence,
                built: self.world.elapsed(),
                tallies,
                all,
            };
            if !self.send(&report).await {
                unsent = Some(report);
            }
        }
    }

    async fn send(&self, report: &Report) -> bool {
        let world = &self.world;
        if world.strikes(60_000) {
            world.fault(&self.name, format_args!("report {} is lost", report.sequence));
            tokio::time::sleep(world.between(1, 5000)).await;
            return false;
        }
        if world.strikes(30_000) {
            // A copy that comes when it is old.
            let (managers, id, report) = (Arc::clone(&self.managers), self.id.clone(), report.clone());
            let delay = world.between(10, 12_000);
            world.fault(
                &self.name,
                format_args!("report {} comes again {delay:?} later", report.sequence),
            );
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let manager = managers.any();
                drop(manager.reports.take(&id, report.sequence, said(&report)).await);
            });
        }
        world.dawdle().await;
        let manager = self.managers.any();
        let id = self.id.clone();
        let (sequence, words) = (report.sequence, said(report));
        let sayings = self.sayings(report);
        for (key, saying) in &sayings {
            world.sends(&self.name, key, *saying);
        }
        let (hears, name) = (Arc::clone(world), self.name.clone());
        // A manager finishes what it began when the proxy gives up on it.
        let taking = tokio::spawn(async move {
            manager.reports.take(&id, sequence, words).await?;
            hears.heard(&name, &sayings);
            Ok::<_, session_store::Error>(())
        });
        let taken = matches!(tokio::time::timeout(ANSWER, taking).await, Ok(Ok(Ok(()))));
        if world.strikes(30_000) {
            world.fault(
                &self.name,
                format_args!("the answer to report {sequence} is lost"),
            );
            return false;
        }
        if taken && report.all && !self.gone.is_cancelled() {
            let mut state = world.state();
            let heard = state.heard.entry(self.name.clone()).or_default();
            *heard = (*heard).max(report.built);
        }
        taken
    }
}

impl Proxy {
    fn sayings(&self, report: &Report) -> Vec<(SessionKey, Saying)> {
        let at = (self.world.elapsed(), self.world.now());
        let one = |(key, tally): &(SessionKey, Tally)| {
            let saying = Saying {
                sequence: report.sequence,
                generation: tally.generation,
                open: tally.open,
                last: tally.last,
                at,
            };
            (key.clone(), saying)
        };
        report.tallies.iter().map(one).collect()
    }
}

fn said(report: &Report) -> Vec<Said> {
    let one = |(key, tally): &(SessionKey, Tally)| Said {
        key: key.clone(),
        generation: tally.generation,
        open_calls: tally.open,
        last_activity_at: tally.last,
        operations: Vec::new(),
        totals: Totals::default(),
        token_uses: Vec::new(),
    };
    report.tallies.iter().map(one).collect()
}

/// The proxies of a world; those that vanish come back under another name.
#[derive(Debug)]
pub(super) struct Proxies {
    world: Arc<World>,
    managers: Arc<Managers>,
    running: std::sync::Mutex<Vec<Arc<Proxy>>>,
}

impl Proxies {
    pub(super) fn start(world: &Arc<World>, managers: &Arc<Managers>, count: u64) -> Arc<Self> {
        let running = (0..count).map(|n| Proxy::start(world, managers, format!("p{n}.0")));
        Arc::new(Self {
            running: std::sync::Mutex::new(running.collect()),
            world: Arc::clone(world),
            managers: Arc::clone(managers),
        })
    }

    pub(super) fn any(&self) -> Arc<Proxy> {
        let running = self.running.lock().unwrap();
        let n = usize::try_from(self.world.below(running.len() as u64)).unwrap();
        Arc::clone(&running[n])
    }

    pub(super) async fn keep_running(self: Arc<Self>) {
        let mut runs = 0;
        loop {
            tokio::time::sleep(self.world.between(1000, 10_000)).await;
            if !self.world.strikes(50_000) {
                continue;
            }
            let n = usize::try_from(self.world.below(self.running.lock().unwrap().len() as u64)).unwrap();
            let proxy = Arc::clone(&self.running.lock().unwrap()[n]);
            proxy.vanish();
            runs += 1;
            tokio::time::sleep(self.world.between(0, 5000)).await;
            self.running.lock().unwrap()[n] =
                Proxy::start(&self.world, &self.managers, format!("p{n}.{runs}"));
        }
    }
}
