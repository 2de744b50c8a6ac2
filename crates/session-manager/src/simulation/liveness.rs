//! Liveness: sessions become stable within a bounded time after the last fault.

use super::ledger::wants;
use super::world::{World, short};
use futures::FutureExt;
use session_core::{Phase, SessionKey, Status};
use session_store::prelude::*;
use std::time::Duration;

/// Time after the last fault within which every session must be stable.
pub(super) const SETTLING: Duration = Duration::from_secs(120);
/// Longest time of a release that began on time.
const RECENT: Duration = Duration::from_secs(20);
/// Longest delay of a due entry without faults.
const OVERDUE: Duration = Duration::from_secs(2);

impl World {
    /// Records that a user or an engine did something to the session: it need not be stable for a while.
    pub(super) fn stimulate(&self, key: &SessionKey) {
        let now = self.elapsed();
        self.state().stimulated.insert(key.clone(), now);
    }

    /// Checks that every session without requests, calls and losses since `faults_ended` is stable: its compute is what
    /// its record requires, and nothing is due.
    pub(super) fn check_stable(&self, faults_ended: Duration) {
        let live = self.sim.live();
        for session in self.all_sessions() {
            let key = session.key();
            let touched = self.state().stimulated.get(&key).copied();
            if touched.is_some_and(|at| at >= faults_ended) {
                continue;
            }
            // A timeout may have expired just now.
            let changed = self.history(&key).last().map(|change| change.at);
            if changed.is_some_and(|at| self.now().since(at) < RECENT) {
                continue;
            }
            self.count("stable sessions");
            let phase = session.state.phase();
            if session.status() == Status::Pending || phase == Phase::Releasing {
                self.broken(format!(
                    "{} is {} for {SETTLING:?} after the last fault",
                    short(&key),
                    phase.as_str()
                ));
            }
            let exists = |generation| live.contains(&(key.clone(), generation));
            // Kept compute that was lost without an event is missed at the next wake: real providers
            // compare what they have with what they should have, and tell of it.
            let needs = phase != Phase::Kept && wants(&session, session.generation);
            if needs && !exists(session.generation) {
                self.broken(format!(
                    "{} is {} and has no compute, {SETTLING:?} after the last fault",
                    short(&key),
                    phase.as_str()
                ));
            }
            let surplus = live
                .iter()
                .find(|(of, generation)| *of == key && !wants(&session, *generation));
            if let Some((_, generation)) = surplus {
                self.broken(format!(
                    "{} still has compute of generation {generation}, {SETTLING:?} after the last fault",
                    short(&key)
                ));
            }
        }
        let due = self.store.oldest_due().now_or_never().unwrap().unwrap();
        if due.is_some_and(|due| self.now().since(due) > OVERDUE) {
            self.broken(format!(
                "an entry is due since {due:?}, long after the last fault"
            ));
        }
    }
}
