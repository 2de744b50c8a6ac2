//! One flight: the task that asks session-manager for one session's route on
//! behalf of everybody who waits for it, and outlives the first of them.

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

/// Between two questions about a session while session-manager is away, or
/// knows less than was announced.
const PAUSE: Duration = Duration::from_millis(100);
/// The least between two questions about a session whose route changed.
const SHORT_PAUSE: Duration = Duration::from_millis(10);
/// Between two questions about a session that is not ready, without word of a change.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same while no changes are announced.
const LOOK_AGAIN_UNWATCHED: Duration = Duration::from_millis(500);

/// A held call waits this long for a session-manager that is away, restarting
/// mostly; others, which may have an older answer to go by, do not wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is under way for one session.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) waiters: Vec<Waiter>,
    /// The last question woke the session.
    pub(super) wakes: bool,
    /// The session changed, or somebody new waits.
    pub(super) news: Arc<Notify>,
}

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

/// Asks until nobody waits any more. No question waits at session-manager: a
/// session that is not ready is asked for again when its change is announced.
/// So waiting takes no stream of the connection that everything else needs.
pub(super) async fn fly(routes: Arc<Routes>, session: SessionId, news: Arc<Notify>) {
    let mut client = routes.client.clone();
    let mut away_since = None;
    loop {
        // The next question takes account of all that was notified so far.
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
        // Before the question is sent: a change that is announced later than
        // this must win over the answer.
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

/// The token to ask with and whether to wake; `None` ends the flight.
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

/// Gives an answer to those whom it answers. True if something newer is known.
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

/// They go on waiting.
fn go_on(state: &mut State, session: &SessionId, left: Vec<Waiter>) {
    if let Some(flight) = state.flights.get_mut(session) {
        flight.waiters = left;
    }
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
