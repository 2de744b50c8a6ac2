//! One flight: the task that asks session-manager for one session's route on
//! behalf of everybody who waits for it, and outlives the first of them.

use super::book::{Answer, Learned, Miss, Routes, Stamp};
use super::{ANSWER_TIME, Route, RouteState};
use session_core::{Reason, SessionId};
use session_proto::error::{Refused, reason_of};
use session_proto::internal::ResolveRouteRequest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Code, Status};

/// Between two questions about a session that is still not ready.
const PAUSE: Duration = Duration::from_millis(100);

/// A held call waits this long for a session-manager that is away, restarting
/// mostly; others, which may have an older answer to go by, do not wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who waits for a flight.
pub(super) struct Waiter {
    pub(super) token: Arc<str>,
    pub(super) wake: bool,
    pub(super) not_before: Option<Instant>,
    pub(super) reply: oneshot::Sender<Answer>,
}

impl Waiter {
    fn accepts(&self, route: &Route, stamp: Stamp) -> bool {
        self.not_before.is_none_or(|moment| stamp.at >= moment) && is_settled(route, self.wake)
    }
}

/// Does this answer the question, or is it worth asking on?
pub(super) fn is_settled(route: &Route, wake: bool) -> bool {
    match route.state {
        RouteState::Active(_) | RouteState::Gone(_) => true,
        RouteState::Pending(_) | RouteState::Idle(_) => !wake,
    }
}

/// Asks until nobody waits any more.
pub(super) async fn fly(routes: Arc<Routes>, session: SessionId) {
    let mut client = routes.client.clone();
    let mut first = true;
    let mut away_since = None;
    loop {
        let Some((token, wake)) = next_question(&routes, &session) else {
            return;
        };
        if !std::mem::take(&mut first) {
            tokio::time::sleep(PAUSE).await;
        }
        let wait = if wake {
            routes.config.hold_max
        } else {
            Duration::ZERO
        };
        let mut request = tonic::Request::new(ResolveRouteRequest {
            session_token: token.to_string(),
            wait: wait.try_into().ok(),
            wake,
        });
        request.set_timeout(wait + ANSWER_TIME);
        // Before the question is sent: a change that is announced later than
        // this must win over the answer.
        let stamp = routes.stamp();
        routes.metrics.resolves.inc();
        let answer = client.resolve_route(request).await;
        let patient = match &answer {
            Err(status) if refusal(status).is_none() => {
                away_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
            }
            Ok(_) | Err(_) => {
                away_since = None;
                true
            }
        };
        deliver(
            &routes,
            &session,
            &token,
            stamp,
            answer.map(tonic::Response::into_inner),
            patient,
        );
    }
}

/// The token to ask with and whether to wake; `None` ends the flight.
fn next_question(routes: &Routes, session: &SessionId) -> Option<(Arc<str>, bool)> {
    let mut state = routes.state();
    let waiters = state.flights.get_mut(session)?;
    waiters.retain(|waiter| !waiter.reply.is_closed());
    let question = waiters
        .iter()
        .find(|waiter| waiter.wake)
        .or(waiters.first())
        .map(|waiter| (Arc::clone(&waiter.token), waiter.wake));
    if question.is_none() {
        state.flights.remove(session);
    }
    question
}

fn deliver(
    routes: &Routes,
    session: &SessionId,
    token: &Arc<str>,
    stamp: Stamp,
    answer: Result<session_proto::internal::ResolveRouteResponse, Status>,
    patient: bool,
) {
    let mut state = routes.state();
    let waiters = state.flights.remove(session).unwrap_or_default();
    if answer.is_ok() {
        routes.answered(None);
    }
    let route = match answer {
        Ok(answer) => answer.route.ok_or("no route").and_then(|route| {
            Route::from_proto(route).map_err(|problem| {
                tracing::error!(%session, %problem, "session-manager sent a bad route");
                "a bad route"
            })
        }),
        Err(status) => {
            let left = match refusal(&status) {
                // It is said of this caller; others may hold better tokens.
                Some(refused) => {
                    let (same, others): (Vec<_>, Vec<_>) =
                        waiters.into_iter().partition(|waiter| waiter.token == *token);
                    reply(same, &Err(Miss::Refused(refused)));
                    others
                }
                None => {
                    routes.answered(Some(&status));
                    let (held, others): (Vec<_>, Vec<_>) =
                        waiters.into_iter().partition(|waiter| waiter.wake && patient);
                    reply(others, &Err(Miss::Unreachable));
                    held
                }
            };
            state.flights.insert(session.clone(), left);
            return;
        }
    };
    let left = match route {
        Ok(route) if route.session == *session => {
            let route = Arc::new(route);
            match routes.learn(&mut state, &route, stamp) {
                Learned::Kept => {
                    let (done, left): (Vec<_>, Vec<_>) = waiters
                        .into_iter()
                        .partition(|waiter| waiter.accepts(&route, stamp));
                    reply(done, &Ok((route, stamp)));
                    left
                }
                Learned::Outdated => waiters,
                Learned::Gone(gone) => {
                    reply(waiters, &Err(Miss::Refused(gone.refused())));
                    Vec::new()
                }
            }
        }
        Ok(_) | Err(_) => {
            reply(waiters, &Err(Miss::Unreachable));
            Vec::new()
        }
    };
    state.flights.insert(session.clone(), left);
}

fn reply(waiters: Vec<Waiter>, answer: &Answer) {
    for waiter in waiters {
        // Who no longer waits needs no answer.
        let _ = waiter.reply.send(answer.clone());
    }
}

/// What session-manager's status means for the caller; `None` if it only
/// means that session-manager cannot answer now.
pub(crate) fn refusal(status: &Status) -> Option<Refused> {
    let reason = reason_of(status);
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::ResourceExhausted => {
            // Without a reason of ours it is about this proxy, not about the caller.
            reason
                .filter(|reason| *reason != Reason::CallerUnknown)
                .map(|reason| Refused::new(reason, status.message()))
        }
        Code::NotFound => Some(
            super::Gone {
                reason: Reason::SessionClosed,
                why: String::new(),
            }
            .refused(),
        ),
        Code::Unavailable if reason == Some(Reason::SessionWarming) => {
            Some(Refused::new(Reason::SessionWarming, status.message()))
        }
        _ => None,
    }
}
