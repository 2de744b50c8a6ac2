//! One connection to compute: TCP, TLS if the route requires it, HTTP/2, and keepalive.
//!
//! A busy engine answers nothing, not even pings: Sail starved by a join on two cores was silent
//! for 50 s and then continued (measured with Sail 0.7.2). Silence of dedicated compute is
//! therefore no sign of loss: its provider observes the process, and the kernel detects a lost
//! machine, because it acknowledges for a busy engine. A shared server has no provider that
//! observes it, so it is pinged, with a limit of minutes.

use super::PoolLimits;
use crate::config::BackendConfig;
use crate::grpc::keepalive::{Keepalive, KeepaliveAction, KeepaliveConfig, KeepaliveState, TrackedIo};
use crate::grpc::request_body::Outgoing;
use crate::metrics::{Metrics, Peer};
use crate::routes::Backend;
use anyhow::Context as _;
use h2::client::{self, SendRequest};
use service_kit::connection::Conn;
use service_kit::tls::ClientTls;
use session_core::Engine;
use socket2::{SockRef, TcpKeepalive};
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;

/// Spark up to 4.2 closes connections that ping more often, or without calls.
const SPARK_PINGS_APART: Duration = Duration::from_secs(5 * 60);

/// TCP keepalive of a quiet connection.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Calls on a connection before the server's SETTINGS limit them.
const INITIAL_STREAMS: usize = 1;
/// Time limit for receiving the SETTINGS.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(1);

/// No connection was made, or it accepts no more calls; nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreachable;

/// h2 closes a connection when unread small frames, each counted as 256 bytes less its length,
/// exceed half its window. Clients that do not read small messages could so end the calls of
/// others. Spark's smallest message has more than 51 bytes; with this factor whole windows of them
/// are within the limit.
const SMALL_FRAME_FACTOR: usize = 4;

/// Maximum size of the headers, or trailers, of one response; engines put errors there. HTTP/2
/// drops fields beyond it, and closes the connection at four times this size.
const MAX_HEADER_LIST_BYTES: u32 = 1 << 20;

/// Makes connections to compute.
pub(crate) struct Connector {
    config: BackendConfig,
    tls: Arc<ClientTls>,
    metrics: Arc<Metrics>,
}

/// Drives a connection; must be polled.
pub(super) struct Driver {
    inner: client::Connection<TrackedIo<Conn>, Outgoing>,
    /// Keepalive of connections to shared servers.
    keepalive: Option<Keepalive>,
    metrics: Arc<Metrics>,
}

/// A new connection.
pub(super) struct Connected {
    pub(super) sender: SendRequest<Outgoing>,
    pub(super) driver: Driver,
    /// Keepalive state.
    pub(super) keepalive_state: Rc<KeepaliveState>,
}

type Opened = (
    SendRequest<Outgoing>,
    client::Connection<TrackedIo<Conn>, Outgoing>,
    Rc<KeepaliveState>,
);

impl Connector {
    pub(super) fn new(config: &BackendConfig, tls: Arc<ClientTls>, metrics: Arc<Metrics>) -> Self {
        Self {
            config: config.clone(),
            tls,
            metrics,
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn limits(&self) -> PoolLimits {
        PoolLimits {
            calls: self.config.calls_per_connection(),
            connections: self.config.connections_per_pool,
            wait: self.config.connect_timeout,
            per_session: self.config.shared_calls_per_session,
            per_org: self.config.shared_calls_per_org,
        }
    }

    pub(super) async fn connect(&self, backend: &Backend) -> Result<Connected, Unreachable> {
        let connected = tokio::time::timeout(self.config.connect_timeout, self.open(backend))
            .await
            .context("it took too long")
            .flatten();
        match connected {
            Ok((sender, mut inner, keepalive_state)) => {
                self.metrics.connections.backend_made.inc();
                self.metrics.connections.backend_open.add(1);
                let keepalive = (!backend.dedicated).then(|| {
                    Keepalive::new(
                        self.keepalive_config(backend.engine),
                        Rc::clone(&keepalive_state),
                        inner.ping_pong(),
                    )
                });
                Ok(Connected {
                    sender,
                    driver: Driver {
                        inner,
                        keepalive,
                        metrics: Arc::clone(&self.metrics),
                    },
                    keepalive_state,
                })
            }
            Err(error) => {
                tracing::info!(
                    ?backend,
                    error = format!("{error:#}"),
                    "compute connection failed"
                );
                Err(Unreachable)
            }
        }
    }

    fn keepalive_config(&self, engine: Engine) -> KeepaliveConfig {
        let silence = self.config.silence;
        let (idle, min_interval) = match engine {
            Engine::Sail => (Some(silence), silence),
            Engine::Spark => (None, SPARK_PINGS_APART),
        };
        KeepaliveConfig {
            busy: silence,
            idle,
            min_interval,
            timeout: self.config.ping_timeout,
        }
    }

    async fn open(&self, backend: &Backend) -> anyhow::Result<Opened> {
        let tcp = dial(&backend.addresses).await?;
        tcp.set_nodelay(true)?;
        set_half_open_timeout(&tcp, self.config.half_open_timeout)?;
        let remote = tcp.peer_addr()?;
        let conn = match &backend.tls {
            None => Conn::plain(tcp, remote),
            Some(name) => {
                let stream = self.tls.connector().connect(name.clone(), tcp).await?;
                Conn::tls(tokio_rustls::TlsStream::Client(stream), remote)
            }
        };
        let config = &self.config;
        let keepalive_state = KeepaliveState::new();
        let (sender, mut connection) = client::Builder::new()
            .initial_max_send_streams(INITIAL_STREAMS)
            .initial_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .max_frame_size(config.frame_bytes)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .enable_push(false)
            .data_frame_budget(config.connection_window_bytes as usize * SMALL_FRAME_FACTOR)
            .handshake::<_, Outgoing>(TrackedIo::new(conn, &keepalive_state))
            .await?;
        // The SETTINGS limit the number of calls on a connection; calls beyond it would queue
        // without an error. A busy engine sends them late, and gets one call until then.
        let settings = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(())) => Poll::Ready(Err(anyhow::anyhow!("it was closed at once"))),
            Poll::Pending if sender.current_max_send_streams() != INITIAL_STREAMS => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        if let Ok(arrived) = tokio::time::timeout(SETTINGS_TIMEOUT, settings).await {
            arrived?;
        }
        Ok((sender, connection, keepalive_state))
    }
}

/// Configures the kernel to drop a connection whose peer does not acknowledge.
fn set_half_open_timeout(tcp: &TcpStream, timeout: Duration) -> std::io::Result<()> {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    // Also bounds unanswered keepalive probes, instead of their number.
    socket.set_tcp_user_timeout(Some(timeout))
}

/// Connects to the first reachable address. The name is not resolved here: the result could differ
/// from the addresses that session-manager checked.
async fn dial(addresses: &[SocketAddr]) -> anyhow::Result<TcpStream> {
    let mut last = anyhow::anyhow!("the route has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

async fn next_action(keepalive: Option<&mut Keepalive>, has_calls: impl Fn() -> bool) -> KeepaliveAction {
    match keepalive {
        Some(keepalive) => keepalive.next(has_calls).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// Drives the connection until it ends or keepalive fails; its calls then end too.
    pub(super) async fn run(self, has_calls: impl Fn() -> bool) {
        let Self {
            mut inner,
            mut keepalive,
            metrics,
        } = self;
        loop {
            tokio::select! {
                biased;
                ended = &mut inner => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "compute connection ended");
                    }
                    break;
                }
                action = next_action(keepalive.as_mut(), &has_calls) => match action {
                    KeepaliveAction::Wait(_) => {}
                    KeepaliveAction::Ping(_) => metrics.connections.pings.at(Peer::Backend).inc(),
                    KeepaliveAction::Lost => {
                        metrics.connections.pings_lost.at(Peer::Backend).inc();
                        tracing::info!("compute connection lost: keepalive timeout");
                        break;
                    }
                },
            }
        }
        metrics.connections.backend_open.add(-1);
    }
}
