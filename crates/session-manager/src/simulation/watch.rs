//! Invariants that hold at any time and not only at writes: checked every second.

use super::check::CRASH_DELAY;
use super::ledger::{EndedCall, StaleCompute, wants};
use super::world::{World, short};
use futures::FutureExt;
use session_core::{Phase, Session, SessionKey, State, Timestamp};
use session_proto::convert;
use session_store::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest life of stale compute: a read and a request with their delays.
const MAX_STALE: Duration = Duration::from_secs(5);
/// Longest life of an orphan: the interval of passes, the grace period, and delays.
const MAX_ORPHANED: Duration = Duration::from_secs(70);
/// Longest time until a reported call reactivates its session: the report, or the
/// next one if that was not written at once.
const MAX_REACTIVATION: Duration = Duration::from_secs(18);
/// Longest time until the end of a call is visible.
const MAX_VISIBILITY_DELAY: Duration = Duration::from_millis(15_500);
/// Tolerance of the visible idle time.
const TOLERANCE: Duration = Duration::from_secs(2);
/// Longest delay of reports after a fault.
const SETTLED: Duration = Duration::from_secs(12);
/// Longest delay of the report of a call's start or end.
const REPORT_DELAY: Duration = Duration::from_secs(7);

pub(super) async fn watch(world: Arc<World>) {
    while world.state().broken.is_empty() {
        tokio::time::sleep(CHECK_INTERVAL).await;
        world.check_now();
    }
}

impl World {
    fn check_now(&self) {
        self.check_stale();
        self.check_unwanted();
        for session in self.live_sessions() {
            self.check_clocks(&session);
            if self.faultless_for() > CRASH_DELAY {
                self.check_reactivated(&session);
                self.check_visible(&session);
            }
        }
    }

    /// The time since the last fault.
    fn faultless_for(&self) -> Duration {
        self.elapsed().saturating_sub(self.state().last_fault)
    }

    fn check_stale(&self) {
        let now = self.elapsed();
        let (mut stale, faults_of, outage_until) = {
            let mut state = self.state();
            let stale = std::mem::take(&mut state.ledger.stale);
            (stale, state.faults_of.clone(), state.outage_until)
        };
        // Only faults of the manager itself and of the whole world count.
        let met = |who: &str, at| faults_of.get(who).is_some_and(|fault| *fault > at);
        stale.retain(|one: &StaleCompute| {
            let exists = self.sim.live().contains(&(one.key.clone(), one.generation))
                && self.sim.made(&one.key, one.generation) == one.made;
            let excused = one.run.is_dead()
                || outage_until > one.at
                || met("world", one.at)
                || met(&one.run.name, one.at);
            if exists && !excused && now.saturating_sub(one.at) > MAX_STALE {
                self.broken(format!(
                    "{} did not release stale compute of {} generation {}",
                    one.run.name,
                    short(&one.key),
                    one.generation
                ));
            }
            exists && !excused
        });
        self.state().ledger.stale.extend(stale);
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
            if now.saturating_sub(since) > MAX_ORPHANED && self.faultless_for() > MAX_ORPHANED {
                self.broken(format!(
                    "{} generation {generation} is compute that no record has required for {:?}",
                    short(&id.0),
                    now.saturating_sub(since)
                ));
            }
        }
        self.state().ledger.unwanted = unwanted;
    }

    /// Checks that a call on existing compute overrides the decision to idle.
    fn check_reactivated(&self, session: &Session) {
        if !matches!(session.state.phase(), Phase::Kept | Phase::Releasing) {
            return;
        }
        let (key, now) = (session.key(), self.elapsed());
        let longest = self.calls_on(&key, session.generation).into_iter().max();
        let idle = session.idle_since.map(|since| self.now().since(since));
        if let (Some(call), Some(idle)) = (longest, idle)
            && call > MAX_REACTIVATION
            && idle > MAX_REACTIVATION
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

    /// Checks the visible `idle_at`: while a session is in use it may be 15 s old,
    /// afterwards it is current.
    fn check_visible(&self, session: &Session) {
        let State::Active { .. } = session.state else {
            return;
        };
        let key = session.key();
        let visible = self.visible_idle_at(&key);
        let calls = self.calls_on(&key, session.generation);
        if let Some(longest) = calls.iter().max() {
            if let Some(visible) = visible.filter(|_| *longest > REPORT_DELAY) {
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
        // Writes of calls before the last fault are unknown.
        let calm = |ended: &EndedCall| ended.at.0 > last_fault + SETTLED;
        let Some(last) = ended().next_back().filter(|last| calm(last)) else {
            return;
        };
        let by = |ended: &EndedCall| {
            let begun = ended.at.1.max(session.active_at.unwrap_or_default());
            let kept_until = session.keep_alive_until.unwrap_or_default();
            begun.after(session.policy.idle_timeout).max(kept_until)
        };
        let silent = now.saturating_sub(last.at.0);
        let Some(visible) = visible else {
            if silent > REPORT_DELAY {
                self.broken(format!(
                    "{} is silent for {silent:?} and seems in use",
                    short(&key)
                ));
            }
            return;
        };
        let visible_since = |ended: &EndedCall| now.saturating_sub(ended.at.0) > MAX_VISIBILITY_DELAY;
        let known = ended().rfind(|ended| calm(ended) && visible_since(ended));
        let least = known.map_or(Timestamp::ZERO, by).before(TOLERANCE);
        let most = by(last).after(TOLERANCE);
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

    /// The `idle_at` that the API returns.
    fn visible_idle_at(&self, key: &SessionKey) -> Option<Timestamp> {
        let session = self.store.get(key).now_or_never().unwrap().unwrap()?;
        let sessions = std::slice::from_ref(&session);
        let uses = self.store.usage(sessions).now_or_never().unwrap().unwrap();
        let shown = convert::session(&session, uses.first()?, false).idle_at?;
        let millis = shown.seconds * 1000 + i64::from(shown.nanos) / 1_000_000;
        Some(Timestamp::from_millis(u64::try_from(millis).unwrap()))
    }
}
