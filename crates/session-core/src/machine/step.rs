//! One reconciliation: transitions that follow from compute, activity and
//! deadlines.

use super::change::Change;
use super::due::next_due;
use super::waiting::Waiting;
use super::{Cause, Effect, MAX_RECHECK, Observation, RECHECK, Step, Transition};
use crate::activity::Activity;
use crate::principal::Actor;
use crate::reason::ChangeReason;
use crate::session::{Session, State};
use crate::time::Timestamp;
use std::time::Duration;

/// Reconciles a session because it is due or because of a report about it.
/// `observation` is the provider's view of the current generation's compute;
/// `None` if the provider did not answer, which causes no transition.
pub fn step(
    session: &Session,
    observation: Option<&Observation>,
    activity: Activity,
    now: Timestamp,
) -> Step {
    let change = || Change::of(session, Actor::System, now);
    let gone = matches!(observation, Some(Observation::Missing));
    if session.status().is_terminal() {
        return if gone {
            Step::done()
        } else {
            Step {
                transition: None,
                effects: vec![release(session)],
                due: Some(next_release_check(session, now)),
            }
        };
    }
    if now >= session.expires_at {
        return Step::commit(change().expire(), activity, now);
    }
    let announced = || {
        let (at, closes_at) = session.closing_soon()?;
        (now >= at).then(|| change().announce(closes_at))
    };
    match decide(session, observation, activity, now).or_else(announced) {
        Some(transition) => Step::commit(transition, activity, now),
        None => unfinished(session, observation, activity, now),
    }
}

/// The transition that follows from the compute and the activity, if any.
fn decide(
    session: &Session,
    observation: Option<&Observation>,
    activity: Activity,
    now: Timestamp,
) -> Option<Transition> {
    let change = || Change::of(session, Actor::System, now);
    let lost = lost_cause(observation).filter(|_| session.policy.dedicated);
    match &session.state {
        State::Pending { making, deadline } => match observation {
            Some(Observation::Ready { route }) => {
                Some(change().activate(route.clone(), ChangeReason::ComputeReady))
            }
            Some(Observation::Failed {
                cause,
                permanent: true,
            }) => Some(change().creation_failed(*making, cause.clone(), true)),
            Some(_) | None if now >= *deadline => {
                Some(change().creation_failed(*making, timeout_cause(session, observation), false))
            }
            Some(Observation::Missing | Observation::Failed { .. } | Observation::Starting { .. }) | None => {
                match Waiting::decide(session, observation, now) {
                    Waiting::Now(cause) => Some(change().wait_for(cause)),
                    Waiting::Later(_) | Waiting::Recorded => None,
                }
            }
        },
        State::Active { .. } => match (lost, activity) {
            (Some(cause), _) => Some(change().replace_lost(cause)),
            (None, Activity::Quiet { last_activity_at })
                if session.idle_at(last_activity_at).is_some_and(|at| now >= at) =>
            {
                Some(change().idle())
            }
            (None, _) => None,
        },
        State::IdleKept { route } | State::IdleReleasing { route, .. } => {
            if let Some(cause) = lost {
                Some(change().idle_without_compute(ChangeReason::ComputeLost, cause, Duration::ZERO))
            } else if used_since(session, activity) {
                Some(change().activate(route.clone(), ChangeReason::Activity))
            } else if idle_is_over(session, activity, now) {
                Some(change().end(State::Closed, ChangeReason::IdleClose, Cause::default()))
            } else if release_is_due(&session.state, activity, now) {
                Some(change().idle_without_compute(
                    ChangeReason::IdleReleased,
                    Cause::default(),
                    Duration::ZERO,
                ))
            } else {
                None
            }
        }
        State::IdleReleased { .. } => idle_is_over(session, activity, now)
            .then(|| change().end(State::Closed, ChangeReason::IdleClose, Cause::default())),
        State::Closed | State::Failed => None,
    }
}

/// Without a transition, the work of an earlier decision continues until it is
/// confirmed.
fn unfinished(
    session: &Session,
    observation: Option<&Observation>,
    activity: Activity,
    now: Timestamp,
) -> Step {
    let gone = matches!(observation, Some(Observation::Missing));
    let broken = matches!(observation, Some(Observation::Failed { .. }));
    let (effects, repeated_at) = match session.state {
        State::IdleReleased { .. } if !gone => {
            (vec![release(session)], Some(next_release_check(session, now)))
        }
        State::Pending { .. } if gone || broken => {
            let ensure = Effect::Ensure {
                generation: session.generation,
            };
            (vec![ensure], None)
        }
        State::Pending { .. }
        | State::Active { .. }
        | State::IdleKept { .. }
        | State::IdleReleasing { .. }
        | State::IdleReleased { .. }
        | State::Closed
        | State::Failed => (Vec::new(), None),
    };
    let record_at = match Waiting::decide(session, observation, now) {
        Waiting::Later(at) => Some(at),
        Waiting::Now(_) | Waiting::Recorded => None,
    };
    let due = [next_due(session, activity, now), record_at, repeated_at];
    Step {
        transition: None,
        effects,
        due: due.into_iter().flatten().min(),
    }
}

/// Gives back the compute of all generations so far.
fn release(session: &Session) -> Effect {
    Effect::Release {
        up_to: session.generation,
    }
}

/// Time of the next check of a release: after as much time as it has taken so far, within bounds.
fn next_release_check(session: &Session, now: Timestamp) -> Timestamp {
    let begun = session.closed_at.or(session.idle_since).unwrap_or(now);
    now.after(now.since(begun).clamp(RECHECK, MAX_RECHECK))
}

fn lost_cause(observation: Option<&Observation>) -> Option<Cause> {
    match observation {
        Some(Observation::Missing) => Some("its compute is gone".into()),
        Some(Observation::Failed { cause, .. }) => Some(cause.clone()),
        Some(Observation::Starting { .. } | Observation::Ready { .. }) | None => None,
    }
}

fn timeout_cause(session: &Session, observation: Option<&Observation>) -> Cause {
    let allowed = session.policy.provisioning_deadline.as_secs();
    let last = match observation {
        Some(Observation::Starting { cause } | Observation::Failed { cause, .. }) => cause.text.as_str(),
        Some(Observation::Missing) => "it could not be started",
        Some(Observation::Ready { .. }) | None => "its state is unknown",
    };
    let detail = match observation {
        Some(Observation::Starting { cause } | Observation::Failed { cause, .. }) => cause.detail.clone(),
        Some(Observation::Ready { .. } | Observation::Missing) | None => String::new(),
    };
    Cause {
        text: format!("compute was not ready within {allowed} s: {last}"),
        detail,
    }
}

/// Whether a call is in flight, or occurred and was not included in the
/// decision to idle. A late report overrides that decision.
fn used_since(session: &Session, activity: Activity) -> bool {
    match activity {
        Activity::Busy => true,
        Activity::Quiet { last_activity_at } => session
            .idle_since
            .is_some_and(|since| last_activity_at.after(session.policy.idle_timeout) > since),
        Activity::Unknown => false,
    }
}

fn idle_is_over(session: &Session, activity: Activity, now: Timestamp) -> bool {
    matches!(activity, Activity::Quiet { .. }) && session.closes_at().is_some_and(|at| now >= at)
}

fn release_is_due(state: &State, activity: Activity, now: Timestamp) -> bool {
    matches!((state, activity), (State::IdleReleasing { release_at, .. }, Activity::Quiet { .. }) if now >= *release_at)
}

impl Step {
    fn done() -> Self {
        Self {
            transition: None,
            effects: Vec::new(),
            due: None,
        }
    }

    fn commit(transition: Transition, activity: Activity, now: Timestamp) -> Self {
        let due = if transition.effects.is_empty() {
            next_due(&transition.session, activity, now)
        } else {
            Some(now.after(RECHECK))
        };
        Self {
            transition: Some(transition),
            effects: Vec::new(),
            due,
        }
    }
}
