//! One client connection: PROXY protocol, TLS, HTTP/2, then one task per call. Every phase is
//! limited: handshakes and the first valid token have time limits, silent clients are pinged, and
//! old connections accept no new calls.
//!
//! The call limit is enforced with an error. The stream limit of HTTP/2 is higher, because gRPC
//! clients queue calls beyond that one: calls that end work would wait behind the work.

use crate::call::{ConnectionState, handle};
use crate::config::{LimitConfig, TlsMode};
use crate::downstream::proxy_protocol::{self, ProxyHeaderError};
use crate::downstream::read_pacing::{PacedIo, ReadPacing};
use crate::grpc::keepalive::{Keepalive, KeepaliveAction, KeepaliveConfig, KeepaliveState, TrackedIo};
use crate::grpc::method;
use crate::grpc::reply::ClientStream;
use crate::metrics::{CloseReason, Handshake, Outcome, Peer};
use crate::worker::Worker;
use anyhow::Context as _;
use bytes::Bytes;
use h2::server;
use service_kit::connection::{Conn, LingeringIo};
use service_kit::http2::list_size;
use service_kit::limiter::{Permit, address_key};
use session_core::Reason;
use session_proto::error::Refused;
use socket2::{SockRef, TcpKeepalive};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsStream;

/// The first byte of every TLS connection: a handshake record.
const TLS_RECORD: u8 = 0x16;
/// The first byte of `PRI * HTTP/2.0`.
const HTTP2_PREFACE: u8 = b'P';
/// TCP keepalive, for connections before HTTP/2 pings.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;
/// Spread of connection ages, so that connections do not end together.
const AGE_SPREAD: std::ops::RangeInclusive<f64> = 0.9..=1.1;
/// Time limit for sending the remaining data of a connection that is being closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
/// Time for which a connection that was closed for a flood keeps its place.
const FLOOD_PAUSE: Duration = Duration::from_secs(1);
/// Drain limit for a connection without a valid token.
const UNAUTHENTICATED_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Concurrent calls on a connection before its first valid token. Nearly all tokens are checked
/// without waiting; the others wait for a key set.
const MAX_UNVERIFIED_CALLS: usize = 128;
/// Calls that a client may cancel before the proxy has taken the first of them: all that a client
/// with 2000 cancelled calls a second can send while the proxy gets no processor for 250 ms. More are
/// a flood, for which HTTP/2 ends the connection and all its calls.
const MAX_UNTAKEN_RESETS: usize = 512;
/// Retry delay when calls of the connection must end first.
const RETRY_DELAY: Duration = Duration::from_secs(1);

type Io = PacedIo<TrackedIo<LingeringIo<Conn>>>;

/// A connection after its handshakes.
struct OpenConnection {
    http: server::Connection<Io, Bytes>,
    /// Plaintext where TLS is required: every call gets an error.
    rejects_plaintext: bool,
    keepalive_state: Rc<KeepaliveState>,
    pacing: Rc<ReadPacing>,
    /// One of the connections of the client IP.
    permit: Permit<IpAddr>,
}

/// Reason for closing a connection before HTTP/2.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("the client address has reached its connection limit")]
    AddressLimit,
    #[error(transparent)]
    ProxyHeader(#[from] ProxyHeaderError),
    #[error("{0:#}")]
    Handshake(#[from] anyhow::Error),
}

/// Serves a connection until its end. `remote` is the peer until a trusted proxy reports the client
/// IP.
pub(crate) async fn serve(worker: Rc<Worker>, tcp: std::net::TcpStream, mut remote: SocketAddr) {
    let shared = &worker.shared;
    let metrics = &shared.metrics;
    // On the heap, so that an idle connection does not keep the room of its handshakes.
    let opening = Box::pin(open(&worker, tcp, &mut remote));
    let opened = match tokio::time::timeout(shared.config.limits.handshake, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(closed)) => {
            tracing::debug!(%remote, why = %closed, "client connection rejected");
            match closed {
                OpenError::AddressLimit => metrics.connections.refused.at(CloseReason::AddressLimit).inc(),
                OpenError::ProxyHeader(_) => metrics.connections.refused.at(CloseReason::ProxyHeader).inc(),
                OpenError::Handshake(_) => metrics.connections.handshakes.at(Handshake::Failed).inc(),
            }
            return;
        }
        Err(_) => {
            tracing::debug!(%remote, "client handshake timed out");
            metrics.connections.handshakes.at(Handshake::TimedOut).inc();
            return;
        }
    };
    if opened.rejects_plaintext {
        metrics.connections.handshakes.at(Handshake::Plaintext).inc();
    }
    let mut serving = Box::new(Serving::new(&worker, opened, remote));
    let ended = serve_calls(&mut serving).await;
    if let Err(error) = &ended {
        tracing::debug!(%remote, %error, "client connection failed");
    }
    if serving.ended_in_flood(&ended) {
        serving.pause().await;
    }
}

async fn open(
    worker: &Worker,
    tcp: std::net::TcpStream,
    remote: &mut SocketAddr,
) -> Result<OpenConnection, OpenError> {
    let shared = &worker.shared;
    let mut tcp = TcpStream::from_std(tcp).context("socket")?;
    set_socket_options(&tcp).context("socket")?;
    if proxy_protocol::is_trusted(&shared.config.listen.trusted_proxies, remote.ip())
        && let Some(real) = proxy_protocol::read(&mut tcp).await?
    {
        *remote = real;
    }
    let permit = shared
        .connections
        .enter(address_key(remote.ip()))
        .ok_or(OpenError::AddressLimit)?;
    let (conn, rejects_plaintext) = tls_handshake(worker, tcp, *remote).await?;
    let limits = &shared.config.limits;
    let (keepalive_state, pacing) = (KeepaliveState::new(), ReadPacing::new());
    let http = server::Builder::new()
        .initial_window_size(limits.first_stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_frame_size(limits.frame_bytes)
        .max_header_list_size(limits.hard_header_list_bytes())
        .max_concurrent_streams(limits.hard_streams_per_connection())
        // As many calls may be rejected at once while their clients are still sending.
        .max_concurrent_reset_streams(limits.hard_streams_per_connection() as usize)
        .max_pending_accept_reset_streams(MAX_UNTAKEN_RESETS)
        .max_send_buffer_size(limits.send_buffer_bytes)
        .handshake(PacedIo::new(
            TrackedIo::new(LingeringIo::new(conn), &keepalive_state),
            &pacing,
        ))
        .await
        .context("HTTP/2")?;
    Ok(OpenConnection {
        http,
        rejects_plaintext,
        keepalive_state,
        pacing,
        permit,
    })
}

fn set_socket_options(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// Performs the TLS handshake if configured; also returns whether calls in plaintext are rejected.
async fn tls_handshake(worker: &Worker, tcp: TcpStream, remote: SocketAddr) -> anyhow::Result<(Conn, bool)> {
    let mode = worker.shared.config.listen.tls.mode;
    Ok(match (&worker.shared.tls, mode) {
        (_, TlsMode::Off) | (None, _) => (Conn::plain(tcp, remote), false),
        (Some(tls), TlsMode::Required | TlsMode::Auto) => {
            let mut first = [0];
            tcp.peek(&mut first).await?;
            match first[0] {
                TLS_RECORD => {
                    let stream = tls.acceptor().accept(tcp).await.context("TLS")?;
                    (Conn::tls(TlsStream::Server(stream), remote), false)
                }
                HTTP2_PREFACE => (Conn::plain(tcp, remote), mode == TlsMode::Required),
                _ => anyhow::bail!("neither TLS nor HTTP/2"),
            }
        }
    })
}

/// A connection whose calls are served; on the heap, so that the task of a connection stays small.
struct Serving<'w> {
    worker: &'w Rc<Worker>,
    http: server::Connection<Io, Bytes>,
    rejects_plaintext: bool,
    keepalive_state: Rc<KeepaliveState>,
    pacing: Rc<ReadPacing>,
    state: Rc<ConnectionState>,
    remote: SocketAddr,
    /// A GOAWAY was sent: no new calls.
    is_draining: bool,
    /// The full window was announced to the client.
    is_widened: bool,
    _permit: Permit<IpAddr>,
}

/// Starts calls until the connection ends or must be closed.
async fn serve_calls(serving: &mut Serving<'_>) -> Result<(), h2::Error> {
    let worker = serving.worker;
    let shared = &worker.shared;
    let (limits, metrics) = (&shared.config.limits, &shared.metrics);
    let keepalive_state = Rc::clone(&serving.keepalive_state);
    let mut keepalive = Keepalive::new(
        keepalive_config(limits),
        keepalive_state,
        serving.http.ping_pong(),
    );
    let mut stopping = pin!(shared.stopping.cancelled());
    let mut ending = pin!(worker.ending.cancelled());
    let mut aged = pin!(sleep_until(end_of_life(limits)));
    let ages = !limits.connection_age.is_zero();
    let mut token_timer = pin!(sleep(limits.first_token));
    // `None` if the connection has ended or is lost.
    let goaway = loop {
        tokio::select! {
            biased;
            call = poll_fn(|cx| poll_call(&mut serving.http, &serving.pacing, cx)) => match call {
                Some(call) => {
                    let (request, respond) = call?;
                    serving.start_call(request, respond).await;
                }
                None => break serving.flood(),
            },
            () = &mut stopping, if !serving.is_draining => {
                serving.begin_drain();
                if !serving.state.last_admitted.is_set() {
                    token_timer.as_mut().reset(Instant::now() + UNAUTHENTICATED_DRAIN_TIMEOUT);
                }
            }
            () = &mut ending => break Some(h2::Reason::NO_ERROR),
            () = &mut token_timer, if !serving.state.last_admitted.is_set() => {
                if !serving.may_admit_token() {
                    break serving.no_token();
                }
                token_timer.as_mut().reset(Instant::now() + limits.first_token);
            }
            action = keepalive.next(|| open_calls(&serving.state) > 0) => {
                if serving.is_lost(action) {
                    break None;
                }
            }
            () = &mut aged, if ages && !serving.is_draining => {
                metrics.connections.aged.inc();
                serving.begin_drain();
            }
        }
        serving.widen_window();
    };
    if let Some(why) = goaway {
        serving.close(why).await;
    }
    Ok(())
}

impl<'w> Serving<'w> {
    fn new(worker: &'w Rc<Worker>, opened: OpenConnection, remote: SocketAddr) -> Self {
        let OpenConnection {
            http,
            rejects_plaintext,
            keepalive_state,
            pacing,
            permit,
        } = opened;
        Self {
            worker,
            http,
            rejects_plaintext,
            keepalive_state,
            state: Rc::new(ConnectionState::new(remote.ip(), pacing.unsent())),
            pacing,
            remote,
            is_draining: false,
            is_widened: false,
            _permit: permit,
        }
    }

    /// Number of open calls: each holds a reference to the state.
    fn open_calls(&self) -> usize {
        open_calls(&self.state)
    }

    /// Starts a call in its own task, or rejects it.
    async fn start_call(&self, request: http::Request<h2::RecvStream>, respond: server::SendResponse<Bytes>) {
        let shared = &self.worker.shared;
        let (limits, metrics) = (&shared.config.limits, &shared.metrics);
        if self.rejects_plaintext {
            ClientStream::new(respond, self.pacing.unsent()).refuse(tls_required());
        } else if let Err(refused) = check_call(limits, &self.state, &request).await {
            metrics.calls.opened.inc();
            metrics.calls.ended.at(Outcome::of(refused.reason)).inc();
            ClientStream::new(respond, self.pacing.unsent()).refuse(refused);
        } else {
            let (worker, state) = (Rc::clone(self.worker), Rc::clone(&self.state));
            tokio::task::spawn_local(handle(worker, state, request, respond));
        }
    }

    /// Sends a GOAWAY: open calls continue.
    fn begin_drain(&mut self) {
        self.is_draining = true;
        self.http.graceful_shutdown();
    }

    /// Whether the connection may still show a valid token, or has shown one since the timer was
    /// armed. Health checks are no proof: after the GOAWAY the checker opens a new connection.
    fn may_admit_token(&self) -> bool {
        // The session of a verified token is being resolved.
        let is_resolving = self.state.has_verified_token.get() && self.open_calls() > 0;
        self.state.last_admitted.is_set() || (is_resolving && !self.is_draining)
    }

    /// Records the result of a keepalive check; true if the connection is lost.
    fn is_lost(&self, action: KeepaliveAction) -> bool {
        let metrics = &self.worker.shared.metrics;
        match action {
            KeepaliveAction::Wait(_) => false,
            KeepaliveAction::Ping(_) => {
                metrics.connections.pings.at(Peer::Client).inc();
                false
            }
            KeepaliveAction::Lost => {
                metrics.connections.pings_lost.at(Peer::Client).inc();
                tracing::debug!(remote = %self.remote, "client connection lost: keepalive timeout");
                true
            }
        }
    }

    /// Lifts the limits of unauthenticated clients after the first valid token.
    fn widen_window(&mut self) {
        if !self.is_widened && self.state.has_verified_token.get() {
            self.pacing.lift();
            let window = self.worker.shared.config.limits.stream_window_bytes;
            // Fails until the client has acknowledged the first settings; the next iteration tries
            // again.
            self.is_widened = self.http.set_initial_window_size(window).is_ok();
        }
    }

    /// The reason to close a connection without a valid token.
    fn no_token(&self) -> Option<h2::Reason> {
        let metrics = &self.worker.shared.metrics;
        metrics.connections.refused.at(CloseReason::NoToken).inc();
        tracing::debug!(remote = %self.remote, "client connection closed: no valid token");
        Some(h2::Reason::NO_ERROR)
    }

    /// The reason to close the connection if its reading ended in a flood.
    fn flood(&self) -> Option<h2::Reason> {
        self.pacing.is_flood().then_some(h2::Reason::ENHANCE_YOUR_CALM)
    }

    /// Whether the connection was closed for a flood: by the rate of frames, or by HTTP/2, which
    /// accepts 100 empty data frames and limits resets.
    fn ended_in_flood(&self, ended: &Result<(), h2::Error>) -> bool {
        let by_http =
            |error: &h2::Error| error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        self.pacing.is_flood() || ended.as_ref().is_err_and(by_http)
    }

    /// Keeps the place of a connection that was closed for a flood, and reads nothing more: to
    /// connect again and again must be no way around the rate of frames.
    async fn pause(&self) {
        let shared = &self.worker.shared;
        shared.metrics.connections.refused.at(CloseReason::Flood).inc();
        tracing::debug!(remote = %self.remote, "client connection closed: flood of frames without a call");
        tokio::select! {
            () = sleep(FLOOD_PAUSE) => {}
            () = shared.stopping.cancelled() => {}
        }
    }

    /// Closes the connection, with a GOAWAY if the client reads.
    async fn close(&mut self, why: h2::Reason) {
        self.http.abrupt_shutdown(why);
        // Sends the remaining data.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, poll_fn(|cx| self.http.poll_closed(cx))).await;
    }
}

/// Number of open calls: each holds a reference to the state of its connection.
fn open_calls(state: &Rc<ConnectionState>) -> usize {
    Rc::strong_count(state) - 1
}

type Incoming = Option<Result<(http::Request<h2::RecvStream>, server::SendResponse<Bytes>), h2::Error>>;

/// Returns the next call; `None` after the last, or in a flood. More is read only when all received
/// calls have been taken.
fn poll_call(
    http: &mut server::Connection<Io, Bytes>,
    pacing: &ReadPacing,
    cx: &mut Context<'_>,
) -> Poll<Incoming> {
    let call = http.poll_accept(cx);
    if pacing.is_flood() {
        return Poll::Ready(None);
    }
    if call.is_pending() {
        pacing.next_turn();
    }
    call
}

/// Checks the header size and the call limit of the connection.
async fn check_call(
    limits: &LimitConfig,
    state: &Rc<ConnectionState>,
    request: &http::Request<h2::RecvStream>,
) -> Result<(), Refused> {
    if list_size(request) > limits.header_list_bytes as usize {
        return Err(headers_too_long(limits));
    }
    check_open_calls(limits, state, request.uri().path()).await
}

/// Checks the call limit of the connection.
async fn check_open_calls(
    limits: &LimitConfig,
    state: &Rc<ConnectionState>,
    path: &str,
) -> Result<(), Refused> {
    if open_calls(state) >= MAX_UNVERIFIED_CALLS && !state.has_verified_token.get() {
        // Earlier calls are checked first; most do not wait.
        tokio::task::yield_now().await;
        if open_calls(state) >= MAX_UNVERIFIED_CALLS && !state.has_verified_token.get() {
            return Err(too_many_calls(format!(
                "{MAX_UNVERIFIED_CALLS} calls of this connection wait for their tokens to be checked, \
                 and none has shown a good one yet. Try again when one of them has ended."
            )));
        }
    }
    let max = limits.streams_per_connection as usize;
    if open_calls(state) >= max && !method::ends_work(path) {
        return Err(too_many_calls(format!(
            "This connection has {max} calls open, which is the limit (limits.streams_per_connection). \
             Wait until one of them ends, or open another connection."
        ))
        .with("limit", "limits.streams_per_connection"));
    }
    Ok(())
}

fn too_many_calls(text: String) -> Refused {
    Refused::new(Reason::QuotaExceeded, text).retry_after(RETRY_DELAY)
}

fn keepalive_config(limits: &LimitConfig) -> KeepaliveConfig {
    KeepaliveConfig {
        busy: limits.ping_interval,
        idle: Some(limits.idle_ping_interval),
        min_interval: limits.ping_interval,
        timeout: limits.ping_timeout,
    }
}

fn end_of_life(limits: &LimitConfig) -> Instant {
    Instant::now() + limits.connection_age.mul_f64(rand::random_range(AGE_SPREAD))
}

fn headers_too_long(limits: &LimitConfig) -> Refused {
    Refused::field(
        "headers",
        format_args!(
            "they are longer than the {} bytes that this proxy accepts (limits.header_list_bytes). Send less metadata.",
            limits.header_list_bytes
        ),
    )
}

fn tls_required() -> Refused {
    Refused::new(
        Reason::TlsRequired,
        "This address speaks TLS only. Call spark.stop(), then add use_ssl=true to the connection string: sc://host:port/;use_ssl=true;token=…",
    )
}
