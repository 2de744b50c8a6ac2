//! Proxies: open calls, and reports of them that arrive late, twice or never. They
//! follow the rules of real proxies: a report every 5 s, one at once for the first
//! call of an unused session, and a report without acknowledgement is repeated
//! before any other.

use super::coverage::Fault;
use super::engines::until_gone;
use super::ledger::{EndedCall, SentReport};
use super::managers::Managers;
use super::world::{Call, World, short};
use crate::lifecycle::activity_reports::SessionReport;
use session_core::{ProxyId, SessionKey, Status, Timestamp, Totals};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

const REPORT_INTERVAL: Duration = Duration::from_secs(5);
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// One process of a proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) name: String,
    id: ProxyId,
    world: Arc<World>,
    managers: Arc<Managers>,
    usages: std::sync::Mutex<BTreeMap<SessionKey, Usage>>,
    urgent: Notify,
    next_call: AtomicU64,
    pub(super) gone: CancellationToken,
}

#[derive(Debug, Default, Clone)]
struct Usage {
    generation: u64,
    open: u32,
    last: Option<Timestamp>,
    /// Whether it changed since the last report.
    changed: bool,
}

#[derive(Debug, Clone)]
struct Report {
    sequence: u64,
    built: Duration,
    usages: Vec<(SessionKey, Usage)>,
    all: bool,
}

impl Report {
    /// Whether a fault of this normal probability, in millionths, meets this report and so its sessions.
    fn strikes(&self, world: &World, fault: Fault, per_million: u64) -> bool {
        let mut keys = self.usages.iter().map(|(key, _)| key);
        // A report of no session can be lost too.
        let strikes = world.strikes(per_million) || keys.any(|key| world.strikes_session(key, fault, 0));
        if strikes {
            for (key, _) in &self.usages {
                world.meets(key, fault);
            }
        }
        strikes
    }
}

impl Proxy {
    pub(super) fn start(world: &Arc<World>, managers: &Arc<Managers>, name: String) -> Arc<Self> {
        world.note(&name, format_args!("starts"));
        let proxy = Arc::new(Self {
            id: name.parse().unwrap(),
            name,
            world: Arc::clone(world),
            managers: Arc::clone(managers),
            usages: std::sync::Mutex::default(),
            urgent: Notify::new(),
            next_call: AtomicU64::new(world.random() << 16),
            gone: CancellationToken::new(),
        });
        tokio::spawn(Arc::clone(&proxy).report());
        proxy
    }

    /// Ends the proxy and its calls without a report.
    pub(super) fn vanish(&self) {
        for key in self.usages.lock().unwrap().keys() {
            self.world.meets(key, Fault::ProxyVanishes);
        }
        self.world.fault(&self.name, format_args!("vanishes"));
        self.gone.cancel();
        let mut state = self.world.state();
        state.calls.retain(|_, call| call.proxy != self.name);
        state.accepted.remove(&self.name);
    }

    /// A call on this generation, at most for `length`.
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
        ended.push(EndedCall { generation, at });
        drop(state);
        self.touch(key, generation, -1);
    }

    fn touch(&self, key: &SessionKey, generation: u64, calls: i32) {
        self.world.stimulate(key);
        let mut usages = self.usages.lock().unwrap();
        let usage = usages.entry(key.clone()).or_default();
        if usage.generation < generation {
            usage.generation = generation;
        }
        let was_quiet = usage.open == 0;
        usage.open = usage.open.checked_add_signed(calls).unwrap();
        usage.last = Some(self.world.now());
        usage.changed = true;
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
                next = self.world.elapsed() + REPORT_INTERVAL;
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Some(report) = unsent.take()
                && !self.send(&report).await
            {
                unsent = Some(report);
                continue;
            }
            let usages: Vec<_> = {
                let mut usages = self.usages.lock().unwrap();
                let chosen = usages
                    .iter_mut()
                    .filter(|(_, usage)| usage.changed || (all && usage.open > 0));
                chosen
                    .map(|(key, usage)| {
                        usage.changed = false;
                        (key.clone(), usage.clone())
                    })
                    .collect()
            };
            sequence += 1;
            let report = Report {
                sequence,
                built: self.world.elapsed(),
                usages,
                all,
            };
            if !self.send(&report).await {
                unsent = Some(report);
            }
        }
    }

    async fn send(&self, report: &Report) -> bool {
        let world = &self.world;
        if report.strikes(world, Fault::ReportLost, 60_000) {
            world.fault(&self.name, format_args!("report {} is lost", report.sequence));
            tokio::time::sleep(world.between(1, 5000)).await;
            return false;
        }
        if report.strikes(world, Fault::ReportRepeated, 30_000) {
            // A duplicate of the report arrives late.
            let (managers, id, report) = (Arc::clone(&self.managers), self.id.clone(), report.clone());
            let delay = world.between(10, 12_000);
            world.fault(
                &self.name,
                format_args!("report {} comes again {delay:?} later", report.sequence),
            );
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let manager = managers.any();
                let sessions = session_reports(&report);
                drop(manager.reports.accept(&id, report.sequence, sessions).await);
            });
        }
        world.dawdle().await;
        let manager = self.managers.any();
        let id = self.id.clone();
        let (sequence, sessions) = (report.sequence, session_reports(report));
        let sent = self.sent_reports(report);
        for (key, report) in &sent {
            world.report_sent(&self.name, key, *report);
        }
        let (ledger, name) = (Arc::clone(world), self.name.clone());
        // A manager completes the report even if the proxy stops waiting.
        let accepting = tokio::spawn(async move {
            manager.reports.accept(&id, sequence, sessions).await?;
            ledger.report_acknowledged(&name, &sent);
            Ok::<_, session_store::Error>(())
        });
        let response = tokio::time::timeout(REPORT_TIMEOUT, accepting).await;
        let acknowledged = matches!(response, Ok(Ok(Ok(()))));
        if report.strikes(world, Fault::ReportAnswerLost, 30_000) {
            world.fault(
                &self.name,
                format_args!("the answer to report {sequence} is lost"),
            );
            return false;
        }
        if acknowledged && report.all && !self.gone.is_cancelled() {
            let mut state = world.state();
            let accepted = state.accepted.entry(self.name.clone()).or_default();
            *accepted = (*accepted).max(report.built);
        }
        acknowledged
    }

    fn sent_reports(&self, report: &Report) -> Vec<(SessionKey, SentReport)> {
        let at = (self.world.elapsed(), self.world.now());
        let one = |(key, usage): &(SessionKey, Usage)| {
            let sent = SentReport {
                sequence: report.sequence,
                generation: usage.generation,
                open: usage.open,
                last: usage.last,
                at,
            };
            (key.clone(), sent)
        };
        report.usages.iter().map(one).collect()
    }
}

fn session_reports(report: &Report) -> Vec<SessionReport> {
    let one = |(key, usage): &(SessionKey, Usage)| SessionReport {
        key: key.clone(),
        generation: usage.generation,
        open_calls: usage.open,
        last_activity_at: usage.last,
        operations: Vec::new(),
        totals: Totals::default(),
        token_uses: Vec::new(),
    };
    report.usages.iter().map(one).collect()
}

/// The proxies of a world; vanished ones are replaced under another name.
#[derive(Debug)]
pub(super) struct Proxies {
    world: Arc<World>,
    managers: Arc<Managers>,
    running: std::sync::Mutex<Vec<Arc<Proxy>>>,
    /// Number of replacements.
    runs: AtomicU64,
}

impl Proxies {
    pub(super) fn start(world: &Arc<World>, managers: &Arc<Managers>, count: u64) -> Arc<Self> {
        let running = (0..count).map(|n| Proxy::start(world, managers, format!("p{n}.0")));
        Arc::new(Self {
            running: std::sync::Mutex::new(running.collect()),
            world: Arc::clone(world),
            managers: Arc::clone(managers),
            runs: AtomicU64::new(0),
        })
    }

    pub(super) fn any(&self) -> Arc<Proxy> {
        let running = self.running.lock().unwrap();
        let n = usize::try_from(self.world.below(running.len() as u64)).unwrap();
        Arc::clone(&running[n])
    }

    /// Calls sessions whose state has changed since a client decided to call, as a proxy with an old
    /// route does. The proxy may vanish with its call.
    pub(super) async fn make_late_calls(self: Arc<Self>, mut wanted: mpsc::UnboundedReceiver<SessionKey>) {
        while let Some(key) = wanted.recv().await {
            let Some(session) = self.world.recorded(&key) else {
                continue;
            };
            let n = usize::try_from(self.world.below(self.running.lock().unwrap().len() as u64)).unwrap();
            let proxy = Arc::clone(&self.running.lock().unwrap()[n]);
            // After a loss or a wake, that of the former compute.
            let generation = match session.status() {
                Status::Pending => session.generation.saturating_sub(1),
                Status::Active | Status::Idle | Status::Closed | Status::Failed => session.generation,
            };
            proxy.call(&key, generation, self.world.between(1, 300)).await;
            if self.world.one_in(2) && self.world.strikes_session(&key, Fault::ProxyVanishes, 0) {
                self.replace(n).await;
            }
        }
    }

    async fn replace(&self, n: usize) {
        let proxy = Arc::clone(&self.running.lock().unwrap()[n]);
        proxy.vanish();
        let run = self.runs.fetch_add(1, Relaxed) + 1;
        tokio::time::sleep(self.world.between(0, 5000)).await;
        self.running.lock().unwrap()[n] = Proxy::start(&self.world, &self.managers, format!("p{n}.{run}"));
    }

    pub(super) async fn keep_running(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.world.between(1000, 10_000)).await;
            if !self.world.strikes(50_000) {
                continue;
            }
            let running = self.running.lock().unwrap().len() as u64;
            self.replace(usize::try_from(self.world.below(running)).unwrap())
                .await;
        }
    }
}
