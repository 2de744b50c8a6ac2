//! The invariants that every simulation checks.

use super::ledger::wants;
use super::store::Run;
use super::world::{Call, World, short};
use futures::FutureExt;
use session_core::invariant;
use session_core::machine::{CLOSING_SOON, RELEASE_GRACE, Transition};
use session_core::{ChangeReason, EventRecord, Phase, Session, SessionKey, State, Status, Timestamp};
use session_store::prelude::*;
use session_store::{Commit, MAX_HISTORY};
use std::time::Duration;

/// Longest delay by a crash: the lease of a claimed due entry, and the
/// reconciliation that was in progress.
pub(super) const CRASH_DELAY: Duration = Duration::from_secs(33);
/// Tolerance of deadlines.
const TOLERANCE: Duration = Duration::from_secs(2);
/// A live proxy has reported everything older than this, or its reports count as
/// overdue: two reports, and the duration of one.
const REPORT_DELAY: Duration = Duration::from_secs(20);
/// Time without reports after which a proxy counts as gone.
const GONE: Duration = Duration::from_secs(90);
/// Largest step back of the clock that does not count as a jump.
const MAX_STEP_BACK: Duration = Duration::from_secs(6);
/// Longest delay of the write of activity that does not change the use.
const WRITE_DELAY: Duration = Duration::from_secs(15);
/// Shortest remaining term of a lease of open calls.
const LEASE_HELD: Duration = Duration::from_secs(20);
/// Idle timeouts are paused for a minute after an outage; decisions from just
/// before it may still be written.
const PAUSED: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(50));
/// Overdue reports of a proxy defer idle timeouts in this interval; it is shortened
/// on both sides by messages in flight.
const OVERDUE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(75));

/// The manager that requested a change, and when.
#[derive(Debug, Clone)]
pub(super) struct Requested {
    pub(super) run: Run,
    pub(super) at: Duration,
}

impl World {
    /// Checks a change that the store has just committed.
    pub(super) fn check_commit(&self, commit: &Commit, requested: &Requested) {
        let new = &commit.session;
        let key = new.key();
        let Some(old) = self.recorded(&key) else {
            self.broken(format!("{} was changed and never created", short(&key)));
            return;
        };
        self.changed(new, &commit.record);
        if old.version + 1 != new.version {
            self.broken(format!(
                "version {} of {} was taken in place of version {}",
                new.version,
                short(&key),
                old.version
            ));
        }
        if old.status().is_terminal() {
            let to = new.state.phase().as_str();
            self.broken(format!("{} had ended and is {to} again", short(&key)));
        }
        let change = Transition {
            session: new.clone(),
            record: commit.record.clone(),
            effects: Vec::new(),
        };
        if let Err(broken) = invariant::check_transition(Some(&old), &change) {
            self.broken(broken.to_string());
        }
        self.check_due(new, commit.due);
        if change.by_idle_timeout() {
            self.check_idle(&old, new.reason, requested);
        }
        if new.reason == ChangeReason::ClosingSoon {
            let deadline = new.closing_announced.unwrap();
            // A deadline that was replaced by another one may be announced again.
            if self.state().announced.insert(new.key(), deadline) == Some(deadline) {
                self.broken(format!("{} announced {deadline} twice", short(&new.key())));
            }
            // By the store's clock at the decision, which may have been set back since.
            if commit.record.at.after(CLOSING_SOON) < deadline {
                self.broken(format!("{} announced {deadline} too early", short(&new.key())));
            }
        }
        if let State::Pending { deadline, .. } = old.state
            && new.status() != Status::Pending
        {
            self.check_in_time(&old, deadline, "left pending");
        }
    }

    /// Checks that a live session is due, and no later than its last deadline.
    fn check_due(&self, session: &Session, due: Option<Timestamp>) {
        let last = match session.state {
            State::Pending { deadline, .. } => deadline.min(session.expires_at),
            State::Active { .. }
            | State::IdleKept { .. }
            | State::IdleReleasing { .. }
            | State::IdleReleased { .. } => session.expires_at,
            State::Closed | State::Failed => return,
        };
        if due.is_none_or(|due| due > last.after(TOLERANCE)) {
            let due = due.map(|due| due.since(last));
            self.broken(format!(
                "{} is due {due:?} after its deadline",
                short(&session.key())
            ));
        }
    }

    /// Checks a due time that the store has just set.
    pub(super) fn check_set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>, run: &Run) {
        let Some(session) = self.recorded(key) else {
            self.broken(format!("{} has a due time and no record", short(key)));
            return;
        };
        if session.version != version {
            self.broken(format!(
                "the due time of version {version} of {} was taken for version {}",
                short(key),
                session.version
            ));
        }
        self.check_due(&session, due);
        if due.is_none() && !self.has_seen_gone(run, key) {
            self.broken(format!(
                "{} let {} go and has not seen that its compute is gone",
                run.name,
                short(key)
            ));
        }
    }

    /// Checks a decision by an idle timeout: no reported call was open, the timeout
    /// had expired, and reports were fresh.
    fn check_idle(&self, old: &Session, reason: ChangeReason, requested: &Requested) {
        let key = old.key();
        let broken =
            |what: String| self.broken(format!("{} by its idle timeout: {reason} {what}", short(&key)));
        if let Some(call) = self.known_call(old) {
            broken(format!(
                "with a call in flight for {:?} through {}",
                self.elapsed().saturating_sub(call.opened),
                call.proxy
            ));
        }
        let (now, elapsed) = (self.now(), self.elapsed());
        let idle_timeout = old.policy.idle_timeout;
        for (proxy, report) in self.reports_on(&key) {
            if report.generation != old.generation {
                continue;
            }
            let (sent, sent_at) = report.at;
            if report.open > 0 && elapsed.saturating_sub(sent) < LEASE_HELD && now.since(sent_at) < LEASE_HELD
            {
                broken(format!("under {} calls that {proxy} reported", report.open));
            }
            let Some(last) = report.last else { continue };
            let silent = now.since(last);
            let late = match old.state {
                State::Active { .. } => silent + WRITE_DELAY + MAX_STEP_BACK < idle_timeout,
                State::IdleKept { .. } | State::IdleReleasing { .. } => old
                    .idle_since
                    .is_some_and(|since| last.after(idle_timeout) > since.after(WRITE_DELAY + MAX_STEP_BACK)),
                State::Pending { .. } | State::IdleReleased { .. } | State::Closed | State::Failed => false,
            };
            if late {
                broken(format!("{silent:?} after a call that {proxy} reported"));
            }
        }
        let (since, wait) = match old.state {
            State::Active { .. } => (old.active_at, idle_timeout),
            State::IdleKept { .. } | State::IdleReleasing { .. } | State::IdleReleased { .. } => {
                let wait = if reason == ChangeReason::IdleReleased {
                    RELEASE_GRACE
                } else {
                    old.policy.close_after_idle.max(RELEASE_GRACE)
                };
                (old.idle_since, wait)
            }
            State::Pending { .. } | State::Closed | State::Failed => (None, Duration::MAX),
        };
        if since.is_none_or(|since| now.since(since).saturating_add(MAX_STEP_BACK) < wait) {
            broken(format!("from {} before its time", old.state.phase().as_str()));
        }
        if old
            .keep_alive_until
            .is_some_and(|until| until > now.after(MAX_STEP_BACK))
        {
            broken("while it was to be kept alive".to_owned());
        }
        self.check_reports_fresh(&key, requested);
    }

    /// An open call of a live proxy that is older than the delay of reports.
    fn known_call(&self, session: &Session) -> Option<Call> {
        let (key, now, state) = (session.key(), self.elapsed(), self.state());
        let mut calls = state.calls.values();
        calls
            .find(|call| {
                let accepted = state.accepted.get(&call.proxy);
                call.key == key
                    && call.generation == session.generation
                    && now.saturating_sub(call.opened) > REPORT_DELAY
                    && accepted.is_some_and(|accepted| now.saturating_sub(*accepted) < GONE)
            })
            .cloned()
    }

    /// Checks that a decision did not follow an outage, the start of its manager or
    /// overdue reports of a proxy.
    fn check_reports_fresh(&self, key: &SessionKey, requested: &Requested) {
        let Requested { run, at } = requested;
        let paused = |since: Duration| {
            at.checked_sub(since)
                .is_some_and(|passed| passed > PAUSED.0 && passed < PAUSED.1)
        };
        let outages: Vec<_> = self.state().ledger.outage_ends.clone();
        for since in outages.into_iter().filter(|since| paused(*since)) {
            self.broken(format!(
                "{} by its idle timeout {:?} after an outage",
                short(key),
                at.saturating_sub(since)
            ));
        }
        if at.saturating_sub(run.began) < PAUSED.1 {
            self.broken(format!(
                "{} by its idle timeout just after the start of {}",
                short(key),
                run.name
            ));
        }
        for (proxy, silent) in self.report_ages(*at) {
            if silent > OVERDUE.0 && silent < OVERDUE.1 {
                self.broken(format!(
                    "{} by its idle timeout while {proxy} had not reported for {silent:?}",
                    short(key)
                ));
            }
        }
    }

    /// Checks a deadline with its tolerance, unless a claim may have been lost by a
    /// fault.
    fn check_in_time(&self, session: &Session, deadline: Timestamp, what: &str) {
        let late = self.now().since(deadline);
        let calm = self.elapsed().saturating_sub(self.state().last_fault);
        if late > TOLERANCE && calm > CRASH_DELAY + TOLERANCE {
            self.broken(format!(
                "{} {what} {late:?} after its deadline",
                short(&session.key())
            ));
        }
    }

    /// Checks that compute of this generation is required.
    pub(super) fn check_ensure(&self, key: &SessionKey, generation: u64) {
        let recorded = self.recorded(key);
        if recorded.is_none_or(|session| session.generation < generation) {
            self.broken(format!(
                "{} generation {generation} was made before that was committed",
                short(key)
            ));
        }
    }

    /// Checks that the record permits the release of compute up to this generation.
    pub(super) fn check_release(&self, key: &SessionKey, up_to: u64) {
        let Some(session) = self.recorded(key) else {
            self.broken(format!("compute of {} was released without a record", short(key)));
            return;
        };
        let may_go = match session.state {
            State::Closed | State::Failed => true,
            State::IdleReleased { .. } => session.generation >= up_to,
            State::Pending { .. }
            | State::Active { .. }
            | State::IdleKept { .. }
            | State::IdleReleasing { .. } => session.generation > up_to,
        };
        if !may_go {
            let phase = session.state.phase().as_str();
            self.broken(format!(
                "{} is {phase} with generation {}, and compute up to {up_to} was released",
                short(key),
                session.generation
            ));
        }
    }

    /// Checks the end of a simulation, after a time without faults in which everything
    /// must have settled.
    pub(super) fn check_end(&self) {
        let keys = self.state().sessions.clone();
        for key in &keys {
            let stored = self.store.get(key).now_or_never().unwrap().unwrap();
            self.check_read(key, stored.as_ref());
            if let Some(session) = self.recorded(key) {
                self.check_history(&session);
                self.check_clocks(&session);
            }
        }
        for (key, generation) in self.sim.live() {
            let recorded = self.recorded(&key);
            if !recorded.is_some_and(|session| wants(&session, generation)) {
                self.broken(format!(
                    "{} generation {generation} is compute that no record requires",
                    short(&key)
                ));
            }
        }
        for violation in self.sim.violations() {
            self.broken(violation);
        }
    }

    /// Checks that history and feed contain the committed changes, each once and in
    /// order.
    fn check_history(&self, session: &Session) {
        let key = session.key();
        let versions = |events: &[EventRecord]| events.iter().map(|event| event.version).collect::<Vec<_>>();
        let all = self.history(&key);
        if !versions(&all).into_iter().eq(1..=session.version) {
            self.broken(format!(
                "the changes of {} were {:?}",
                short(&key),
                versions(&all)
            ));
        }
        let events = self.store.events(&key).now_or_never().unwrap().unwrap();
        if events != all[all.len().saturating_sub(MAX_HISTORY)..] {
            self.broken(format!(
                "the history of {} is {:?}",
                short(&key),
                versions(&events)
            ));
        }
        let fed = self.state().fed.get(&key).cloned().unwrap_or_default();
        if fed != all {
            self.broken(format!("the feed of {} is {:?}", short(&key), versions(&fed)));
        }
    }

    pub(super) fn check_clocks(&self, session: &Session) {
        if let State::Pending { deadline, .. } = session.state {
            self.check_in_time(session, deadline, "is still pending");
        }
        if !session.status().is_terminal() {
            self.check_in_time(session, session.expires_at, "is still alive");
        }
        // The idle timeout, the minute of its pause after an outage, and the longest
        // time until the next reconciliation.
        let (state, now) = (self.state(), self.elapsed());
        let key = session.key();
        if state.calls.values().any(|call| call.key == key) {
            return;
        }
        let used = state.used.get(&key).copied().unwrap_or_default();
        let free = |now: Timestamp| {
            session
                .keep_alive_until
                .is_none_or(|until| until < now.before(CRASH_DELAY))
        };
        let long = Duration::from_secs(60 + 60 + 30) + session.policy.idle_timeout;
        let active = session
            .active_at
            .map_or(Duration::ZERO, |at| self.now().since(at));
        let stuck = match session.state.phase() {
            Phase::Ready => {
                now.saturating_sub(used.max(state.last_fault)) > long && active > long && free(self.now())
            }
            Phase::Releasing => {
                let idle = session
                    .idle_since
                    .map_or(Duration::ZERO, |at| self.now().since(at));
                now.saturating_sub(state.last_fault) > long && idle > long
            }
            Phase::Provisioning
            | Phase::Warming
            | Phase::Restarting
            | Phase::Kept
            | Phase::Released
            | Phase::Ended => false,
        };
        drop(state);
        if stuck {
            self.broken(format!(
                "{} is unused and stays {}",
                short(&key),
                session.state.phase().as_str()
            ));
        }
    }
}
