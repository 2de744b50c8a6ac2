//! A scripted RouteService in place of session-manager: the routes of sessions,
//! the announced changes, and outages.

use futures::Stream;
use parking_lot::{Mutex, MutexGuard};
use session_proto::internal::route_service_server::{RouteService, RouteServiceServer};
use session_proto::internal::watch_routes_response::Update;
use session_proto::internal::{
    Backend, BindSparkSessionRequest, BindSparkSessionResponse, ReportActivityRequest,
    ReportActivityResponse, ResolveRouteRequest, ResolveRouteResponse, Route, RouteChange, RouteHeartbeat,
    RouteReset, RouteStatus, SessionActivity, WatchRoutesRequest, WatchRoutesResponse,
};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Maximum number of streams of one connection.
const STREAMS_PER_CONNECTION: u32 = 256;

/// The fake service; stops on drop.
#[derive(Debug)]
pub struct FakeRoutes {
    address: SocketAddr,
    fake: Fake,
    stop: Mutex<CancellationToken>,
}

#[derive(Debug, Clone)]
struct Fake(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    routes: watch::Sender<HashMap<String, Route>>,
    refusals: HashMap<String, Status>,
    asked: watch::Sender<Vec<ResolveRouteRequest>>,
    watchers: watch::Sender<usize>,
    streams: Vec<mpsc::UnboundedSender<Result<WatchRoutesResponse, Status>>>,
    reports: watch::Sender<Vec<ReportActivityRequest>>,
    binds: Vec<BindSparkSessionRequest>,
    /// The owner of each Spark session id.
    bound: HashMap<String, String>,
    bind_refusal: Option<Status>,
    replaced: bool,
    is_silent: bool,
    hanging: HashSet<String>,
    slow_answers: Duration,
    most_binds: (usize, usize),
    bad_report: Option<String>,
    largest_report: usize,
}

/// An active route of version 1 to dedicated Spark at `backend`.
pub fn active(session: &str, org: &str, backend: SocketAddr) -> Route {
    Route {
        session_id: session.to_owned(),
        org: org.to_owned(),
        status: RouteStatus::Active.into(),
        store_epoch: 1,
        version: 1,
        generation: 1,
        token_epoch: 1,
        backend: Some(Backend {
            endpoint: backend.to_string(),
            engine: "spark".to_owned(),
            dedicated: true,
            ..Backend::default()
        }),
        user_id: session.to_owned(),
        ..Route::default()
    }
}

impl FakeRoutes {
    /// Stops or resumes the heartbeats.
    pub fn be_silent(&self, silent: bool) {
        self.fake.state().is_silent = silent;
    }

    /// Leaves resolves of this session without an answer.
    pub fn hang(&self, session: &str) {
        self.fake.state().hanging.insert(session.to_owned());
    }

    /// Delays every resolve and every bind from now on.
    pub fn slow_answers(&self, time: Duration) {
        self.fake.state().slow_answers = time;
    }

    /// Maximum number of concurrent binds so far.
    pub fn most_binds(&self) -> usize {
        self.fake.state().most_binds.1
    }

    /// Rejects every report of this session.
    pub fn refuse_reports_of(&self, session: &str) {
        self.fake.state().bad_report = Some(session.to_owned());
    }

    /// Rejects every report with more sessions than this as too large.
    pub fn limit_reports(&self, sessions: usize) {
        self.fake.state().largest_report = sessions;
    }

    /// The answer to the next bind is that the Spark session is older than the
    /// compute.
    pub fn replace_next(&self) {
        self.fake.state().replaced = true;
    }

    /// Starts on a free port of loopback.
    pub async fn start() -> std::io::Result<Self> {
        let state = State {
            routes: watch::Sender::default(),
            refusals: HashMap::new(),
            asked: watch::Sender::default(),
            watchers: watch::Sender::new(0),
            streams: Vec::new(),
            reports: watch::Sender::default(),
            binds: Vec::new(),
            bound: HashMap::new(),
            bind_refusal: None,
            replaced: false,
            is_silent: false,
            hanging: HashSet::new(),
            slow_answers: Duration::ZERO,
            most_binds: (0, 0),
            bad_report: None,
            largest_report: usize::MAX,
        };
        let fake = Fake(Arc::new(Mutex::new(state)));
        let (address, stop) = serve(fake.clone(), ([127, 0, 0, 1], 0).into()).await?;
        Ok(Self {
            address,
            fake,
            stop: Mutex::new(stop),
        })
    }

    /// `http://…`, for the proxy's configuration.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the route of the session without an announcement. As in
    /// session-manager, an endpoint that is an address is its own verified
    /// address.
    pub fn set(&self, mut route: Route) {
        if let Some(backend) = &mut route.backend
            && backend.endpoint.parse::<SocketAddr>().is_ok()
        {
            backend.addresses = vec![backend.endpoint.clone()];
        }
        self.fake.state().routes.send_modify(|routes| {
            routes.insert(route.session_id.clone(), route);
        });
    }

    /// Sets the route of the session and announces it to all watches.
    pub fn announce(&self, route: Route) {
        let change = RouteChange {
            session_id: route.session_id.clone(),
            store_epoch: route.store_epoch,
            version: route.version,
            status: route.status,
            generation: route.generation,
            token_epoch: route.token_epoch,
            reason: String::new(),
        };
        self.set(route);
        self.fake.state().tell(Update::Change(change));
    }

    /// Announces to all watches that changes may be lost.
    pub fn reset(&self) {
        self.fake
            .state()
            .tell(Update::Reset(RouteReset { store_epoch: 1 }));
    }

    /// Answers resolves with this token with an error.
    pub fn refuse(&self, token: &str, status: Status) {
        self.fake.state().refusals.insert(token.to_owned(), status);
    }

    /// The resolves so far.
    pub fn asked(&self) -> Vec<ResolveRouteRequest> {
        self.fake.state().asked.borrow().clone()
    }

    /// The reports so far.
    pub fn reports(&self) -> Vec<ReportActivityRequest> {
        self.fake.state().reports.borrow().clone()
    }

    /// Waits until the reports satisfy `condition`.
    pub async fn until_reported(&self, mut condition: impl FnMut(&[ReportActivityRequest]) -> bool) {
        let mut reports = self.fake.state().reports.subscribe();
        let _ = reports.wait_for(|reports| condition(reports)).await;
    }

    /// The Spark sessions of all binds so far, in order.
    pub fn binds(&self) -> Vec<BindSparkSessionRequest> {
        self.fake.state().binds.clone()
    }

    /// Binds the Spark session to the session in advance.
    pub fn bind(&self, spark_session: &str, session: &str) {
        let mut state = self.fake.state();
        state.bound.insert(spark_session.to_owned(), session.to_owned());
    }

    /// Gives every bind this answer from now on.
    pub fn refuse_binds(&self, status: Option<Status>) {
        self.fake.state().bind_refusal = status;
    }

    /// Waits for this many resolves.
    pub async fn until_asked(&self, count: usize) {
        let mut asked = self.fake.state().asked.subscribe();
        let _ = asked.wait_for(|asked| asked.len() >= count).await;
    }

    /// Waits for the first watch.
    pub async fn until_watched(&self) {
        let mut watchers = self.fake.state().watchers.subscribe();
        let _ = watchers.wait_for(|count| *count > 0).await;
    }

    /// Closes every stream, every connection and the port.
    pub fn go_away(&self) {
        self.stop.lock().cancel();
        let state = self.fake.state();
        state.watchers.send_replace(0);
    }

    /// Serves again at the same port.
    pub async fn come_back(&self) -> std::io::Result<()> {
        let (_, stop) = serve(self.fake.clone(), self.address).await?;
        *self.stop.lock() = stop;
        Ok(())
    }
}

impl Drop for FakeRoutes {
    fn drop(&mut self) {
        self.go_away();
    }
}

/// Serves until `stop` is cancelled, then closes all connections without drain:
/// each is a task of a separate runtime, which is dropped.
async fn serve(fake: Fake, address: SocketAddr) -> std::io::Result<(SocketAddr, CancellationToken)> {
    let listener = bind(address).await?;
    let address = listener.local_addr()?;
    let listener = listener.into_std()?;
    let stop = CancellationToken::new();
    let until = stop.clone();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else {
                return;
            };
            let service = RouteServiceServer::new(fake);
            let server = tonic::transport::Server::builder()
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener));
            let _ = until.run_until_cancelled(server).await;
        });
    });
    Ok((address, stop))
}

/// Binds a port that was just closed and can still be busy.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries < 100 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn tell(&mut self, update: Update) {
        self.streams.retain(|stream| {
            stream
                .send(Ok(WatchRoutesResponse {
                    update: Some(update.clone()),
                }))
                .is_ok()
        });
    }
}

/// The session in the claims of a token, without verification.
fn session_of(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let json = decode(payload)?;
    let text = String::from_utf8(json).ok()?;
    let (_, rest) = text.split_once("\"sid\":\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

/// Base64url without padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = 0_u32;
    let mut held = 0;
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for byte in text.bytes() {
        let value = ALPHABET.iter().position(|&known| known == byte)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from((bits >> held) & 0xff).ok()?);
        }
    }
    Some(out)
}

/// Sends a heartbeat every second, as session-manager does, until the stream
/// ends.
async fn send_heartbeats(fake: Fake, stream: mpsc::UnboundedSender<Result<WatchRoutesResponse, Status>>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let heartbeat = WatchRoutesResponse {
            update: Some(Update::Heartbeat(RouteHeartbeat {})),
        };
        if !fake.state().is_silent && stream.send(Ok(heartbeat)).is_err() {
            return;
        }
    }
}

type Updates = Pin<Box<dyn Stream<Item = Result<WatchRoutesResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RouteService for Fake {
    type WatchRoutesStream = Updates;

    async fn resolve_route(
        &self,
        request: Request<ResolveRouteRequest>,
    ) -> Result<Response<ResolveRouteResponse>, Status> {
        let request = request.into_inner();
        let session =
            session_of(&request.session_token).ok_or_else(|| Status::invalid_argument("no token"))?;
        let wait = request
            .wait
            .and_then(|wait| Duration::try_from(wait).ok())
            .unwrap_or_default();
        let waits = request.wake;
        let (hangs, slow) = {
            let state = self.state();
            state.asked.send_modify(|asked| asked.push(request.clone()));
            (state.hanging.contains(&session), state.slow_answers)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(slow).await;
        let mut routes = {
            let state = self.state();
            if let Some(status) = state.refusals.get(&request.session_token) {
                return Err(status.clone());
            }
            state.routes.subscribe()
        };
        let ready = routes.wait_for(|routes| {
            routes.get(&session).is_none_or(|route| {
                !waits || !matches!(route.status(), RouteStatus::Pending | RouteStatus::Idle)
            })
        });
        let found = match tokio::time::timeout(wait, ready).await {
            Ok(Ok(routes)) => routes.get(&session).cloned(),
            _ => self.state().routes.borrow().get(&session).cloned(),
        };
        let route = found.unwrap_or_else(|| Route {
            session_id: session,
            org: "acme".to_owned(),
            status: RouteStatus::Closed.into(),
            ..Route::default()
        });
        Ok(Response::new(ResolveRouteResponse { route: Some(route) }))
    }

    async fn watch_routes(&self, _: Request<WatchRoutesRequest>) -> Result<Response<Updates>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let reset = WatchRoutesResponse {
            update: Some(Update::Reset(RouteReset { store_epoch: 1 })),
        };
        let _ = sender.send(Ok(reset));
        tokio::spawn(send_heartbeats(self.clone(), sender.clone()));
        let mut state = self.state();
        state.streams.push(sender);
        state.watchers.send_modify(|count| *count += 1);
        Ok(Response::new(Box::pin(
            UnboundedReceiverStream::new(receiver).fuse(),
        )))
    }

    async fn report_activity(
        &self,
        request: Request<ReportActivityRequest>,
    ) -> Result<Response<ReportActivityResponse>, Status> {
        let report = request.into_inner();
        let state = self.state();
        if report.sessions.len() > state.largest_report {
            return Err(Status::out_of_range("decoded message length too large"));
        }
        let is_bad = |activity: &SessionActivity| Some(&activity.session_id) == state.bad_report.as_ref();
        if report.sessions.iter().any(is_bad) {
            return Err(Status::invalid_argument("a bad record"));
        }
        state.reports.send_modify(|reports| reports.push(report));
        Ok(Response::new(ReportActivityResponse {}))
    }

    async fn bind_spark_session(
        &self,
        request: Request<BindSparkSessionRequest>,
    ) -> Result<Response<BindSparkSessionResponse>, Status> {
        let request = request.into_inner();
        let session =
            session_of(&request.session_token).ok_or_else(|| Status::invalid_argument("no token"))?;
        let slow = {
            let mut state = self.state();
            state.most_binds.0 += 1;
            state.most_binds.1 = state.most_binds.1.max(state.most_binds.0);
            state.slow_answers
        };
        tokio::time::sleep(slow).await;
        let mut state = self.state();
        state.most_binds.0 -= 1;
        state.binds.push(request.clone());
        if let Some(status) = &state.bind_refusal {
            return Err(status.clone());
        }
        let owner = state
            .bound
            .entry(request.spark_session_id)
            .or_insert_with(|| session.clone());
        let bound = *owner == session;
        let replaced = std::mem::take(&mut state.replaced);
        Ok(Response::new(BindSparkSessionResponse {
            bound,
            replaced,
            not_kept: false,
        }))
    }
}
