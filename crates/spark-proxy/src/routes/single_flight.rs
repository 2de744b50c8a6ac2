//! Single flight: one task requests the route of a session for all waiting callers, and continues
//! when the first of them leaves.

use super::cache::{CacheState, ResolveError, ResolveResult, Routes, Stamp, StoreOutcome};
use super::{REQUEST_TIMEOUT, Route, RouteState};
use session_core::{Reason, SessionId};
use session_proto::error::{Refused, reason_of};
use session_proto::internal::{ResolveRouteRequest, ResolveRouteResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

/// Interval between requests for a session while session-manager is unreachable or its answer is
/// outdated.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum interval between requests for a session whose route changed.
const MIN_REQUEST_INTERVAL: Duration = Duration::from_millis(10);
/// Interval between requests for a session that is not ready, without an announced change.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The same without a watch stream.
const UNWATCHED_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Time for which a held call waits for an unreachable session-manager, which is mostly restarting.
/// Other calls may use a stale route and do not wait.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(10);

/// State of the single flight of a session.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) waiters: Vec<Waiter>,
    /// The last request woke the session.
    pub(super) wakes: bool,
    /// The session changed, or a caller was added.
    pub(super) changed: Arc<Notify>,
}

/// A caller that waits for the single flight.
pub(super) struct Waiter {
    pub(super) token: Arc<str>,
    pub(super) wake: bool,
    pub(super) not_before: Option<Instant>,
    pub(super) reply: oneshot::Sender<ResolveResult>,
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
pub(super) async fn run(routes: Arc<Routes>, session: SessionId, changed: Arc<Notify>) {
    let mut client = routes.client.clone();
    let mut unreachable_since = None;
    loop {
        // The next request covers all notifications so far.
        tokio::select! {
            biased;
            () = changed.notified() => {}
            () = std::future::ready(()) => {}
        }
        let Some((token, wake)) = next_request(&routes, &session) else {
            return;
        };
        let mut request = tonic::Request::new(ResolveRouteRequest {
            session_token: token.to_string(),
            wait: None,
            wake,
        });
        request.set_timeout(REQUEST_TIMEOUT);
        // Created before the request is sent: a later announced change must take precedence over the
        // answer.
        let stamp = routes.stamp();
        routes.metrics.control.route_requests.inc();
        let answer = client.resolve_route(request).await;
        let is_unreachable = matches!(&answer, Err(status) if rejection(status).is_none());
        let may_wait = if is_unreachable {
            unreachable_since.get_or_insert_with(Instant::now).elapsed() < UNREACHABLE_TIMEOUT
        } else {
            unreachable_since = None;
            true
        };
        let is_outdated = deliver(
            &routes,
            &session,
            &token,
            stamp,
            answer.map(tonic::Response::into_inner),
            may_wait,
        );
        if is_unreachable || is_outdated {
            tokio::time::sleep(RETRY_INTERVAL).await;
            continue;
        }
        let again = if routes.is_watching() {
            POLL_INTERVAL
        } else {
            UNWATCHED_POLL_INTERVAL
        };
        if has_waiters(&routes, &session) {
            let _ = tokio::time::timeout(again, changed.notified()).await;
            tokio::time::sleep(MIN_REQUEST_INTERVAL).await;
        }
    }
}

fn has_waiters(routes: &Routes, session: &SessionId) -> bool {
    let mut state = routes.state();
    state.flights.get_mut(session).is_some_and(|flight| {
        flight.waiters.retain(|waiter| !waiter.reply.is_closed());
        !flight.waiters.is_empty()
    })
}

/// Returns the token for the request, and whether to wake; `None` ends the single flight.
fn next_request(routes: &Routes, session: &SessionId) -> Option<(Arc<str>, bool)> {
    let mut state = routes.state();
    let flight = state.flights.get_mut(session)?;
    let waiters = &mut flight.waiters;
    waiters.retain(|waiter| !waiter.reply.is_closed());
    let next = waiters
        .iter()
        .find(|waiter| waiter.wake)
        .or(waiters.first())
        .map(|waiter| (Arc::clone(&waiter.token), waiter.wake));
    flight.wakes = next.as_ref().is_some_and(|(_, wake)| *wake);
    if next.is_none() {
        state.flights.remove(session);
    }
    next
}

/// Delivers an answer to the callers that it applies to. True if it was outdated.
fn deliver(
    routes: &Routes,
    session: &SessionId,
    token: &Arc<str>,
    stamp: Stamp,
    answer: Result<ResolveRouteResponse, Status>,
    may_wait: bool,
) -> bool {
    let mut state = routes.state();
    let waiters = state
        .flights
        .get_mut(session)
        .map(|flight| std::mem::take(&mut flight.waiters))
        .unwrap_or_default();
    let (left, is_outdated) = match answer {
        Ok(answer) => {
            routes.record_reachability(None);
            match parse_route(session, answer) {
                Some(route) => deliver_route(routes, &mut state, waiters, &route, stamp),
                None => {
                    reply(waiters, &Err(ResolveError::Unreachable));
                    (Vec::new(), false)
                }
            }
        }
        Err(status) => (deliver_error(routes, waiters, &status, token, may_wait), false),
    };
    requeue(&mut state, session, left);
    is_outdated
}

/// The route in an answer; `None` if it is invalid or of another session.
fn parse_route(session: &SessionId, answer: ResolveRouteResponse) -> Option<Arc<Route>> {
    let route = Route::from_proto(answer.route?)
        .inspect_err(
            |problem| tracing::error!(%session, %problem, "invalid route received from session-manager"),
        )
        .ok()?;
    (route.session == *session).then(|| Arc::new(route))
}

/// Stores a route and delivers it; returns the callers that it does not serve, and whether it was
/// outdated.
fn deliver_route(
    routes: &Routes,
    state: &mut CacheState,
    waiters: Vec<Waiter>,
    route: &Arc<Route>,
    stamp: Stamp,
) -> (Vec<Waiter>, bool) {
    match routes.store(state, route, stamp) {
        StoreOutcome::Stored => {
            let (done, left) = waiters
                .into_iter()
                .partition(|waiter| waiter.accepts(route, stamp));
            reply(done, &Ok((Arc::clone(route), stamp)));
            (left, false)
        }
        StoreOutcome::Outdated => (waiters, true),
        StoreOutcome::Gone(gone) => {
            reply(waiters, &Err(ResolveError::Refused(gone.refused())));
            (Vec::new(), false)
        }
    }
}

/// Delivers an error; returns the callers that it does not apply to.
fn deliver_error(
    routes: &Routes,
    waiters: Vec<Waiter>,
    status: &Status,
    token: &Arc<str>,
    may_wait: bool,
) -> Vec<Waiter> {
    match rejection(status) {
        // The error applies to this token; others may be valid.
        Some(refused) => {
            let (same, others) = waiters.into_iter().partition(|waiter| waiter.token == *token);
            reply(same, &Err(ResolveError::Refused(refused)));
            others
        }
        None => {
            routes.record_reachability(Some(status));
            let (held, others) = waiters.into_iter().partition(|waiter| waiter.wake && may_wait);
            reply(others, &Err(ResolveError::Unreachable));
            held
        }
    }
}

/// Returns callers to the waiting list.
fn requeue(state: &mut CacheState, session: &SessionId, left: Vec<Waiter>) {
    if let Some(flight) = state.flights.get_mut(session) {
        flight.waiters = left;
    }
}

fn reply(waiters: Vec<Waiter>, answer: &ResolveResult) {
    for waiter in waiters {
        // A caller that no longer waits needs no answer.
        let _ = waiter.reply.send(answer.clone());
    }
}

/// Converts a status of session-manager to an error for the caller; `None` if session-manager is
/// only unavailable.
pub(crate) fn rejection(status: &Status) -> Option<Refused> {
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
