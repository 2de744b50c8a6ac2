//! What must hold, whatever happens.

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

/// What a crash can cost: the claim of a due entry, which comes back by then,
/// and the look that was under way.
pub(super) const LEASE: Duration = Duration::from_secs(33);
const LATE: Duration = Duration::from_secs(2);
/// A proxy that lives has said what is older than this, or is known to be
/// silent: two reports, and the time that one may take.
const REPORTED: Duration = Duration::from_secs(20);
const GONE: Duration = Duration::from_secs(90);

/// Clocks that are set back by less than what counts as a jump.
const SET_BACK: Duration = Duration::from_secs(6);
/// Mere activity is written so late at the most.
const COALESCED: Duration = Duration::from_secs(15);
/// A lease is renewed when it has this long to go, at the least.
const HELD: Duration = Duration::from_secs(20);
/// After an outage idle clocks stand still for a minute. What was decided just
/// before it may still be on its way.
const FROZEN: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(50));
/// A proxy that said nothing for so long is waited for: not longer, as it is
/// gone then, and not earlier; both with room for what is on its way.
const SILENT: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(75));

/// Who asked for a change, and when.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) run: Run,
    pub(super) at: Duration,
}

impl World {
    /// A change that the store has just taken.
    pub(super) fn check_commit(&self, commit: &Commit, asked: &Asked) {
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
            self.check_idle(&old, new.reason, asked);
        }
        if new.reason == ChangeReason::ClosingSoon {
            let deadline = new.closing_announced.unwrap();
            // One that went away, for another that was announced, may come back.
            if self.state().announced.insert(new.key(), deadline) == Some(deadline) {
                self.broken(format!("{} announced {deadline} twice", short(&new.key())));
            }
            // By the store's clock when it was decided: it may have gone back since.
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

    /// What lives is always due, and no later than its last clock.
    fn check_due(&self, session: &Session, due: Option<Timestamp>) {
        let last = match session.state {
            State::Pending { deadline, .. } => deadline.min(session.expires_at),
            State::Active { .. }
            | State::IdleKept { .. }
            | State::IdleReleasing { .. }
            | State::IdleReleased { .. } => session.expires_at,
            State::Closed | State::Failed => return,
        };
        if due.is_none_or(|due| due > last.after(LATE)) {
            let due = due.map(|due| due.since(last));
            self.broken(format!(
                "{} is due {due:?} after its deadline",
                short(&session.key())
            ));
        }
    }

    /// A due time that the store has just taken.
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

    /// An idle clock decided this: nothing was in flight, as far as anybody
    /// could know, its time had come, and silence was known.
    fn check_idle(&self, old: &Session, reason: ChangeReason, asked: &Asked) {
        let key = old.key();
        let broken =
            |what: String| self.broken(format!("{} by its idle clock: {reason} {what}", short(&key)));
        if let Some(call) = self.known_call(old) {
            broken(format!(
                "with a call in flight for {:?} through {}",
                self.elapsed().saturating_sub(call.opened),
                call.proxy
            ));
        }
        let (now, elapsed) = (self.now(), self.elapsed());
        let idle_timeout = old.policy.idle_timeout;
        for (proxy, word) in self.words_on(&key) {
            if word.generation != old.generation {
                continue;
            }
            let (sent, sent_at) = word.at;
            if word.open > 0 && elapsed.saturating_sub(sent) < HELD && now.since(sent_at) < HELD {
                broken(format!("under {} calls that {proxy} reported", word.open));
            }
            let Some(last) = word.last else { continue };
            let silent = now.since(last);
            let late = match old.state {
                State::Active { .. } => silent + COALESCED + SET_BACK < idle_timeout,
                State::IdleKept { .. } | State::IdleReleasing { .. } => old
                    .idle_since
                    .is_some_and(|since| last.after(idle_timeout) > since.after(COALESCED + SET_BACK)),
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
        if since.is_none_or(|since| now.since(since).saturating_add(SET_BACK) < wait) {
            broken(format!("from {} before its time", old.state.phase().as_str()));
        }
        if old
            .keep_alive_until
            .is_some_and(|until| until > now.after(SET_BACK))
        {
            broken("while it was to be kept alive".to_owned());
        }
        self.check_silence_known(&key, asked);
    }

    /// A call in flight that a proxy which lives and reports has had for longer
    /// than a report may take.
    fn known_call(&self, session: &Session) -> Option<Call> {
        let (key, now, state) = (session.key(), self.elapsed(), self.state());
        let mut calls = state.calls.values();
        calls
            .find(|call| {
                let heard = state.heard.get(&call.proxy);
                call.key == key
                    && call.generation == session.generation
                    && now.saturating_sub(call.opened) > REPORTED
                    && heard.is_some_and(|heard| now.saturating_sub(*heard) < GONE)
            })
            .cloned()
    }

    /// Neither an outage, nor a manager that began, nor a proxy's silence.
    fn check_silence_known(&self, key: &SessionKey, asked: &Asked) {
        let Asked { run, at } = asked;
        let frozen = |since: Duration| {
            at.checked_sub(since)
                .is_some_and(|passed| passed > FROZEN.0 && passed < FROZEN.1)
        };
        let unsure: Vec<_> = self.state().ledger.unsure.clone();
        for since in unsure.into_iter().filter(|since| frozen(*since)) {
            self.broken(format!(
                "{} by its idle clock {:?} after an outage",
                short(key),
                at.saturating_sub(since)
            ));
        }
        if at.saturating_sub(run.began) < FROZEN.1 {
            self.broken(format!(
                "{} by its idle clock as soon as {} began",
                short(key),
                run.name
            ));
        }
        for (proxy, silent) in self.silences(*at) {
            if silent > SILENT.0 && silent < SILENT.1 {
                self.broken(format!(
                    "{} by its idle clock while {proxy} had said nothing for {silent:?}",
                    short(key)
                ));
            }
        }
    }

    /// Was it done by its deadline and 2 s? Time in which a claim may have been
    /// lost does not count.
    fn check_in_time(&self, session: &Session, deadline: Timestamp, what: &str) {
        let late = self.now().since(deadline);
        let calm = self.elapsed().saturating_sub(self.state().last_fault);
        if late > LATE && calm > LEASE + LATE {
            self.broken(format!(
                "{} {what} {late:?} after its deadline",
                short(&session.key())
            ));
        }
    }

    /// Is compute of this generation meant to be made?
    pub(super) fn check_ensure(&self, key: &SessionKey, generation: u64) {
        let recorded = self.recorded(key);
        if recorded.is_none_or(|session| session.generation < generation) {
            self.broken(format!(
                "{} generation {generation} was made before that was committed",
                short(key)
            ));
        }
    }

    /// Does a record say that compute up to this generation may go?
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

    /// All is calm, for long enough that everything must be settled.
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
                    "{} generation {generation} is compute that nobody wants",
                    short(&key)
                ));
            }
        }
        for violation in self.sim.violations() {
            self.broken(violation);
        }
    }

    /// One event per change, in the history and in the feed, the same as were
    /// committed and in their order.
    fn check_history(&self, session: &Session) {
        let key = session.key();
        let told = |events: &[EventRecord]| events.iter().map(|event| event.version).collect::<Vec<_>>();
        let all = self.history(&key);
        if !told(&all).into_iter().eq(1..=session.version) {
            self.broken(format!("the changes of {} were {:?}", short(&key), told(&all)));
        }
        let events = self.store.events(&key).now_or_never().unwrap().unwrap();
        if events != all[all.len().saturating_sub(MAX_HISTORY)..] {
            self.broken(format!("the history of {} is {:?}", short(&key), told(&events)));
        }
        let fed = self.state().fed.get(&key).cloned().unwrap_or_default();
        if fed != all {
            self.broken(format!("the feed told of {} as {:?}", short(&key), told(&fed)));
        }
    }

    pub(super) fn check_clocks(&self, session: &Session) {
        if let State::Pending { deadline, .. } = session.state {
            self.check_in_time(session, deadline, "is still pending");
        }
        if !session.status().is_terminal() {
            self.check_in_time(session, session.expires_at, "is still alive");
        }
        // Silent for its time, for the minute that clocks stand still after an
        // outage, and for the longest until somebody looks again.
        let (state, now) = (self.state(), self.elapsed());
        let key = session.key();
        if state.calls.values().any(|call| call.key == key) {
            return;
        }
        let used = state.used.get(&key).copied().unwrap_or_default();
        let free = |now: Timestamp| {
            session
                .keep_alive_until
                .is_none_or(|until| until < now.before(LEASE))
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
