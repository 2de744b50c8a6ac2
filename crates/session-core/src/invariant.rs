//! Invariants of every session and every change, each with a name. The property
//! tests check all of them; the manager checks them before each commit.

use crate::activity::Activity;
use crate::machine::{Effect, RESTART_BUDGET, Transition};
use crate::policy::MAX_LIFETIME;
use crate::reason::ChangeReason;
use crate::session::{Session, State, Status};

/// A violated invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invariant {name} violated for {session}: {detail}")]
pub struct Violation {
    /// Name of the invariant.
    pub name: &'static str,
    /// The session.
    pub session: String,
    /// The observed state.
    pub detail: String,
}

fn hold(session: &Session, checks: &[(&'static str, bool)]) -> Result<(), Violation> {
    match checks.iter().find(|(_, holds)| !holds) {
        None => Ok(()),
        Some((name, _)) => Err(Violation {
            name,
            session: session.id.to_string(),
            detail: format!("{:?}", session.state),
        }),
    }
}

/// Checks one record alone.
///
/// # Errors
/// The first violated invariant.
pub fn check_session(session: &Session) -> Result<(), Violation> {
    let status = session.status();
    hold(
        session,
        &[
            ("versions_start_at_one", session.version >= 1),
            ("generations_start_at_one", session.generation >= 1),
            (
                "idle_since_only_while_idle",
                session.idle_since.is_some() == (status == Status::Idle),
            ),
            (
                "closed_at_only_when_ended",
                session.closed_at.is_some() == status.is_terminal(),
            ),
            (
                "lifetime_is_bounded",
                session.expires_at <= session.created_at.after(MAX_LIFETIME),
            ),
            (
                "warm_while_it_has_compute",
                session.warm_since.is_some() == session.state.has_compute(),
            ),
            (
                "waiting_only_while_pending",
                session.waiting.is_none() || status == Status::Pending,
            ),
            ("restarts_within_budget", session.restarts.len() <= RESTART_BUDGET),
            (
                "route_only_while_active",
                session.state.published_route().is_some() == (status == Status::Active),
            ),
        ],
    )
}

/// Checks a change from `before` (`None` for a creation).
///
/// # Errors
/// The first violated invariant.
pub fn check_transition(before: Option<&Session>, change: &Transition) -> Result<(), Violation> {
    let after = &change.session;
    check_session(after)?;
    check_effects(change)?;
    match before {
        Some(before) => check_succession(before, after),
        None => Ok(()),
    }
}

fn check_effects(change: &Transition) -> Result<(), Violation> {
    let after = &change.session;
    let needs_compute = |generation: u64| {
        generation >= after.generation
            && !matches!(
                after.state,
                State::Closed | State::Failed | State::IdleReleased { .. }
            )
    };
    hold(
        after,
        &[
            (
                "release_spares_compute_in_use",
                change
                    .effects
                    .iter()
                    .all(|e| !matches!(e, Effect::Release { up_to } if needs_compute(*up_to))),
            ),
            (
                "ensure_only_the_current_generation_while_pending",
                change.effects.iter().all(|e| match e {
                    Effect::Ensure { generation } => {
                        *generation == after.generation && after.status() == Status::Pending
                    }
                    Effect::Release { .. } => true,
                }),
            ),
            ("history_has_this_version", change.record.version == after.version),
        ],
    )
}

fn check_succession(before: &Session, after: &Session) -> Result<(), Violation> {
    let replaced = after.status() == Status::Pending && after.generation == before.generation + 1;
    hold(
        after,
        &[
            ("ended_is_final", !before.status().is_terminal()),
            ("version_increases_by_one", after.version == before.version + 1),
            (
                "generation_increases_only_with_new_compute",
                after.generation == before.generation || replaced,
            ),
            (
                "new_compute_is_a_new_generation",
                after.status() != Status::Pending || before.status() == Status::Pending || replaced,
            ),
            ("epoch_never_falls", after.token_epoch >= before.token_epoch),
            (
                "announcing_changes_no_state",
                after.reason != ChangeReason::ClosingSoon || after.state == before.state,
            ),
            (
                "waiting_changes_no_state",
                after.reason != ChangeReason::ComputeWaiting || after.state == before.state,
            ),
            (
                "advice_changes_no_state",
                after.reason != ChangeReason::ClientNewer || after.state == before.state,
            ),
            ("warm_time_never_falls", after.warm_before >= before.warm_before),
            (
                "identity_never_changes",
                (
                    &after.id,
                    &after.org,
                    &after.owner,
                    &after.cluster,
                    &after.catalog,
                    &after.profile,
                    after.created_at,
                ) == (
                    &before.id,
                    &before.org,
                    &before.owner,
                    &before.cluster,
                    &before.catalog,
                    &before.profile,
                    before.created_at,
                ),
            ),
        ],
    )
}

/// Checks the decision of an idle timeout against the activity on which it was
/// based.
///
/// # Errors
/// The first violated invariant.
pub fn check_idle(change: &Transition, activity: Activity) -> Result<(), Violation> {
    let quiet = matches!(activity, Activity::Quiet { .. });
    hold(
        &change.session,
        &[(
            "idle_timeouts_need_complete_reports",
            quiet || !change.by_idle_timeout(),
        )],
    )
}
