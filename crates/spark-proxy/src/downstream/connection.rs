//! One client connection: PROXY protocol, TLS, HTTP/2, then one task per call. Every phase is
//! limited: handshakes and the first valid token have time limits, silent clients are pinged, and
//! old connections accept no new calls.
//!
//! The call limit is enforced with an error. The stream limit of HTTP/2 is higher, because gRPC
//! clients queue calls beyond that one: calls that end work would wait behind the work.

use crate::call::{ConnectionState, handle};
use crate::config::{LimitConfig, TlsMode};
use crate::downstream::proxy_protocol::{self, Bad};
use crate::downstream::read_pacing::{Pace, Paced};
use crate::grpc::headers;
use crate::grpc::keepalive::{Beat, Ear, Heard, Pulse, Rules};
use crate::grpc::method;
use crate::grpc::reply::Client;
use crate::metrics::{Handshake, Outcome, Peer, Unwanted};
use crate::per_ip_limit::{Full, Place};
use crate::worker::Worker;
use anyhow::Context as _;
use bytes::Bytes;
use h2::server;
use service_kit::connection::Conn;
use session_core::Reason;
use session_proto::error::Refused;
use socket2::{SockRef, TcpKeepalive};
use std::future::poll_fn;
use std::net::SocketAddr;
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
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_TRIES: u32 = 4;
/// Spread of connection ages, so that connections do not end together.
const AGE_SPREAD: std::ops::RangeInclusive<f64> = 0.9..=1.1;
/// Time limit for sending the remaining data of a connection that is being closed.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Drain limit for a connection without a valid token.
const UNPROVEN_DRAIN: Duration = Duration::from_secs(1);
/// Concurrent calls on a connection before its first valid token. Nearly all tokens are checked
/// without waiting; the others wait for a key set.
const MAX_UNVERIFIED_CALLS: usize = 128;
/// Retry delay when calls of the connection must end first.
const RETRY_CROWDED: Duration = Duration::from_secs(1);

type Io = Paced<Heard<Conn>>;

/// A connection after its handshakes.
struct Ready {
    http: server::Connection<Io, Bytes>,
    /// Plaintext where TLS is required: every call gets an error.
    refused: bool,
    ear: Rc<Ear>,
    pace: Rc<Pace>,
    /// Place within the per-IP limit.
    _place: Option<Place>,
}

/// Reason for closing a connection before HTTP/2.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("the client address has reached its connection limit")]
    Full,
    #[error(transparent)]
    ProxyHeader(#[from] Bad),
    #[error("{0:#}")]
    Handshake(#[from] anyhow::Error),
}

impl From<Full> for Closed {
    fn from(Full: Full) -> Self {
        Self::Full
    }
}

/// Serves a connection until its end. `remote` is the peer until a trusted proxy reports the client
/// IP.
pub(crate) async fn serve(worker: Rc<Worker>, tcp: std::net::TcpStream, mut remote: SocketAddr) {
    let shared = &worker.shared;
    let metrics = &shared.metrics;
    let opening = open(&worker, tcp, &mut remote);
    let ready = match tokio::time::timeout(shared.config.limits.handshake, opening).await {
        Ok(Ok(ready)) => ready,
        Ok(Err(closed)) => {
            tracing::debug!(%remote, why = %closed, "client connection rejected");
            match closed {
                Closed::Full => metrics.unwanted.at(Unwanted::AddressLimit).inc(),
                Closed::ProxyHeader(_) => metrics.unwanted.at(Unwanted::ProxyHeader).inc(),
                Closed::Handshake(_) => metrics.handshakes.at(Handshake::Failed).inc(),
            }
            return;
        }
        Err(_) => {
            tracing::debug!(%remote, "client handshake timed out");
            metrics.handshakes.at(Handshake::TimedOut).inc();
            return;
        }
    };
    if ready.refused {
        metrics.handshakes.at(Handshake::Plaintext).inc();
    }
    if let Err(error) = calls(&worker, ready, remote).await {
        tracing::debug!(%remote, %error, "client connection failed");
    }
}

async fn open(worker: &Worker, tcp: std::net::TcpStream, remote: &mut SocketAddr) -> Result<Ready, Closed> {
    let shared = &worker.shared;
    let mut tcp = TcpStream::from_std(tcp).context("socket")?;
    prepare(&tcp).context("socket")?;
    if proxy_protocol::is_trusted(&shared.config.listen.trusted_proxies, remote.ip())
        && let Some(real) = proxy_protocol::read(&mut tcp).await?
    {
        *remote = real;
    }
    let place = shared.addresses.enter(remote.ip())?;
    let (conn, refused) = secured(worker, tcp, *remote).await?;
    let limits = &shared.config.limits;
    let (ear, pace) = (Ear::new(), Pace::new());
    let http = server::Builder::new()
        .initial_window_size(limits.first_stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_frame_size(limits.frame_bytes)
        .max_header_list_size(limits.hard_header_list_bytes())
        .max_concurrent_streams(limits.hard_streams_per_connection())
        // As many calls may be rejected at once while their clients are still sending.
        .max_concurrent_reset_streams(limits.hard_streams_per_connection() as usize)
        .max_send_buffer_size(limits.send_buffer_bytes)
        .handshake(Paced::new(Heard::new(conn, &ear), &pace))
        .await
        .context("HTTP/2")?;
    Ok(Ready {
        http,
        refused,
        ear,
        pace,
        _place: place,
    })
}

fn prepare(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_TRIES);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// Performs the TLS handshake if configured; also returns whether calls in plaintext are rejected.
async fn secured(worker: &Worker, tcp: TcpStream, remote: SocketAddr) -> anyhow::Result<(Conn, bool)> {
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

async fn calls(worker: &Rc<Worker>, ready: Ready, remote: SocketAddr) -> Result<(), h2::Error> {
    let Ready {
        mut http,
        refused,
        ear,
        pace,
        _place,
    } = ready;
    let shared = &worker.shared;
    let (limits, metrics) = (&shared.config.limits, &shared.metrics);
    let state = Rc::new(ConnectionState::new(remote.ip(), pace.unsent()));
    let (mut draining, mut widened) = (false, false);
    let mut stopping = pin!(shared.stopping.cancelled());
    let mut ending = pin!(worker.ending.cancelled());
    let mut pulse = Pulse::new(rules(limits), ear, http.ping_pong());
    let mut aged = pin!(sleep_until(end_of_life(limits)));
    let ages = !limits.connection_age.is_zero();
    let mut unproven = pin!(sleep(limits.first_token));
    loop {
        tokio::select! {
            biased;
            call = poll_fn(|cx| poll_call(&mut http, &pace, cx)) => {
                let Some(call) = call else {
                    if pace.is_flood() {
                        metrics.unwanted.at(Unwanted::Flood).inc();
                        tracing::debug!(%remote, "client connection closed: flood of frames without a call");
                        close(http, h2::Reason::ENHANCE_YOUR_CALM).await;
                    }
                    return Ok(());
                };
                let (request, respond) = call?;
                if refused {
                    Client::new(respond, pace.unsent()).refuse(tls_required());
                } else if let Err(refused) = check_call(limits, &state, &request).await {
                    metrics.opened.inc();
                    metrics.calls.at(Outcome::of(refused.reason)).inc();
                    Client::new(respond, pace.unsent()).refuse(refused);
                } else {
                    tokio::task::spawn_local(handle(Rc::clone(worker), Rc::clone(&state), request, respond));
                }
            }
            () = &mut stopping, if !draining => {
                draining = true;
                http.graceful_shutdown();
                if !state.is_proven.get() {
                    unproven.as_mut().reset(Instant::now() + UNPROVEN_DRAIN);
                }
            }
            () = &mut ending => {
                close(http, h2::Reason::NO_ERROR).await;
                return Ok(());
            }
            // Health checks are no proof: after the GOAWAY the checker opens a new connection.
            () = &mut unproven, if !state.is_proven.get() => {
                if state.is_proven.get() {
                    // The state may have changed since this branch was armed.
                    continue;
                }
                let is_asked_about = state.admitted.get() && Rc::strong_count(&state) > 1;
                if is_asked_about && !draining {
                    // The session of a verified token is being resolved.
                    unproven.as_mut().reset(Instant::now() + limits.first_token);
                    continue;
                }
                metrics.unwanted.at(Unwanted::NoToken).inc();
                tracing::debug!(%remote, "client connection closed: no valid token");
                close(http, h2::Reason::NO_ERROR).await;
                return Ok(());
            }
            // Each open call holds a reference to the state.
            beat = pulse.next(|| Rc::strong_count(&state) > 1) => match beat {
                Beat::Wait(_) => {}
                Beat::Ping(_) => metrics.pings.at(Peer::Client).inc(),
                Beat::Lost => {
                    metrics.pings_lost.at(Peer::Client).inc();
                    tracing::debug!(%remote, "client connection lost: keepalive timeout");
                    return Ok(());
                }
            },
            () = &mut aged, if ages && !draining => {
                draining = true;
                metrics.aged.inc();
                http.graceful_shutdown();
            }
        }
        if !widened && state.admitted.get() {
            pace.lift();
            // Fails until the client has acknowledged the first settings; the next iteration tries
            // again.
            widened = http.set_initial_window_size(limits.stream_window_bytes).is_ok();
        }
    }
}

/// Closes the connection, with a GOAWAY if the client reads.
async fn close(mut http: server::Connection<Io, Bytes>, why: h2::Reason) {
    http.abrupt_shutdown(why);
    // Sends the remaining data.
    let _ = tokio::time::timeout(LAST_WORDS, poll_fn(|cx| http.poll_closed(cx))).await;
}

type Incoming = Option<Result<(http::Request<h2::RecvStream>, server::SendResponse<Bytes>), h2::Error>>;

/// Returns the next call; `None` after the last, or in a flood. More is read only when all received
/// calls have been taken.
fn poll_call(http: &mut server::Connection<Io, Bytes>, pace: &Pace, cx: &mut Context<'_>) -> Poll<Incoming> {
    let call = http.poll_accept(cx);
    if pace.is_flood() {
        return Poll::Ready(None);
    }
    if call.is_pending() {
        pace.next_turn();
    }
    call
}

/// Checks the header size and the call limit of the connection.
async fn check_call(
    limits: &LimitConfig,
    state: &Rc<ConnectionState>,
    request: &http::Request<h2::RecvStream>,
) -> Result<(), Refused> {
    if headers::list_size(request) > limits.header_list_bytes as usize {
        return Err(headers_too_long(limits));
    }
    has_room(limits, state, request.uri().path()).await
}

/// Checks the call limit of the connection. Each open call holds a reference to its state.
async fn has_room(limits: &LimitConfig, state: &Rc<ConnectionState>, path: &str) -> Result<(), Refused> {
    let open = || Rc::strong_count(state) - 1;
    if open() >= MAX_UNVERIFIED_CALLS && !state.admitted.get() {
        // Earlier calls are checked first; most do not wait.
        tokio::task::yield_now().await;
        if open() >= MAX_UNVERIFIED_CALLS && !state.admitted.get() {
            return Err(crowded(format!(
                "{MAX_UNVERIFIED_CALLS} calls of this connection wait for their tokens to be checked, \
                 and none has shown a good one yet. Try again when one of them has ended."
            )));
        }
    }
    let most = limits.streams_per_connection as usize;
    if open() >= most && !method::ends_work(path) {
        return Err(crowded(format!(
            "This connection has {most} calls open, which is the limit (limits.streams_per_connection). \
             Wait until one of them ends, or open another connection."
        ))
        .with("limit", "limits.streams_per_connection"));
    }
    Ok(())
}

fn crowded(text: String) -> Refused {
    Refused::new(Reason::QuotaExceeded, text).retry_after(RETRY_CROWDED)
}

fn rules(limits: &LimitConfig) -> Rules {
    Rules {
        busy: limits.ping_interval,
        idle: Some(limits.idle_ping_interval),
        apart: limits.ping_interval,
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
