//! One connection: TCP, TLS if the route asks for it, HTTP/2; and whether its
//! other end is still there.
//!
//! An engine that is busy answers nothing, pings neither: Sail starved by a
//! join on two cores was silent for 50 s, and then right (measured with Sail
//! 0.7.2). So silence of dedicated compute says nothing. Whoever started it
//! knows whether it lives, and a machine that vanished is noticed by the
//! kernel, which acknowledges for an engine that is merely busy. A shared
//! server has nobody who would tell, so it is pinged, with minutes to answer.

use super::Bounds;
use crate::config::BackendConfig;
use crate::grpc::keepalive::{Beat, Ear, Heard, Pulse, Rules};
use crate::grpc::request_body::Outgoing;
use crate::metrics::{Metrics, Peer};
use crate::routes::Backend;
use anyhow::Context as _;
use h2::client::{self, SendRequest};
use service_kit::tls::{ClientTls, Conn};
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

/// Spark up to 4.2 ends connections that ping more often, or without calls.
const SPARK_PINGS_APART: Duration = Duration::from_secs(5 * 60);

/// When the kernel asks the other end's whether a quiet connection still stands.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Calls on a connection before the server's settings say how many it takes.
const ONE: usize = 1;
/// How long these are waited for.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(1);

/// No connection came to be, or it takes no more calls: nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreachable;

/// h2 ends a connection when small frames that nobody takes pile up, 256 bytes
/// less their length each, beyond half its window. Clients that do not read
/// small messages would so end the calls of all others. The smallest message
/// of Spark's has more than 51 bytes, and fits whole windows of it in this.
const SMALL_FRAMES: usize = 4;

/// Headers, or trailers, of one response. An engine puts its errors there.
/// HTTP/2 drops the fields beyond it, and ends the connection at four times as much.
const MAX_HEADER_LIST_BYTES: u32 = 1 << 20;

/// Makes connections.
pub(crate) struct Connector {
    config: BackendConfig,
    tls: Arc<ClientTls>,
    metrics: Arc<Metrics>,
}

/// The part of a connection that must be run for it to work.
pub(super) struct Connection {
    inner: client::Connection<Heard<Conn>, Outgoing>,
    /// Of connections to shared servers.
    pulse: Option<Pulse>,
    metrics: Arc<Metrics>,
}

/// What a new connection is.
pub(super) struct Connected {
    pub(super) sender: SendRequest<Outgoing>,
    pub(super) connection: Connection,
    /// Whether its other end is in doubt.
    pub(super) ear: Rc<Ear>,
}

type Opened = (
    SendRequest<Outgoing>,
    client::Connection<Heard<Conn>, Outgoing>,
    Rc<Ear>,
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

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            calls: self.config.calls_per_connection(),
            links: self.config.connections_per_pool,
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
            Ok((sender, mut inner, ear)) => {
                self.metrics.backend_connected.inc();
                self.metrics.backend_connections.add(1);
                let pulse = (!backend.dedicated)
                    .then(|| Pulse::new(self.rules(backend.engine), Rc::clone(&ear), inner.ping_pong()));
                Ok(Connected {
                    sender,
                    connection: Connection {
                        inner,
                        pulse,
                        metrics: Arc::clone(&self.metrics),
                    },
                    ear,
                })
            }
            Err(error) => {
                tracing::info!(pool = ?backend.pool, error = format!("{error:#}"), "cannot connect to compute");
                Err(Unreachable)
            }
        }
    }

    fn rules(&self, engine: Engine) -> Rules {
        let silence = self.config.silence;
        let (idle, apart) = match engine {
            Engine::Sail => (Some(silence), silence),
            Engine::Spark => (None, SPARK_PINGS_APART),
        };
        Rules {
            busy: silence,
            idle,
            apart,
            timeout: self.config.ping_timeout,
        }
    }

    async fn open(&self, backend: &Backend) -> anyhow::Result<Opened> {
        let tcp = dial(&backend.addresses).await?;
        tcp.set_nodelay(true)?;
        watch_peer(&tcp, self.config.half_open_timeout)?;
        let remote = tcp.peer_addr()?;
        let conn = match &backend.tls {
            None => Conn::plain(tcp, remote),
            Some(name) => {
                let stream = self.tls.connector().connect(name.clone(), tcp).await?;
                Conn::tls(tokio_rustls::TlsStream::Client(stream), remote)
            }
        };
        let config = &self.config;
        let ear = Ear::new();
        let (sender, mut connection) = client::Builder::new()
            .initial_max_send_streams(ONE)
            .initial_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .max_frame_size(config.frame_bytes)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .enable_push(false)
            .data_frame_budget(config.connection_window_bytes as usize * SMALL_FRAMES)
            .handshake::<_, Outgoing>(Heard::new(conn, &ear))
            .await?;
        // Until its settings are here it is not known how many calls the server
        // takes on a connection, and more than one would queue in silence. A
        // busy engine sends them late, and takes the one call then.
        let settings = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(())) => Poll::Ready(Err(anyhow::anyhow!("it was closed at once"))),
            Poll::Pending if sender.current_max_send_streams() != ONE => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        if let Ok(arrived) = tokio::time::timeout(SETTINGS_TIMEOUT, settings).await {
            arrived?;
        }
        Ok((sender, connection, ear))
    }
}

/// Has the kernel drop the connection when the other end's kernel is silent.
fn watch_peer(tcp: &TcpStream, timeout: Duration) -> std::io::Result<()> {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    // This bounds unanswered keepalives too, instead of their number.
    socket.set_tcp_user_timeout(Some(timeout))
}

/// The first that answers. A name is not looked up again here: it could stand
/// for something else by now than what session-manager checked.
async fn dial(addresses: &[SocketAddr]) -> anyhow::Result<TcpStream> {
    let mut last = anyhow::anyhow!("session-manager names no address that may be dialled");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

async fn next_beat(pulse: Option<&mut Pulse>, has_calls: impl Fn() -> bool) -> Beat {
    match pulse {
        Some(pulse) => pulse.next(has_calls).await,
        None => std::future::pending().await,
    }
}

impl Connection {
    /// Until it ends, or its other end does not answer: then its calls end too.
    pub(super) async fn run(self, has_calls: impl Fn() -> bool) {
        let Self {
            mut inner,
            mut pulse,
            metrics,
        } = self;
        loop {
            tokio::select! {
                biased;
                ended = &mut inner => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a backend connection ended");
                    }
                    break;
                }
                beat = next_beat(pulse.as_mut(), &has_calls) => match beat {
                    Beat::Wait(_) => {}
                    Beat::Ping(_) => metrics.pings.at(Peer::Backend).inc(),
                    Beat::Lost => {
                        metrics.pings_lost.at(Peer::Backend).inc();
                        tracing::info!("a backend connection is silent and does not answer pings");
                        break;
                    }
                },
            }
        }
        metrics.backend_connections.add(-1);
    }
}
