//! One call, from its headers to its last byte: authenticate, admit, resolve,
//! forward. Everything that is held for a call is held by this one future and
//! is given back when it ends, however it ends.

mod authenticate;
mod bind;
mod engine_errors;
mod forward;
mod health;
mod local_reply;
mod redact;
mod result_watch;
mod sail_keep_alive;

use crate::call::authenticate::authenticate;
use crate::call::forward::{Exchange, forward};
use crate::grpc::headers;
use crate::grpc::identity::{Identity, SparkSessionId};
use crate::grpc::method::{self, Method, Target};
use crate::grpc::reply::Client;
use crate::grpc::request_body::{MOST_KEPT, Messages};
use crate::metrics::{Outcome, Stage};
use crate::routes::cache::{Ask, Miss, Stamp};
use crate::routes::{Backend, Route, RouteState};
use crate::stop::{Stop, backend_unavailable, draining};
use crate::upstream::{self, Unreachable};
use crate::worker::Worker;
use crate::worker::held_calls::Hold;
use crate::worker::session::OpenCall;
use crate::worker::tokens::Caller;
use bind::{Bound, SettingsChange};
use bytes::Bytes;
use engine_errors::Translator;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use prost::Message as _;
use session_core::{Engine, Reason};
use session_proto::error::Refused;
use session_proto::spark::ReattachExecuteRequest;
use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// A new connection to compute needs a route that was learned this recently:
/// addresses are used again by others.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A call that provably did nothing is sent so many times in all.
const MOST_TRIES: usize = 3;
/// How long a question may take that waits for nothing.
const LOOK_TIME: Duration = Duration::from_secs(5);
/// How long a session whose calls are refused too often should wait.
const TOO_OFTEN: Duration = Duration::from_secs(1);

/// What the calls of one connection share.
pub(crate) struct ConnectionState {
    /// Where it comes from.
    address: IpAddr,
    /// One of its calls had a token that verifies.
    pub(crate) admitted: Cell<bool>,
    /// One of its calls had a token that its session admits.
    pub(crate) is_proven: Rc<Cell<bool>>,
}

impl ConnectionState {
    pub(crate) fn new(address: IpAddr) -> Self {
        Self {
            address,
            admitted: Cell::default(),
            is_proven: Rc::default(),
        }
    }
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
    let path = tracing::enabled!(tracing::Level::DEBUG).then(|| request.uri().path().to_owned());
    let outcome = match serve(&worker, &connection, request, &mut client).await {
        Ok(outcome) => outcome,
        Err(Stop::Refused(refused)) => {
            let outcome = Outcome::of(refused.reason);
            tracing::debug!(path, reason = %refused.reason, "refused");
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
        Err(Stop::Untouched) => {
            client.refuse(backend_unavailable());
            Outcome::BackendUnavailable
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
        .unless_gone(authenticate(worker, connection.address, &head.headers, method))
        .await??;
    connection.admitted.set(true);
    worker.shared.admit(method)?;
    let open = admit(worker, connection, &caller, method)?;
    metrics.waited.at(Stage::Auth).observe(began.elapsed());

    tokio::select! {
        biased;
        refused = open.ended() => Err(refused.into()),
        done = pass_on(worker, &open, head, body, deadline, client) => done,
    }
}

/// A place for one more call, within what the session may take. What is known
/// to be refused takes none: a dead token spends nothing of its organization's.
fn admit(
    worker: &Rc<Worker>,
    connection: &ConnectionState,
    caller: &Rc<Caller>,
    method: Method,
) -> Result<OpenCall, Refused> {
    let session = worker.session(&caller.claims);
    let tally = &session.tally;
    let routes = &worker.shared.routes;
    let refused = session.refuses(routes, &caller.claims);
    // Session-manager is asked about a session for the sake of refused calls so
    // often, and no oftener.
    let doubtful = session.fresh_route(routes).is_none() && tally.was_refused_lately();
    if (refused.is_some() || doubtful) && !tally.is_within_refusals() {
        return Err(Refused::new(
            Reason::RateLimited,
            "Calls of this session were refused too often. See why, and try again in a little while.",
        )
        .retry_after(TOO_OFTEN));
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    let most = worker.shared.config.limits.calls_per_session;
    let open = session.open(caller, method, most, &connection.is_proven)?;
    if caller.is_worth_reporting() {
        tally.token_used(&caller.claims.jti);
    }
    Ok(open)
}

/// The part of a call that takes time.
async fn pass_on(
    worker: &Rc<Worker>,
    open: &OpenCall,
    head: http::request::Parts,
    body: RecvStream,
    deadline: Option<Instant>,
    client: &mut Client,
) -> Result<Outcome, Stop> {
    let shared = &worker.shared;
    let method = open.method();
    let mut request = Messages::new(body, &shared.config.limits);
    if let Some(late) = &open.caller().late
        && method == Method::Config
    {
        // Only what reads for a query that runs, or just ended, may come so late.
        let reads = client.unless_gone(request.peek(local_reply::MOST_TALK)).await??;
        if !reads.is_some_and(|request| local_reply::only_reads(&request)) {
            return Err(late.clone().into());
        }
    }
    let mut first = None;
    let mut not_before = None;
    for attempt in 0..MOST_TRIES {
        let began = Instant::now();
        let place = place(worker, open, &mut request, first.is_none(), deadline, not_before);
        let found = match client.unless_gone(place).await?? {
            Place::Compute(found) => found,
            Place::Nowhere(answer) => {
                client.reply(answer)?;
                return Ok(Outcome::Local);
            }
        };
        let Found {
            route,
            backend,
            stamp,
        } = found;
        shared.metrics.waited.at(Stage::Resolve).observe(began.elapsed());
        if open.is_work() {
            open.work();
        }
        open.tally().on_generation(backend.generation);
        if first.is_none() {
            let known = client
                .unless_gone(First::read(open, &backend, &mut request))
                .await??;
            first = Some(known);
        }
        let Some(known) = &first else { continue };
        if let Some(late) = &open.caller().late
            && method != Method::ReattachExecute
            && !open
                .tally()
                .running
                .is_running(backend.generation, known.spark_session)
        {
            // The engine may not have this Spark session, and would make it.
            return Err(late.clone().into());
        }

        let bound = bind::check(worker, open, &route, &backend, known.spark_session);
        match client.unless_gone(bound).await?? {
            Bound::Ours => {}
            Bound::Outdated => {
                not_before = Some(Instant::now());
                continue;
            }
            Bound::Replaced => {
                return Err(Stop::Engine(Box::new(engine_errors::session_replaced(
                    &known.spark_session,
                    &route,
                ))));
            }
            // Another worker or proxy may have bound it after this route was asked for.
            // ReleaseExecute was admitted whatever the rate, which must bound questions.
            Bound::Unknown
                if not_before.is_none()
                    && (method != Method::ReleaseExecute || open.tally().is_within_rate()) =>
            {
                not_before = Some(Instant::now());
                continue;
            }
            // Asked in vain. Only whoever reattaches had better try again.
            Bound::Unknown
                if not_before.is_some_and(|moment| stamp.at < moment)
                    && (method == Method::ReattachExecute || backend.engine == Engine::Spark) =>
            {
                bind::nobody_can_tell(backend.engine)?;
            }
            Bound::Unknown => {
                client.reply(bind::unused(method, &known.peeked)?)?;
                return Ok(Outcome::Local);
            }
        }
        if method == Method::CloneSession && !backend.dedicated {
            let checked = Box::pin(bind::check_clone(worker, open, &route, &backend, &known.peeked));
            client.unless_gone(checked).await??;
        }
        let lost = route.lost_compute(shared.clock.now());
        if let Some(request) = &known.reattach
            && backend.engine == Engine::Sail
        {
            let on_sail = &open.tally().on_sail;
            let may = on_sail.reattach(backend.generation, &known.spark_session, &request.operation_id);
            engine_errors::admit_reattach(request, client.unless_gone(Box::pin(may)).await?, lost)?;
        }
        let translator = Translator::new(backend.engine, known.spark_session, known.reattach.as_ref(), lost);

        let began = Instant::now();
        if !worker.pools.is_connected(&backend, method) && began.duration_since(stamp.at) > CONNECT_WITHIN {
            not_before = Some(began);
            continue;
        }
        let _share = worker.pools.enter(&backend, method, &open.caller().claims)?;
        let mut lease = match client.unless_gone(worker.pools.lease(&backend, method)).await? {
            Ok(lease) => lease,
            Err(Unreachable) => {
                // The address is suspect: it is asked for again.
                not_before = Some(Instant::now());
                continue;
            }
        };
        shared.metrics.waited.at(Stage::Connect).observe(began.elapsed());
        open.forwarded(&backend);
        if let Some(request) = &known.reattach {
            open.runs(
                &known.spark_session,
                open.user_id(&backend),
                &request.operation_id,
            );
        }
        let mut head = head.clone();
        upstream::headers::toward_backend(&mut head, &backend, method);
        let Ok(upstream) = lease.send(Request::from_parts(head, ())) else {
            not_before = Some(Instant::now());
            continue;
        };
        let exchange = Exchange {
            worker,
            open,
            backend: &backend,
            spark_session: known.spark_session,
            translator,
            clones: method == Method::CloneSession && !backend.dedicated,
            on_sail: OnceCell::new(),
            running: OnceCell::new(),
            settings: known.settings.as_ref(),
            route: &route,
        };
        if let Some(request) = &known.reattach {
            exchange.begin_on_sail(&request.operation_id);
        }
        let forwarded = forward(&exchange, upstream, &mut request, client);
        let forwarded = if method == Method::Interrupt {
            let limit = shared.config.backend.interrupt_timeout;
            Box::pin(tokio::time::timeout(limit, forwarded))
                .await
                .unwrap_or_else(|_| Err(interrupt_unanswered(limit)))
        } else {
            forwarded.await
        };
        match forwarded {
            Err(Stop::Untouched) if client.is_fresh() && request.rewind() => {
                tracing::debug!(attempt, "compute refused the call; sending it again");
                shared.metrics.sent_again.inc();
                not_before = Some(Instant::now());
            }
            done => return done,
        }
    }
    Err(backend_unavailable().into())
}

/// What a request's first message says.
struct First {
    spark_session: SparkSessionId,
    /// The whole request, where it must be understood here.
    peeked: Vec<u8>,
    reattach: Option<ReattachExecuteRequest>,
    /// What it changes of settings that are to be kept.
    settings: Option<SettingsChange>,
}

impl First {
    async fn read(open: &OpenCall, backend: &Backend, request: &mut Messages) -> Result<Self, Stop> {
        let method = open.method();
        let understood = match method {
            Method::ReattachExecute => true,
            Method::CloneSession => !backend.dedicated,
            _ => !method.is_work() && !backend.dedicated,
        };
        let settings = if method == Method::Config && backend.dedicated {
            // One that is longer than that is beyond what is kept anyway.
            let whole = request.peek(MOST_KEPT).await?;
            whole.and_then(|whole| SettingsChange::of(&whole, &open.caller().token))
        } else {
            None
        };
        let peeked = if understood {
            request.peek(MOST_KEPT).await?.ok_or_else(|| {
                Refused::new(
                    Reason::MalformedMessage,
                    "The request is too long for what it asks.",
                )
            })?
        } else {
            Vec::new()
        };
        let reattach = (method == Method::ReattachExecute)
            .then(|| ReattachExecuteRequest::decode(peeked.get(5..).unwrap_or_default()).ok())
            .flatten();
        request.identify(identity(backend, open), method == Method::ExecutePlan)?;
        Ok(Self {
            spark_session: request.open().await?,
            peeked,
            reattach,
            settings,
        })
    }
}

/// Who speaks, as the backend is to see it.
fn identity(backend: &Backend, open: &OpenCall) -> Identity {
    Identity::new(
        open.user_id(backend),
        open.caller().claims.sub.as_str(),
        backend.dedicated,
    )
}

/// A route to active compute.
struct Found {
    route: Arc<Route>,
    backend: Arc<Backend>,
    stamp: Stamp,
}

/// Where a call goes.
enum Place {
    Compute(Found),
    /// There is no compute and the call needs none: this is the answer.
    Nowhere(Bytes),
}

/// Where the call goes: to compute that is there, or, after it was held, to
/// compute that its session gets. A call that is no work is answered without.
async fn place(
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
        // What it holds is better known than guessed, and it may only look like work.
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
    // Boxed, as all that is rare: a call's future is moved, and is as large as its largest part.
    Box::pin(hold(worker, open, request, deadline))
        .await
        .map(Place::Compute)
}

/// Waits until the session has compute, which it is made to get.
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

/// Reads what comes of a held call's request, so that it is counted; at most `most` bytes.
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

/// The session's route: as this worker knows it, or as session-manager says
/// it, which with `wake` may take until the compute is warm.
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
            // A token of a later epoch proves that the route is not the newest.
            && claims.epoch <= route.token_epoch
            && (!wake || matches!(route.state, RouteState::Active(_)))
        {
            return Ok((route, stamp));
        }
        // A call that is held has its share already.
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
            answer = Box::pin(routes.resolve(ask)) => answer,
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
        // Something newer was announced on the way here.
        not_before = Some(Instant::now());
    }
}

/// The compute to call; `None` if there is none in use.
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

/// Is a call refused for the same reason when it is made again?
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

fn interrupt_unanswered(limit: Duration) -> Stop {
    Stop::Engine(Box::new(Status::deadline_exceeded(format!(
        "The session's compute did not answer the interrupt within {} s. It may know no such operation; what runs goes on.",
        limit.as_secs()
    ))))
}

fn unknown_method() -> Refused {
    Refused::new(
        Reason::UnknownMethod,
        "Only Spark Connect is served here (gRPC, POST /spark.connect.SparkConnectService/…). The berth command needs session-manager (port 8081, BERTH_MANAGER) and token-issuer (port 8083, BERTH_ISSUER).",
    )
}
