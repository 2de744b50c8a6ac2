//! The simulation's own records: committed changes, acknowledged reports, and
//! outages. The checks use these, never the state of the code under test.

use super::store::Run;
use super::world::{World, short};
use session_core::{EventRecord, Session, SessionKey, Timestamp};
use session_store::Create;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    records: BTreeMap<SessionKey, Record>,
    reports: BTreeMap<(String, SessionKey), LastReport>,
    /// When a report of each proxy was last acknowledged.
    acknowledged: BTreeMap<String, Duration>,
    /// When an outage ended or the store's clock was set: idle timeouts pause then.
    pub(super) outage_ends: Vec<Duration>,
    /// The managers that observed that an ended session's compute is gone.
    seen_gone: BTreeSet<(String, SessionKey)>,
    /// The ends of each session's calls.
    pub(super) ended: BTreeMap<SessionKey, Vec<EndedCall>>,
    pub(super) stale: Vec<StaleCompute>,
    /// Since when compute has existed that no record requires.
    pub(super) unwanted: BTreeMap<(SessionKey, u64), Duration>,
}

#[derive(Debug)]
struct Record {
    session: Session,
    history: Vec<EventRecord>,
}

/// The last acknowledged report of a proxy on a session.
#[derive(Debug, Clone, Default)]
pub(super) struct LastReport {
    /// The last sequence number that was sent.
    sent: u64,
    pub(super) generation: u64,
    /// Open calls; 0 as soon as such a report was sent.
    pub(super) open: u32,
    /// When the report was sent, by both clocks.
    pub(super) at: (Duration, Timestamp),
    pub(super) last: Option<Timestamp>,
}

/// One session in a report.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentReport {
    pub(super) sequence: u64,
    pub(super) generation: u64,
    pub(super) open: u32,
    pub(super) last: Option<Timestamp>,
    pub(super) at: (Duration, Timestamp),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct EndedCall {
    pub(super) generation: u64,
    pub(super) at: (Duration, Timestamp),
}

/// Compute that no record required when its manager's request was confirmed. That
/// manager must release it at once.
#[derive(Debug, Clone)]
pub(super) struct StaleCompute {
    pub(super) run: Run,
    pub(super) key: SessionKey,
    pub(super) generation: u64,
    pub(super) made: usize,
    pub(super) at: Duration,
}

/// Whether the record requires compute of this generation.
pub(super) fn wants(session: &Session, generation: u64) -> bool {
    let status = session.status() == session_core::Status::Pending;
    (session.state.has_compute() || status) && session.generation == generation
}

impl World {
    /// The session after its last committed change.
    pub(super) fn recorded(&self, key: &SessionKey) -> Option<Session> {
        self.state()
            .ledger
            .records
            .get(key)
            .map(|record| record.session.clone())
    }

    pub(super) fn history(&self, key: &SessionKey) -> Vec<EventRecord> {
        let state = self.state();
        let record = state.ledger.records.get(key);
        record.map(|record| record.history.clone()).unwrap_or_default()
    }

    pub(super) fn all_sessions(&self) -> Vec<Session> {
        let state = self.state();
        let all = state.ledger.records.values();
        all.map(|record| record.session.clone()).collect()
    }

    pub(super) fn live_sessions(&self) -> Vec<Session> {
        let state = self.state();
        let all = state.ledger.records.values().map(|record| &record.session);
        all.filter(|session| !session.status().is_terminal())
            .cloned()
            .collect()
    }

    /// Records a created session.
    pub(super) fn created(&self, create: &Create) {
        let key = create.session.key();
        let record = Record {
            session: create.session.clone(),
            history: vec![create.record.clone()],
        };
        self.count("lives");
        let before = self.state().ledger.records.insert(key.clone(), record);
        if before.is_some() {
            self.broken(format!("{} was created twice", short(&key)));
        }
    }

    /// Records a committed change.
    pub(super) fn changed(&self, session: &Session, record: &EventRecord) {
        self.count("commits");
        let mut state = self.state();
        if let Some(recorded) = state.ledger.records.get_mut(&session.key()) {
            recorded.session = session.clone();
            recorded.history.push(record.clone());
        }
    }

    /// Checks a session that the store has just read.
    pub(super) fn check_read(&self, key: &SessionKey, read: Option<&Session>) {
        let recorded = self.recorded(key);
        if recorded.as_ref() != read {
            self.broken(format!(
                "{} is version {:?}, and was read as {:?}",
                short(key),
                recorded.map(|session| session.version),
                read.map(|session| session.version)
            ));
        }
    }

    /// Records that a report was sent. A report without open calls counts at once.
    pub(super) fn report_sent(&self, proxy: &str, key: &SessionKey, report: SentReport) {
        let mut state = self.state();
        let last = state
            .ledger
            .reports
            .entry((proxy.to_owned(), key.clone()))
            .or_default();
        last.sent = last.sent.max(report.sequence);
        if report.open == 0 {
            last.open = 0;
        }
    }

    /// Records that a manager acknowledged a report.
    pub(super) fn report_acknowledged(&self, proxy: &str, reports: &[(SessionKey, SentReport)]) {
        let now = self.elapsed();
        let mut state = self.state();
        let acknowledged = state.ledger.acknowledged.entry(proxy.to_owned()).or_default();
        *acknowledged = now.max(*acknowledged);
        for (key, report) in reports {
            let last = state
                .ledger
                .reports
                .entry((proxy.to_owned(), key.clone()))
                .or_default();
            if report.sequence < last.sent {
                continue;
            }
            *last = LastReport {
                sent: last.sent,
                generation: report.generation,
                open: report.open,
                at: report.at,
                last: report.last,
            };
        }
    }

    pub(super) fn reports_on(&self, key: &SessionKey) -> Vec<(String, LastReport)> {
        let state = self.state();
        let reports = state.ledger.reports.iter().filter(|((_, of), _)| of == key);
        reports
            .map(|((proxy, _), report)| (proxy.clone(), report.clone()))
            .collect()
    }

    /// The time since the last acknowledged report of each proxy.
    pub(super) fn report_ages(&self, at: Duration) -> Vec<(String, Duration)> {
        let state = self.state();
        let acknowledged = state.ledger.acknowledged.iter();
        acknowledged
            .map(|(proxy, last)| (proxy.clone(), at.saturating_sub(*last)))
            .collect()
    }

    /// Drops the leases of all open calls, after the clock was set.
    pub(super) fn drop_call_leases(&self) {
        for report in self.state().ledger.reports.values_mut() {
            report.open = 0;
        }
    }

    pub(super) fn saw_gone(&self, run: &Run, key: &SessionKey, generation: u64) {
        let ended = self
            .recorded(key)
            .is_some_and(|session| session.status().is_terminal() && session.generation == generation);
        if ended {
            let seen = (run.name.clone(), key.clone());
            self.state().ledger.seen_gone.insert(seen);
        }
    }

    pub(super) fn has_seen_gone(&self, run: &Run, key: &SessionKey) -> bool {
        let seen = (run.name.clone(), key.clone());
        self.state().ledger.seen_gone.contains(&seen)
    }

    /// Records the confirmed start of compute if no record requires it any more.
    pub(super) fn ensure_confirmed(&self, run: &Run, key: &SessionKey, generation: u64) {
        let stale = self
            .recorded(key)
            .is_some_and(|session| !wants(&session, generation));
        if stale && self.sim.live().contains(&(key.clone(), generation)) {
            let stale = StaleCompute {
                run: run.clone(),
                key: key.clone(),
                generation,
                made: self.sim.made(key, generation),
                at: self.elapsed(),
            };
            self.count("stale compute");
            self.note(
                &run.name,
                format_args!("started stale compute of {} g{generation}", short(key)),
            );
            self.state().ledger.stale.push(stale);
        }
    }
}
