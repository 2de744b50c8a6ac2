//! Construction of a transition: the next record, its history entry and its
//! effects.

use super::{Cause, Effect, RELEASE_GRACE, RESTART_BUDGET, RESTART_WINDOW, Transition, WAKE_BUDGET};
use crate::policy::IdlePolicy;
use crate::principal::Actor;
use crate::reason::ChangeReason;
use crate::route::Route;
use crate::session::{EventRecord, LastWaiting, Making, Session, State, Status};
use crate::time::Timestamp;
use std::time::Duration;

const MIN_WAKE_BACKOFF: Duration = Duration::from_secs(5);
const MAX_WAKE_BACKOFF: Duration = Duration::from_secs(120);
/// A factor of 3 gives waits of 5, 15, 45 and 120 s, so that the last wait of
/// the budget is the maximum; a factor of 2 would end at 40 s.
const WAKE_BACKOFF_FACTOR: u32 = 3;

pub(super) fn record_of(from: Option<Status>, session: &Session, actor: Actor, at: Timestamp) -> EventRecord {
    EventRecord {
        version: session.version,
        at,
        from,
        to: session.status(),
        phase: session.state.phase(),
        generation: session.generation,
        reason: session.reason,
        actor,
        message: cut(&session.status_message),
        address: String::new(),
    }
}

/// The text for the history.
pub(super) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(EventRecord::MESSAGE_BYTES)].to_owned()
}

/// A transition under construction.
pub(super) struct Change<'a> {
    before: &'a Session,
    pub(super) next: Session,
    actor: Actor,
    pub(super) now: Timestamp,
}

impl<'a> Change<'a> {
    pub(super) fn of(before: &'a Session, actor: Actor, now: Timestamp) -> Self {
        let mut next = before.clone();
        next.version += 1;
        Self {
            before,
            next,
            actor,
            now,
        }
    }

    fn done(mut self, reason: ChangeReason, cause: Cause, effects: Vec<Effect>) -> Transition {
        self.next.reason = reason;
        self.next
            .waiting
            .take_if(|_| self.next.state.status() != Status::Pending);
        self.count_warm();
        let mut detail = cause.detail;
        let excess = detail.len().saturating_sub(Cause::DETAIL_BYTES);
        detail.drain(..detail.ceil_char_boundary(excess));
        self.next.status_message = cause.text;
        self.next.status_detail = detail;
        Transition {
            record: record_of(Some(self.before.status()), &self.next, self.actor, self.now),
            session: self.next,
            effects,
        }
    }

    /// The warm time of replaced compute ends with its generation.
    fn count_warm(&mut self) {
        let next = &mut self.next;
        let goes_on = self.before.state.has_compute() && next.state.has_compute();
        if let Some(since) = next.warm_since.take_if(|_| !goes_on) {
            next.warm_before = next.warm_before.saturating_add(self.now.since(since));
        }
        if next.state.has_compute() {
            next.warm_since.get_or_insert(self.now);
        }
    }

    /// Records the announcement that the session closes at `closes_at`.
    pub(super) fn announce(mut self, closes_at: Timestamp) -> Transition {
        self.next.closing_announced = Some(closes_at);
        let mut change = self.keep_state(ChangeReason::ClosingSoon);
        change.record.message = format!("it will be closed at {closes_at}");
        change
    }

    pub(super) fn keep_state(self, reason: ChangeReason) -> Transition {
        let cause = Cause {
            text: self.before.status_message.clone(),
            detail: self.before.status_detail.clone(),
        };
        self.done(reason, cause, Vec::new())
    }

    pub(super) fn update(mut self, edit: impl FnOnce(&mut Session)) -> Transition {
        edit(&mut self.next);
        self.keep_state(ChangeReason::Updated)
    }

    pub(super) fn activate(mut self, route: Route, reason: ChangeReason) -> Transition {
        self.next.state = State::Active { route };
        self.next.active_at = Some(self.now);
        self.next.idle_since = None;
        self.next.failed_wakes = 0;
        self.done(reason, Cause::default(), Vec::new())
    }

    /// Records what pending compute waits for.
    pub(super) fn wait_for(mut self, cause: Cause) -> Transition {
        let count = self.next.waiting.map_or(0, |last| last.count);
        self.next.waiting = Some(LastWaiting {
            at: self.now,
            count: count.saturating_add(1),
        });
        self.done(ChangeReason::ComputeWaiting, cause, Vec::new())
    }

    /// Starts the creation of compute for `next.generation`.
    pub(super) fn create_compute(mut self, making: Making, reason: ChangeReason, cause: Cause) -> Transition {
        let generation = self.next.generation;
        let deadline = self.now.after(self.next.policy.provisioning_deadline);
        self.next.state = State::Pending { making, deadline };
        self.next.idle_since = None;
        self.next.waiting = None;
        let mut effects = vec![Effect::Ensure { generation }];
        if generation > 1 {
            effects.push(Effect::Release {
                up_to: generation - 1,
            });
        }
        self.done(reason, cause, effects)
    }

    pub(super) fn creation_failed(mut self, making: Making, cause: Cause, permanent: bool) -> Transition {
        match making {
            Making::Provisioning => {
                let reason = if permanent {
                    ChangeReason::ProvisioningFailed
                } else {
                    ChangeReason::ProvisioningTimeout
                };
                self.end(State::Failed, reason, cause)
            }
            Making::Warming => {
                self.next.failed_wakes += 1;
                let failed = self.next.failed_wakes;
                if permanent || failed >= WAKE_BUDGET {
                    self.end(State::Failed, ChangeReason::WarmBudgetSpent, cause)
                } else {
                    self.idle_without_compute(ChangeReason::WarmFailed, cause, wake_backoff(failed))
                }
            }
            Making::Restarting => self.replace_lost(cause),
        }
    }

    pub(super) fn replace_lost(mut self, cause: Cause) -> Transition {
        let window_start = self.now.before(RESTART_WINDOW);
        self.next.restarts.retain(|at| *at > window_start);
        if self.next.restarts.len() >= RESTART_BUDGET {
            return self.end(State::Failed, ChangeReason::RestartBudgetSpent, cause);
        }
        self.next.restarts.push(self.now);
        self.next.generation += 1;
        self.next.replaced_at = Some(self.now);
        self.create_compute(Making::Restarting, ChangeReason::ComputeLost, cause)
    }

    pub(super) fn idle(mut self) -> Transition {
        let State::Active { route } = self.next.state.clone() else {
            return self.keep_state(ChangeReason::IdleTimeout);
        };
        self.next.idle_since = Some(self.now);
        self.next.state = match self.next.policy.on_idle {
            IdlePolicy::Keep => State::IdleKept { route },
            IdlePolicy::Release => State::IdleReleasing {
                route,
                release_at: self.now.after(RELEASE_GRACE),
            },
        };
        self.done(ChangeReason::IdleTimeout, Cause::default(), Vec::new())
    }

    pub(super) fn idle_without_compute(
        mut self,
        reason: ChangeReason,
        cause: Cause,
        wait: Duration,
    ) -> Transition {
        self.next.idle_since = self.next.idle_since.or(Some(self.now));
        self.next.state = State::IdleReleased {
            wake_after: self.now.after(wait),
        };
        let up_to = self.next.generation;
        self.done(reason, cause, vec![Effect::Release { up_to }])
    }

    /// Closes the session at the end of its lifetime.
    pub(super) fn expire(self) -> Transition {
        self.end(State::Closed, ChangeReason::MaxLifetime, Cause::default())
    }

    pub(super) fn end(mut self, state: State, reason: ChangeReason, cause: Cause) -> Transition {
        self.next.state = state;
        self.next.closed_at = Some(self.now);
        self.next.idle_since = None;
        let up_to = self.next.generation;
        self.done(reason, cause, vec![Effect::Release { up_to }])
    }
}

fn wake_backoff(failed_wakes: u32) -> Duration {
    MIN_WAKE_BACKOFF
        .saturating_mul(WAKE_BACKOFF_FACTOR.saturating_pow(failed_wakes.saturating_sub(1)))
        .min(MAX_WAKE_BACKOFF)
}
