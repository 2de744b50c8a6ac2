//! Time of the next reconciliation of a session.

use super::{FROZEN_RECHECK, RECHECK};
use crate::activity::Activity;
use crate::session::{Session, State};
use crate::time::Timestamp;

/// Time at which the session must be reconciled next, if no event occurs
/// before.
pub fn next_due(session: &Session, activity: Activity, now: Timestamp) -> Option<Timestamp> {
    let idle_clock = |quiet_at: Option<Timestamp>| match activity {
        Activity::Unknown => Some(now.after(FROZEN_RECHECK)),
        Activity::Busy => Some(now.after(session.policy.idle_timeout)),
        Activity::Quiet { .. } => quiet_at,
    };
    let own = match (&session.state, activity) {
        (State::Pending { deadline, .. }, _) => Some((*deadline).min(now.after(RECHECK))),
        (State::Active { .. }, Activity::Quiet { last_activity_at }) => session.idle_at(last_activity_at),
        (State::Active { .. }, Activity::Unknown | Activity::Busy) => idle_clock(None),
        (State::IdleReleasing { release_at, .. }, _) => idle_clock(Some(*release_at)),
        (State::IdleKept { .. } | State::IdleReleased { .. }, _) => idle_clock(session.closes_at()),
        (State::Closed | State::Failed, _) => return Some(now.after(RECHECK)),
    };
    let announced_at = session.closing_soon().map(|(at, _)| at);
    [own, announced_at, Some(session.expires_at)]
        .into_iter()
        .flatten()
        .min()
}
