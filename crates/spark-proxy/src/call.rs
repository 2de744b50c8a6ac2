//! One call, from its headers to its last byte: authenticate, admit, resolve,
//! forward. Everything that is held for a call is held by this one future and
//! is given back when it ends, however it ends.

use crate::auth::authenticate;
use crate::backend::{Lease, Unreachable};
use crate::forward::{backend_unavailable, forward};
use crate::headers;
use crate::health;
use crate::identity::Identity;
use crate::messages::{Broken, Messages};
use crate::method::{self, Method, Target};
use crate::metrics::{Outcome, Stage};
use crate::respond::{Client, Vanished};
use crate::routes::book::{Ask, Miss, Stamp};
use crate::routes::{Backend, Route, RouteState};
use crate::session::OpenCall;
use crate::translate::Sail;
use crate::worker::Worker;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use session_core::{Engine, Reason};
use session_proto::error::Refused;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// A new connection to compute needs a route that was learned this recently:
/// addresses are used again by others.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A reattach request is a few ids.
const MOST_REATTACH: usize = 64 * 1024;

/// Why a call ends before its response is complete.
pub(crate) enum Stop {
    /// With an error of ours.
    Refused(Refused),
    /// With an engine's error, said in words that clients understand.
    Engine(Box<Status>),
    /// The client's own deadline is over.
    Deadline,
    /// There is nobody left to tell.
    Vanished,
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused(refused) => Self::Refused(refused),
            Broken::Vanished => Self::Vanished,
        }
    }
}

impl From<Vanished> for Stop {
    fn from(Vanished: Vanished) -> Self {
        Self::Vanished
    }
}

/// What the calls of one connection share.
#[derive(Default)]
pub(crate) struct ConnectionState {
    /// One of its calls had a good token.
    pub(crate) admitted: Cell<bool>,
}

/// Serves one call.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    connection: Rc<ConnectionState>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let metrics = &worker.shared.metrics;
    metrics.opened.inc();
    let mut client = Client::new(respond);
    let outcome = match serve(&worker, &connection, request, &mut client).await {
        Ok(outcome) => outcome,
        Err(Stop::Refused(refused)) => {
            let outcome = Outcome::of(refused.reason);
            client.refuse(refused);
            outcome
        }
        Err(Stop::Engine(status)) => {
            client.fail(&status);
            Outcome::BackendError
        }
        Err(Stop::Deadline) => {
            client.fail(&Status::deadline_exceeded("The call's own deadline is over."));
            Outcome::Warming
        }
        Err(Stop::Vanished) => Outcome::ClientGone,
    };
    metrics.calls.at(outcome).inc();
}

async fn serve(
    worker: &Rc<Worker>,
    connection: &ConnectionState,
    request: Request<RecvStream>,
    client: &mut Client,
) -> Result<Outcome, Stop> {
    let (head, body) = request.into_parts();
    let method = match method::target(&head) {
        Target::Spark(method) => method,
        Target::HealthCheck => {
            health::check(body, worker.shared.is_serving(), client).await?;
            return Ok(Outcome::Health);
        }
        Target::Unknown => return Err(unknown_method().into()),
    };
    let metrics = &worker.shared.metrics;
    let began = Instant::now();
    let deadline = headers::grpc_timeout(&head.headers).map(|timeout| began + timeout);

    let caller = client
        .unless_gone(authenticate(worker, &head.headers, method))
        .await??;
    connection.admitted.set(true);
    worker.shared.admit(method)?;
    let open = worker.session(&caller.claims.sid).open(&caller, method)?;
    metrics.waited.at(Stage::Auth).observe(began.elapsed());

    tokio::select! {
        biased;
        refused = open.ended() => Err(refused.into()),
        done = pass_on(worker, &open, head, body, deadline, client) => done,
    }
}

/// The part of a call that takes time.
async fn pass_on(
    worker: &Rc<Worker>,
    open: &OpenCall,
    mut head: http::request::Parts,
    body: RecvStream,
    deadline: Option<Instant>,
    client: &mut Client,
) -> Result<Outcome, Stop> {
    let metrics = &worker.shared.metrics;
    let began = Instant::now();
    let found = client
        .unless_gone(resolve(worker, open, deadline, None))
        .await??;
    metrics.waited.at(Stage::Resolve).observe(began.elapsed());
    let mut request = Messages::new(body, identity(&found.backend, open));
    client.unless_gone(request.open()).await??;
    let (mut lease, backend) = client
        .unless_gone(connect(worker, open, found, deadline))
        .await??;
    let sail = match backend.engine {
        Engine::Spark => None,
        Engine::Sail => {
            let known = client
                .unless_gone(sail_call(open.method(), &mut request))
                .await??;
            Some(known)
        }
    };
    open.forwarded(backend.engine);
    headers::toward_backend(&mut head, &backend);
    let upstream = lease
        .send(Request::from_parts(head, ()))
        .map_err(|Unreachable| backend_unavailable())?;
    forward(metrics, upstream, request, sail.as_ref(), client).await
}

/// What must be known of a call to Sail, to understand its answer.
async fn sail_call(method: Method, request: &mut Messages) -> Result<Sail, Stop> {
    let session = request.session().ok_or_else(|| {
        Refused::new(
            Reason::MalformedMessage,
            "The request is not a Spark Connect message: it has no session_id.",
        )
    })?;
    let mut sail = Sail::new(session);
    if method == Method::ReattachExecute
        && let Some(whole) = request.whole(MOST_REATTACH).await?
    {
        sail.reattach(&whole).map_err(Stop::Engine)?;
    }
    Ok(sail)
}

/// Who speaks, as the backend is to see it.
fn identity(backend: &Backend, open: &OpenCall) -> Identity {
    Identity::new(
        &backend.user_id,
        open.caller().claims.sub.as_str(),
        backend.dedicated,
    )
}

/// A place on a connection to the session's compute. If there is none to be
/// had, the address is suspect: it is asked for again, and tried once more.
async fn connect(
    worker: &Rc<Worker>,
    open: &OpenCall,
    mut found: Found,
    deadline: Option<Instant>,
) -> Result<(Lease, Arc<Backend>), Stop> {
    let metrics = &worker.shared.metrics;
    let began = Instant::now();
    if !worker.pools.is_connected(&found.backend) && began.duration_since(found.stamp.at) > CONNECT_WITHIN {
        found = resolve(worker, open, deadline, Some(began)).await?;
    }
    let resolved = Instant::now();
    metrics
        .waited
        .at(Stage::Resolve)
        .observe(resolved.duration_since(began));
    let lease = match worker.pools.lease(&found.backend).await {
        Ok(lease) => lease,
        Err(Unreachable) => {
            found = resolve(worker, open, deadline, Some(Instant::now())).await?;
            worker
                .pools
                .lease(&found.backend)
                .await
                .map_err(|Unreachable| backend_unavailable())?
        }
    };
    metrics.waited.at(Stage::Connect).observe(began.elapsed());
    Ok((lease, found.backend))
}

/// A route to active compute.
struct Found {
    backend: Arc<Backend>,
    stamp: Stamp,
}

/// The session's route: as this worker knows it, or as session-manager says
/// it, which may take until the compute is warm.
async fn resolve(
    worker: &Rc<Worker>,
    open: &OpenCall,
    deadline: Option<Instant>,
    mut not_before: Option<Instant>,
) -> Result<Found, Stop> {
    let (session, claims) = (open.session(), &open.caller().claims);
    let routes = &worker.shared.routes;
    let hold_until = Instant::now() + worker.shared.config.routes.hold_max;
    let until = deadline.map_or(hold_until, |deadline| deadline.min(hold_until));
    loop {
        if not_before.is_none()
            && let Some((route, stamp)) = session.fresh_route(routes)
            // A token of a later epoch proves that the route is not the newest.
            && claims.epoch <= route.token_epoch
            && let Some(backend) = usable(&route, open)?
        {
            return Ok(Found { backend, stamp });
        }
        let ask = Ask {
            session: session.id.clone(),
            token: Arc::clone(&open.caller().token),
            wake: open.method().wakes(),
            until,
            not_before,
        };
        let answer = tokio::select! {
            biased;
            answer = routes.resolve(ask) => answer,
            () = worker.shared.stopping.cancelled() => return Err(draining().into()),
        };
        let (route, stamp) = match answer {
            Ok(answer) => answer,
            Err(Miss::Refused(refused)) => return Err(refused.into()),
            Err(Miss::Unreachable) => session
                .bearable_route(routes)
                .ok_or_else(control_plane_unavailable)?,
            Err(Miss::Waited) if deadline.is_some_and(|deadline| deadline <= until) => {
                return Err(Stop::Deadline);
            }
            Err(Miss::Waited) => return Err(warming("").into()),
        };
        if !session.learn(&route, stamp) {
            // Something newer was announced on the way here.
            not_before = Some(Instant::now());
            continue;
        }
        return match usable(&route, open)? {
            Some(backend) => Ok(Found { backend, stamp }),
            None => Err(warming(why_not_active(&route)).into()),
        };
    }
}

/// The compute to call; `None` if it must be waited for.
fn usable(route: &Route, open: &OpenCall) -> Result<Option<Arc<Backend>>, Refused> {
    route.admits(&open.caller().claims)?;
    match &route.state {
        RouteState::Active(backend) => Ok(Some(Arc::clone(backend))),
        RouteState::Gone(gone) => Err(gone.refused()),
        RouteState::Pending(_) | RouteState::Idle(_) if open.method().wakes() => Ok(None),
        RouteState::Pending(why) => Err(warming(why)),
        RouteState::Idle(_) => Err(Refused::new(
            Reason::ComputeReleased,
            "The session is idle and its compute was given back. The next query brings it up again.",
        )),
    }
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

pub(crate) fn draining() -> Refused {
    Refused::new(
        Reason::ProxyDraining,
        "This proxy is being replaced. Try again: another one will answer.",
    )
}

fn control_plane_unavailable() -> Refused {
    Refused::new(
        Reason::ControlPlaneUnavailable,
        "Berth cannot look up the session at the moment. Try again in a little while.",
    )
}

fn unknown_method() -> Refused {
    Refused::new(
        Reason::UnknownMethod,
        "Only Spark Connect is served here (gRPC, POST /spark.connect.SparkConnectService/…).",
    )
}
