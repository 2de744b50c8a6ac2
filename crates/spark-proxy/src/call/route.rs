//! Finds the route of a call: to existing compute, or to compute that starts while the call is
//! held.

use crate::call::local_reply;
use crate::grpc::request_body::{MOST_KEPT, Messages};
use crate::routes::cache::{Ask, Miss, Stamp};
use crate::routes::{Backend, Route, RouteState};
use crate::stop::{Stop, draining};
use crate::worker::Worker;
use crate::worker::held_calls::Hold;
use crate::worker::session::OpenCall;
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
const LOOK_TIME: Duration = Duration::from_secs(5);

/// A route to active compute.
pub(crate) struct Found {
    pub(crate) route: Arc<Route>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) stamp: Stamp,
}

/// Destination of a call.
pub(crate) enum Place {
    Compute(Found),
    /// No compute; the local reply to the call.
    Nowhere(Bytes),
}

/// Finds existing compute, or holds the call until its session has compute. A call that is not work
/// gets a local reply without compute.
pub(crate) async fn place(
    worker: &Rc<Worker>,
    open: &OpenCall,
    request: &mut Messages,
    unread: bool,
    deadline: Option<Instant>,
    not_before: Option<Instant>,
) -> Result<Place, Stop> {
    let method = open.method();
    let look_until = Instant::now() + LOOK_TIME;
    let until = deadline.map_or(look_until, |deadline| deadline.min(look_until));
    let (route, stamp) = resolve(worker, open, false, until, deadline, not_before).await?;
    if let Some(backend) = usable(worker, &route, open)? {
        return Ok(Place::Compute(Found {
            route,
            backend,
            stamp,
        }));
    }
    if let Some(late) = &open.caller().late
        && method.is_work()
    {
        return Err(late.clone().into());
    }
    if !method.is_work() {
        let lost = route.lost_compute(worker.shared.clock.now());
        let request = if unread {
            request.peek(MOST_KEPT).await?
        } else {
            None
        };
        return local_reply::without_compute(method, &request.unwrap_or_default(), lost).map(Place::Nowhere);
    }
    if unread && method.has_one_message() {
        // A call that seems to be work may be answered without it; its content decides.
        let peeked = tokio::select! {
            biased;
            peeked = request.peek(MOST_KEPT) => peeked?,
            () = worker.shared.stopping.cancelled() => return Err(draining().into()),
        };
        if let Some(whole) = peeked
            && whole.len() <= local_reply::MOST_TALK
            && let Some(answer) = local_reply::exit_or_error_reply(method, &whole)
        {
            return answer.map(Place::Nowhere);
        }
    }
    // Boxed, like all rare paths: a call's future is moved, and is as large as its largest branch.
    Box::pin(hold(worker, open, request, deadline))
        .instrument(child_span!("hold"))
        .await
        .map(Place::Compute)
}

/// Wakes the session and waits until it has compute.
async fn hold(
    worker: &Rc<Worker>,
    open: &OpenCall,
    request: &mut Messages,
    deadline: Option<Instant>,
) -> Result<Found, Stop> {
    let shared = &worker.shared;
    let limits = &shared.config.limits;
    let mut hold = Hold::enter(limits, open.tally(), &shared.metrics)?;
    hold.weigh(request.weight())?;
    open.work();
    let hold_until = Instant::now() + shared.config.routes.hold_max;
    let until = deadline.map_or(hold_until, |deadline| deadline.min(hold_until));
    let (route, stamp) = tokio::select! {
        biased;
        resolved = resolve(worker, open, true, until, deadline, None) => resolved?,
        stop = gather(request, &mut hold, limits.stream_window_bytes as usize) => return Err(stop),
    };
    match usable(worker, &route, open)? {
        Some(backend) => Ok(Found {
            route,
            backend,
            stamp,
        }),
        None => Err(warming(why_not_active(&route)).into()),
    }
}

/// Reads the request of a held call up to `most` bytes, so that it is counted.
async fn gather(request: &mut Messages, hold: &mut Hold, most: usize) -> Stop {
    loop {
        match request.gather(most).await {
            Ok(true) => {
                if let Err(refused) = hold.weigh(request.weight()) {
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
) -> Result<(Arc<Route>, Stamp), Stop> {
    let (session, claims) = (open.session(), &open.caller().claims);
    let routes = &worker.shared.routes;
    loop {
        if not_before.is_none()
            && let Some((route, stamp)) = session.fresh_route(routes)
            // A token with a later epoch proves that the route is outdated.
            && claims.epoch <= route.token_epoch
            && (!wake || matches!(route.state, RouteState::Active(_)))
        {
            return Ok((route, stamp));
        }
        // A held call already has a share.
        let lookup = if wake {
            None
        } else {
            match worker.shared.questions.lookup(claims) {
                Ok(lookup) => Some(lookup),
                Err(refused) => return session.bearable_route(routes).ok_or(refused.into()),
            }
        };
        let ask = Ask {
            session: session.id.clone(),
            token: Arc::clone(&open.caller().token),
            wake,
            until,
            not_before,
        };
        let answer = tokio::select! {
            biased;
            answer = Box::pin(routes.resolve(ask).instrument(child_span!("resolve"))) => answer,
            () = worker.shared.stopping.cancelled() => return Err(draining().into()),
        };
        drop(lookup);
        let (route, stamp) = match answer {
            Ok(answer) => answer,
            Err(Miss::Refused(refused)) => {
                if stays_refused(refused.reason) {
                    open.tally().note_refusal();
                }
                return Err(refused.into());
            }
            Err(Miss::Unreachable) => session
                .bearable_route(routes)
                .ok_or_else(control_plane_unavailable)?,
            Err(Miss::Waited) if deadline.is_some_and(|deadline| deadline <= until) => {
                return Err(Stop::Deadline);
            }
            Err(Miss::Waited) if wake => {
                let last = routes.last_known(&session.id);
                return Err(warming(last.as_deref().map_or("", why_not_active)).into());
            }
            Err(Miss::Waited) => session
                .bearable_route(routes)
                .ok_or_else(control_plane_unavailable)?,
        };
        if session.learn(&route, stamp) {
            return Ok((route, stamp));
        }
        // A newer version was announced meanwhile.
        not_before = Some(Instant::now());
    }
}

/// The compute of a route; `None` if there is none in use.
fn usable(worker: &Worker, route: &Route, open: &OpenCall) -> Result<Option<Arc<Backend>>, Refused> {
    let shared = &worker.shared;
    route
        .admits(&open.caller().claims)
        .inspect_err(|_| open.tally().note_refusal())?;
    open.prove_connection();
    open.spend_rate()?;
    worker
        .tokens
        .admitted(open.caller(), shared.config.tokens.leeway, shared.clock.now());
    match &route.state {
        RouteState::Active(backend) => Ok(Some(Arc::clone(backend))),
        RouteState::Gone(gone) => Err(gone.refused()),
        RouteState::Pending(_) | RouteState::Idle(_) => Ok(None),
    }
}

/// Whether a repeated call is rejected for the same reason.
const fn stays_refused(reason: Reason) -> bool {
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

fn warming(why: &str) -> Refused {
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
