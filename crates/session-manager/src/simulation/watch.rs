//! What must hold at every moment and not only when something is written: so
//! somebody looks every second.

use super::check::LEASE;
use super::ledger::{Ended, Owed, wants};
use super::world::{World, short};
use futures::FutureExt;
use session_core::{Phase, Session, SessionKey, State, Timestamp};
use session_proto::convert;
use session_store::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const TICK: Duration = Duration::from_secs(1);
/// Stale compute goes at once: a read, a request, and the waits of both.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A pass of reconcile each minute, its patience, and its waits.
const ORPHANED: Duration = Duration::from_secs(70);
/// A call that is reported brings its session back: by the report at once, by
/// the next one if that was passed over as mere activity.
const BROUGHT_BACK: Duration = Duration::from_secs(18);
/// The end of a call shows after this, and the waits of the simulation.
const IN_USE: Duration = Duration::from_millis(15_500);
/// To within so much.
const EXACT: Duration = Duration::from_secs(2);
/// What a proxy says late because of a fault is said by then.
const SETTLED: Duration = Duration::from_secs(12);
/// The report of a call's beginning or end.
const REPORT: Duration = Duration::from_secs(7);

pub(super) async fn watch(world: Arc<World>) {
    while world.state().broken.is_empty() {
        tokio::time::sleep(TICK).await;
        world.check_now();
    }
}

impl World {
    fn check_now(&self) {
        self.check_owed();
        self.check_unwanted();
        for session in self.live_sessions() {
            self.check_clocks(&session);
            if self.quiet_for() > LEASE {
                self.check_brought_back(&session);
                self.check_visible(&session);
            }
        }
    }

    /// How long nothing has gone wrong.
    fn quiet_for(&self) -> Duration {
        self.elapsed().saturating_sub(self.state().last_fault)
    }

    fn check_owed(&self) {
        let now = self.elapsed();
        let (mut owed, faults_of, outage_until) = {
            let mut state = self.state();
            let owed = std::mem::take(&mut state.ledger.owed);
            (owed, state.faults_of.clone(), state.outage_until)
        };
        // What others meet is no excuse.
        let met = |who: &str, at| faults_of.get(who).is_some_and(|fault| *fault > at);
        owed.retain(|one: &Owed| {
            let there = self.sim.live().contains(&(one.key.clone(), one.generation))
                && self.sim.made(&one.key, one.generation) == one.made;
            let excused = one.run.is_dead()
                || outage_until > one.at
                || met("world", one.at)
                || met(&one.run.name, one.at);
            if there && !excused && now.saturating_sub(one.at) > AT_ONCE {
                self.broken(format!(
                    "{} learned that compute of {} generation {} is stale, and left it",
                    one.run.name,
                    short(&one.key),
                    one.generation
                ));
            }
            there && !excused
        });
        self.state().ledger.owed.extend(owed);
    }

    fn check_unwanted(&self) {
        let now = self.elapsed();
        let live = self.sim.live();
        let mut unwanted = std::mem::take(&mut self.state().ledger.unwanted);
        unwanted.retain(|id, _| live.contains(id));
        for (key, generation) in live {
            let wanted = self
                .recorded(&key)
                .is_some_and(|session| wants(&session, generation));
            let id = (key, generation);
            if wanted {
                unwanted.remove(&id);
                continue;
            }
            let since = *unwanted.entry(id.clone()).or_insert(now);
            if now.saturating_sub(since) > ORPHANED && self.quiet_for() > ORPHANED {
                self.broken(format!(
                    "{} generation {generation} is compute that nobody has wanted for {:?}",
                    short(&id.0),
                    now.saturating_sub(since)
                ));
            }
        }
        self.state().ledger.unwanted = unwanted;
    }

    /// A call on compute that is still there wins over the decision to idle.
    fn check_brought_back(&self, session: &Session) {
        if !matches!(session.state.phase(), Phase::Kept | Phase::Releasing) {
            return;
        }
        let (key, now) = (session.key(), self.elapsed());
        let found = self.calls_on(&key, session.generation).into_iter().max();
        let idle = session.idle_since.map(|since| self.now().since(since));
        if let (Some(call), Some(idle)) = (found, idle)
            && call > BROUGHT_BACK
            && idle > BROUGHT_BACK
        {
            self.broken(format!(
                "{} stays {} under a call of {call:?} at {now:?}",
                short(&key),
                session.state.phase().as_str()
            ));
        }
    }

    /// How long each call on this generation has been open.
    fn calls_on(&self, key: &SessionKey, generation: u64) -> Vec<Duration> {
        let (now, state) = (self.elapsed(), self.state());
        let calls = state.calls.values();
        calls
            .filter(|call| call.key == *key && call.generation == generation)
            .map(|call| now.saturating_sub(call.opened))
            .collect()
    }

    /// Does `idle_at`, as users see it, tell the truth? While a session is in
    /// use it may tell the truth of 15 s ago; once quiet it tells that of now.
    fn check_visible(&self, session: &Session) {
        let State::Active { .. } = session.state else {
            return;
        };
        let key = session.key();
        let visible = self.visible_idle_at(&key);
        let calls = self.calls_on(&key, session.generation);
        if let Some(longest) = calls.iter().max() {
            if let Some(visible) = visible.filter(|_| *longest > REPORT) {
                self.broken(format!("{} is in use and would idle at {visible}", short(&key)));
            }
            return;
        }
        let (now, last_fault, ended) = {
            let state = self.state();
            let ended = state.ledger.ended.get(&key).cloned().unwrap_or_default();
            (self.elapsed(), state.last_fault, ended)
        };
        let ended = || {
            ended
                .iter()
                .filter(|ended| ended.generation == session.generation)
        };
        // Of calls before it was calm it is not known what was written.
        let calm = |ended: &Ended| ended.at.0 > last_fault + SETTLED;
        let Some(last) = ended().next_back().filter(|last| calm(last)) else {
            return;
        };
        let by = |ended: &Ended| {
            let begun = ended.at.1.max(session.active_at.unwrap_or_default());
            let kept_until = session.keep_alive_until.unwrap_or_default();
            begun.after(session.policy.idle_timeout).max(kept_until)
        };
        let silent = now.saturating_sub(last.at.0);
        let Some(visible) = visible else {
            if silent > REPORT {
                self.broken(format!(
                    "{} is silent for {silent:?} and seems in use",
                    short(&key)
                ));
            }
            return;
        };
        let known = ended().rfind(|ended| calm(ended) && now.saturating_sub(ended.at.0) > IN_USE);
        let least = known.map_or(Timestamp::ZERO, by).before(EXACT);
        let most = by(last).after(EXACT);
        if visible < least || visible > most {
            self.broken(format!(
                "{} is silent for {silent:?} and would idle at {} by what users see, not within {}..{}",
                short(&key),
                visible.as_millis(),
                least.as_millis(),
                most.as_millis()
            ));
        }
        self.count("idle_at seen");
    }

    /// As the API makes it.
    fn visible_idle_at(&self, key: &SessionKey) -> Option<Timestamp> {
        let session = self.store.get(key).now_or_never().unwrap().unwrap()?;
        let sessions = std::slice::from_ref(&session);
        let uses = self.store.usage(sessions).now_or_never().unwrap().unwrap();
        let shown = convert::session(&session, uses.first()?, false).idle_at?;
        let millis = shown.seconds * 1000 + i64::from(shown.nanos) / 1_000_000;
        Some(Timestamp::from_millis(u64::try_from(millis).unwrap()))
    }
}
