//! What must hold, whatever happens.

use super::world::{World, short};
use futures::FutureExt;
use session_core::invariant;
use session_core::machine::{CLOSING_SOON, Transition};
use session_core::{Activity, ChangeReason, Phase, Session, SessionKey, State, Status, Timestamp};
use session_store::{Commit, Loaded, SessionStore};
use std::time::Duration;

/// What a crash can cost: the claim of a due entry, which comes back by then,
/// and the look that was under way.
const LEASE: Duration = Duration::from_secs(33);
const LATE: Duration = Duration::from_secs(2);
/// A proxy that lives has said what is older than this, or is known to be
/// silent: two reports, and the time that one may take.
const REPORTED: Duration = Duration::from_secs(20);
const GONE: Duration = Duration::from_secs(90);

impl World {
    pub(super) fn stored(&self, key: &SessionKey) -> Option<Loaded> {
        self.store.load(key).now_or_never().unwrap().unwrap()
    }

    /// A change that the store is about to take; `before` is what it has.
    pub(super) fn check_commit(&self, before: &Loaded, commit: &Commit) {
        let (old, new) = (&before.session, &commit.session);
        if old.version + 1 != new.version {
            return;
        }
        let change = Transition {
            session: new.clone(),
            record: commit.record.clone(),
            effects: Vec::new(),
        };
        if let Err(broken) = invariant::check_transition(Some(old), &change) {
            self.broken(broken.to_string());
        }
        if change.by_idle_clock() {
            self.check_idle(before, commit);
        }
        if new.reason == ChangeReason::ClosingSoon {
            let deadline = new.closing_announced.unwrap();
            if !self.state().announced.insert((new.key(), deadline)) {
                self.broken(format!("{} announced {deadline} twice", short(&new.key())));
            }
            if self.now().after(CLOSING_SOON) < deadline {
                self.broken(format!("{} announced {deadline} too early", short(&new.key())));
            }
        }
        if let State::Pending { deadline, .. } = old.state
            && new.status() != Status::Pending
        {
            self.check_in_time(old, deadline, "left pending");
        }
    }

    /// Of calls in flight the store knew none, and no proxy that lives and
    /// reports has had one for longer than a report may take.
    fn check_idle(&self, before: &Loaded, commit: &Commit) {
        let session = &before.session;
        let key = session.key();
        if before.activity == Activity::Busy {
            self.broken(format!(
                "{} by its idle clock: {} while a lease was held",
                short(&key),
                commit.record.reason
            ));
        }
        let now = self.elapsed();
        let found = {
            let state = self.state();
            state
                .calls
                .values()
                .find(|call| {
                    let heard = state.heard.get(&call.proxy);
                    call.key == key
                        && call.generation == session.generation
                        && now.saturating_sub(call.opened) > REPORTED
                        && heard.is_some_and(|heard| now.saturating_sub(*heard) < GONE)
                })
                .cloned()
        };
        if let Some(call) = found {
            self.broken(format!(
                "{} by its idle clock: {} with a call in flight for {:?} through {}",
                short(&key),
                commit.record.reason,
                now.saturating_sub(call.opened),
                call.proxy
            ));
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
        let stored = self.stored(key);
        if stored.is_none_or(|stored| stored.session.generation < generation) {
            self.broken(format!(
                "{} generation {generation} was made before that was committed",
                short(key)
            ));
        }
    }

    /// Does a record say that compute up to this generation may go?
    pub(super) fn check_release(&self, key: &SessionKey, up_to: u64) {
        let Some(Loaded { session, .. }) = self.stored(key) else {
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
            let Some(Loaded { session, .. }) = self.stored(key) else {
                if self.state().fed.contains_key(key) {
                    self.broken(format!("{} is gone", short(key)));
                }
                continue;
            };
            self.check_history(&session);
            self.check_clocks(&session);
        }
        for (key, generation) in self.sim.live() {
            let wanted = self.stored(&key).is_some_and(|Loaded { session, .. }| {
                let wants = session.state.has_compute() || session.status() == Status::Pending;
                wants && session.generation == generation
            });
            if !wanted {
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

    /// One event per change, in the history and in the feed.
    fn check_history(&self, session: &Session) {
        let key = session.key();
        let events = self.store.events(&key).now_or_never().unwrap().unwrap();
        let versions: Vec<u64> = events.iter().map(|event| event.version).collect();
        let first = session.version.saturating_sub(49).max(1);
        if !versions.iter().copied().eq(first..=session.version) {
            self.broken(format!("the history of {} is {versions:?}", short(&key)));
        }
        let fed = self.state().fed.get(&key).cloned().unwrap_or_default();
        if !fed.iter().copied().eq(1..=session.version) {
            self.broken(format!("the feed told of {} as {fed:?}", short(&key)));
        }
    }

    fn check_clocks(&self, session: &Session) {
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
