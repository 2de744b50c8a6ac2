//! Single flight: one task requests the route of a session for all waiting callers, and continues
//! when the first of them leaves.

use super::cache::{Answer, Learned, Miss, Routes, Stamp, State};
use super::{ANSWER_TIME, Route, RouteState};
use session_core::{Reason, SessionId};
use session_proto::error::{Refused, reason_of};
use session_proto::internal::ResolveRouteRequest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

/// Interval between requests for a session while session-manager is unreachable or its answer is
/// outdated.
const PAUSE: Duration = Duration::from_millis(100);
/// Minimum interval between requests for a session whose route changed.
const SHORT_PAUSE: Duration = Duration::from_millis(10);
/// Interval between requests for a session that is not ready, without an announced change.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same without a watch stream.
const LOOK_AGAIN_UNWATCHED: Duration = Duration::from_millis(500);

/// Time for which a held call waits for an unreachable session-manager, which is mostly restarting.
/// Other calls may use a stale route and do not wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// State of the single flight of a session.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) waiters: Vec<Waiter>,
    /// The last request woke the session.
    pub(super) wakes: bool,
    /// The session changed, or a caller was added.
    pub(super) news: Arc<Notify>,
}

/// A caller that waits for the single flight.
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

/// Whether the route answers the request, or further requests are needed.
pub(super) fn is_settled(route: &Route, wake: bool) -> bool {
    match route.state {
        RouteState::Active(_) | RouteState::Gone(_) => true,
        RouteState::Pending(_) | RouteState::Idle(_) => !wake,
    }
}

/// Requests the route until no caller waits. Requests do not wait at session-manager: a session
/// that is not ready is requested again after its change is announced. So waiting calls use no
/// streams of the shared connection.
pub(super) async fn fly(routes: Arc<Routes>, session: SessionId, news: Arc<Notify>) {
    let mut client = routes.client.clone();
    let mut away_since = None;
    loop {
        // The next request covers all notifications so far.
        tokio::select! {
            biased;
            () = news.notified() => {}
            () = std::future::ready(()) => {}
        }
        let Some((token, wake)) = next_question(&routes, &session) else {
            return;
        };
        let mut request = tonic::Request::new(ResolveRouteRequest {
            session_token: token.to_string(),
            wait: None,
            wake,
        });
        request.set_timeout(ANSWER_TIME);
        // Taken before the request is sent: a later announced change must take precedence over the
        // answer.
        let stamp = routes.stamp();
        routes.metrics.resolves.inc();
        let answer = client.resolve_route(request).await;
        let is_away = matches!(&answer, Err(status) if refusal(status).is_none());
        let patient = if is_away {
            away_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
        } else {
            away_since = None;
            true
        };
        let is_outdated = deliver(
            &routes,
            &session,
            &token,
            stamp,
            answer.map(tonic::Response::into_inner),
            patient,
        );
        if is_away || is_outdated {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let again = if routes.is_watching() {
            LOOK_AGAIN
        } else {
            LOOK_AGAIN_UNWATCHED
        };
        if is_waited_for(&routes, &session) {
            let _ = tokio::time::timeout(again, news.notified()).await;
            tokio::time::sleep(SHORT_PAUSE).await;
        }
    }
}

fn is_waited_for(routes: &Routes, session: &SessionId) -> bool {
    let mut state = routes.state();
    state.flights.get_mut(session).is_some_and(|flight| {
        flight.waiters.retain(|waiter| !waiter.reply.is_closed());
        !flight.waiters.is_empty()
    })
}

/// Returns the token for the request, and whether to wake; `None` ends the single flight.
fn next_question(routes: &Routes, session: &SessionId) -> Option<(Arc<str>, bool)> {
    let mut state = routes.state();
    let flight = state.flights.get_mut(session)?;
    let waiters = &mut flight.waiters;
    waiters.retain(|waiter| !waiter.reply.is_closed());
    let question = waiters
        .iter()
        .find(|waiter| waiter.wake)
        .or(waiters.first())
        .map(|waiter| (Arc::clone(&waiter.token), waiter.wake));
    flight.wakes = question.as_ref().is_some_and(|(_, wake)| *wake);
    if question.is_none() {
        state.flights.remove(session);
    }
    question
}

/// Delivers an answer to the callers that it applies to. True if it was outdated.
fn deliver(
    routes: &Routes,
    session: &SessionId,
    token: &Arc<str>,
    stamp: Stamp,
    answer: Result<session_proto::internal::ResolveRouteResponse, Status>,
    patient: bool,
) -> bool {
    let mut state = routes.state();
    let waiters = state
        .flights
        .get_mut(session)
        .map(|flight| std::mem::take(&mut flight.waiters))
        .unwrap_or_default();
    if answer.is_ok() {
        routes.answered(None);
    }
    let route = match answer {
        Ok(answer) => answer.route.ok_or("no route").and_then(|route| {
            Route::from_proto(route).map_err(|problem| {
                tracing::error!(%session, %problem, "invalid route received from session-manager");
                "a bad route"
            })
        }),
        Err(status) => {
            let left = match refusal(&status) {
                // The error applies to this token; others may be valid.
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
            go_on(&mut state, session, left);
            return false;
        }
    };
    let mut is_outdated = false;
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
                Learned::Outdated => {
                    is_outdated = true;
                    waiters
                }
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
    go_on(&mut state, session, left);
    is_outdated
}

/// Returns callers to the waiting list.
fn go_on(state: &mut State, session: &SessionId, left: Vec<Waiter>) {
    if let Some(flight) = state.flights.get_mut(session) {
        flight.waiters = left;
    }
}

fn reply(waiters: Vec<Waiter>, answer: &Answer) {
    for waiter in waiters {
        // A caller that no longer waits needs no answer.
        let _ = waiter.reply.send(answer.clone());
    }
}

/// Converts a status of session-manager to an error for the caller; `None` if session-manager is
/// only unavailable.
pub(crate) fn refusal(status: &Status) -> Option<Refused> {
    let reason = reason_of(status);
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::ResourceExhausted => {
            // Without a Berth reason the status is about this proxy, not about the caller.
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
