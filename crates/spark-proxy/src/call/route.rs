//! Finds the route of a call: to existing compute, or to compute that starts while the call is
//! held.

use crate::call::local_reply;
use crate::call_error::{CallError, draining};
use crate::grpc::request_body::{MAX_REWIND_BYTES, RequestBody};
use crate::routes::cache::{ResolveError, RouteRequest};
use crate::routes::{Route, RouteState};
use crate::worker::Worker;
use crate::worker::held_calls::HeldCall;
use crate::worker::session::{CachedRoute, OpenCall, WorkerBackend};
use bytes::Bytes;
use service_kit::child_span;
use session_core::Reason;
use session_proto::error::Refused;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument as _;

/// Time limit for a route request that does not wait for compute.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A route to active compute.
pub(crate) struct ActiveRoute {
    pub(crate) cached: Rc<CachedRoute>,
    pub(crate) backend: Rc<WorkerBackend>,
}

/// Destination of a call.
pub(crate) enum Destination {
    Compute(ActiveRoute),
    /// No compute; the local reply to the call.
    Local(Bytes),
}

/// Finds existing compute, or holds the call until its session has compute. A call that is not work
/// gets a local reply without compute.
pub(crate) async fn destination(
    worker: &Rc<Worker>,
    open: &OpenCall,
    request: &mut RequestBody,
    unread: bool,
    deadline: Option<Instant>,
    not_before: Option<Instant>,
    now: Instant,
) -> Result<Destination, CallError> {
    let method = open.method();
    let resolve_until = now + RESOLVE_TIMEOUT;
    let until = deadline.map_or(resolve_until, |deadline| deadline.min(resolve_until));
    let cached = resolve(worker, open, false, until, deadline, not_before).await?;
    if let Some(backend) = active_backend(worker, &cached, open)? {
        return Ok(Destination::Compute(ActiveRoute { cached, backend }));
    }
    if let Some(expired) = &open.caller().expired_in_grace
        && method.is_work()
    {
        return Err(expired.clone().into());
    }
    if !method.is_work() {
        let lost = cached.route.lost_compute_recently(&*worker.shared.clock);
        let request = if unread {
            request.peek(MAX_REWIND_BYTES).await?
        } else {
            None
        };
        return local_reply::without_compute(method, &request.unwrap_or_default(), lost)
            .map(Destination::Local);
    }
    if unread && method.has_one_message() {
        // A call that seems to be work may be answered without it; its content decides.
        let peeked = tokio::select! {
            biased;
            peeked = request.peek(MAX_REWIND_BYTES) => peeked?,
            () = worker.shared.stopping.cancelled() => return Err(draining().into()),
        };
        if let Some(whole) = peeked
            && whole.len() <= local_reply::MAX_LOCAL_REQUEST
            && let Some(answer) = local_reply::exit_or_error_reply(method, &whole)
        {
            return answer.map(Destination::Local);
        }
    }
    // Boxed, like all rare paths: a call's future is moved, and is as large as its largest branch.
    Box::pin(hold(worker, open, request, deadline))
        .instrument(child_span!("hold"))
        .await
        .map(Destination::Compute)
}

/// Wakes the session and waits until it has compute.
async fn hold(
    worker: &Rc<Worker>,
    open: &OpenCall,
    request: &mut RequestBody,
    deadline: Option<Instant>,
) -> Result<ActiveRoute, CallError> {
    let shared = &worker.shared;
    let limits = &shared.config.limits;
    let mut hold = HeldCall::reserve(limits, open.usage(), &shared.metrics)?;
    hold.set_bytes(request.buffered_bytes())?;
    open.begin_work();
    let hold_until = Instant::now() + shared.config.routes.hold_max;
    let until = deadline.map_or(hold_until, |deadline| deadline.min(hold_until));
    let cached = tokio::select! {
        biased;
        resolved = resolve(worker, open, true, until, deadline, None) => resolved?,
        stop = buffer_request(request, &mut hold, limits.stream_window_bytes as usize) => return Err(stop),
    };
    match active_backend(worker, &cached, open)? {
        Some(backend) => Ok(ActiveRoute { cached, backend }),
        None => Err(session_warming(why_not_active(&cached.route)).into()),
    }
}

/// Reads the request of a held call up to `max` bytes, so that it is counted.
async fn buffer_request(request: &mut RequestBody, hold: &mut HeldCall, max: usize) -> CallError {
    loop {
        match request.buffer(max).await {
            Ok(true) => {
                if let Err(refused) = hold.set_bytes(request.buffered_bytes()) {
                    return refused.into();
                }
            }
            Ok(false) => std::future::pending::<()>().await,
            Err(broken) => return broken.into(),
        }
    }
}

/// Returns the route from this worker's cache or from session-manager. With `wake` session-manager
/// starts compute, and the request may last until it is ready.
async fn resolve(
    worker: &Rc<Worker>,
    open: &OpenCall,
    wake: bool,
    until: Instant,
    deadline: Option<Instant>,
    mut not_before: Option<Instant>,
) -> Result<Rc<CachedRoute>, CallError> {
    let (session, claims) = (open.session(), &open.caller().claims);
    let routes = &worker.shared.routes;
    loop {
        if not_before.is_none()
            && let Some(cached) = session.fresh_route(routes)
            // A token with a later epoch proves that the route is outdated.
            && claims.epoch <= cached.route.token_epoch
            && (!wake || cached.backend.is_some())
        {
            return Ok(cached);
        }
        // A held call already has a permit.
        let permit = if wake {
            None
        } else {
            match worker.shared.manager_requests.lookup(claims) {
                Ok(permit) => Some(permit),
                Err(refused) => return session.stale_route(routes).ok_or(refused.into()),
            }
        };
        let request = RouteRequest {
            session: session.id.clone(),
            token: Arc::clone(&open.caller().token),
            wake,
            until,
            not_before,
        };
        let resolved = tokio::select! {
            biased;
            resolved = Box::pin(routes.resolve(request).instrument(child_span!("resolve"))) => resolved,
            () = worker.shared.stopping.cancelled() => return Err(draining().into()),
        };
        drop(permit);
        let (route, stamp) = match resolved {
            Ok(resolved) => resolved,
            Err(ResolveError::TimedOut) if deadline.is_some_and(|deadline| deadline <= until) => {
                return Err(CallError::Deadline);
            }
            Err(error) => return stale_route(worker, open, wake, error),
        };
        if let Some(cached) = session.store_route(route, stamp) {
            return Ok(cached);
        }
        // A newer version was announced meanwhile.
        not_before = Some(Instant::now());
    }
}

/// The stale route that a call uses while session-manager is unreachable.
///
/// # Errors
/// Session-manager rejected the request, compute was not ready in time, or there is no such route.
fn stale_route(
    worker: &Worker,
    open: &OpenCall,
    wake: bool,
    error: ResolveError,
) -> Result<Rc<CachedRoute>, CallError> {
    let (session, routes) = (open.session(), &worker.shared.routes);
    match error {
        ResolveError::Refused(refused) => {
            if is_permanent(refused.reason) {
                open.usage().record_rejection();
            }
            Err(refused.into())
        }
        ResolveError::TimedOut if wake => {
            let last = routes.last_known(&session.id);
            Err(session_warming(last.as_deref().map_or("", why_not_active)).into())
        }
        ResolveError::Unreachable | ResolveError::TimedOut => session
            .stale_route(routes)
            .ok_or_else(|| control_plane_unavailable().into()),
    }
}

/// The compute of a route; `None` if there is none in use.
fn active_backend(
    worker: &Worker,
    cached: &CachedRoute,
    open: &OpenCall,
) -> Result<Option<Rc<WorkerBackend>>, Refused> {
    let shared = &worker.shared;
    let route = &cached.route;
    route
        .admits(&open.caller().claims)
        .inspect_err(|_| open.usage().record_rejection())?;
    open.mark_connection_admitted(open.caller());
    open.take_rate()?;
    let leeway = shared.config.tokens.leeway;
    let cached_caller = worker.tokens.admitted(open.caller(), leeway, &*shared.clock);
    open.mark_connection_admitted(&cached_caller);
    match &route.state {
        RouteState::Gone(gone) => Err(gone.refused()),
        RouteState::Active(_) | RouteState::Pending(_) | RouteState::Idle(_) => Ok(cached.backend.clone()),
    }
}

/// Whether a repeated call is rejected for the same reason.
const fn is_permanent(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SessionClosed
            | Reason::SessionFailed
            | Reason::TokenRevoked
            | Reason::TokenInvalid
            | Reason::OrgDisabled
            | Reason::NotAuthorized
    )
}

fn why_not_active(route: &Route) -> &str {
    match &route.state {
        RouteState::Pending(why) | RouteState::Idle(why) => why,
        RouteState::Active(_) | RouteState::Gone(_) => "",
    }
}

fn session_warming(why: &str) -> Refused {
    let why = if why.is_empty() {
        String::new()
    } else {
        format!(" ({why})")
    };
    Refused::new(
        Reason::SessionWarming,
        format!("The session's compute is still being started{why}. Try again in a little while."),
    )
}

fn control_plane_unavailable() -> Refused {
    Refused::new(
        Reason::ControlPlaneUnavailable,
        "Berth cannot look up the session at the moment. Try again in a little while.",
    )
}
