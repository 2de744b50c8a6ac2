//! Connections to spark-proxy: HTTP/2 over TLS, made when needed, shared by calls, replaced after a
//! loss. A connection has room for the windows of all its streams, so a client that does not read
//! delays no other call.

use crate::doctor::connection_string::{self, ConnectionString};
use crate::settings::Target;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use service_kit::backoff::Backoff;
use service_kit::connection::Conn;
use service_kit::tls::{ClientTls, ClientTlsFiles, H2};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Calls on one connection. The connection window holds the windows of all of them.
const MAX_CALLS_PER_CONNECTION: usize = 64;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * MAX_CALLS_PER_CONNECTION as u32;
const MAX_FRAME_BYTES: u32 = 64 * 1024;
/// Request bytes that HTTP/2 holds for one call.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// spark-proxy sends at most 7 KiB of trailers; other headers are small.
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;
/// h2 ends a connection when unread small frames, each counted as 256 bytes less its length, exceed
/// half its window; with this factor whole windows of messages of 51 bytes are within the limit.
const SMALL_FRAME_FACTOR: usize = 4;

/// Time limit of one connection attempt, handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);
/// Pings find a lost connection, for example after a change of the network.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// No connection could be made in time; the text says why.
#[derive(Debug)]
pub(super) struct Unreachable(pub(super) String);

/// The Spark Connect port of one Berth.
pub(super) struct Upstream {
    host: String,
    port: u16,
    scheme: Scheme,
    authority: Authority,
    tls: Option<(Arc<ClientTls>, ServerName<'static>)>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// Held while a connection is made: one attempt at a time.
    connecting: tokio::sync::Mutex<()>,
}

struct Connection {
    sender: SendRequest<Bytes>,
    open_calls: AtomicUsize,
    is_closed: AtomicBool,
}

/// A place for one call on a connection.
pub(super) struct Lease(Arc<Connection>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.open_calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// Takes a place if there is one.
    fn lease(self: &Arc<Self>) -> Option<Lease> {
        let limit = self
            .sender
            .current_max_send_streams()
            .min(MAX_CALLS_PER_CONNECTION);
        let has_room = |open: usize| (open < limit).then_some(open + 1);
        self.open_calls
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room)
            .is_ok()
            .then(|| Lease(Arc::clone(self)))
    }
}

impl Lease {
    /// Sends the head of a request. On failure, nothing was sent and the connection is not used
    /// again.
    pub(super) async fn send(
        &self,
        request: Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let sent = match self.0.sender.clone().ready().await {
            Ok(mut sender) => sender.send_request(request, false),
            Err(error) => Err(error),
        };
        if sent.is_err() {
            self.0.is_closed.store(true, Ordering::Relaxed);
        }
        sent
    }
}

impl Upstream {
    /// The proxy of a connection string, with the certificate authority of the settings.
    pub(super) fn new(target: &Target, url: &str) -> Result<Self> {
        let ConnectionString { host, port, tls, .. } = connection_string::parse(url).map_err(|finding| {
            anyhow::anyhow!(
                "the connection string of token-issuer is unusable: {}",
                finding.detail
            )
        })?;
        let authority = format!("{host}:{port}");
        let authority = authority
            .parse()
            .with_context(|| format!("{authority} is no address of a proxy"))?;
        let tls = if tls {
            let files = ClientTlsFiles {
                ca: target.ca.as_ref().map(|ca| ca.value.clone()),
                ..ClientTlsFiles::default()
            };
            let tls = ClientTls::load(&files, H2)?;
            let name = tls.server_name(&host)?;
            Some((tls, name))
        } else {
            None
        };
        Ok(Self {
            host,
            port,
            scheme: if tls.is_some() {
                Scheme::HTTPS
            } else {
                Scheme::HTTP
            },
            authority,
            tls,
            connections: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        })
    }

    /// The address of a call at the proxy.
    pub(super) fn uri(&self, path: Option<&PathAndQuery>) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path.cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        // Cannot fail, because all three parts are present.
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// A place for a call, on a new connection if needed; retries until `deadline`.
    pub(super) async fn lease(&self, deadline: Instant) -> Result<Lease, Unreachable> {
        if let Some(lease) = self.pick() {
            return Ok(lease);
        }
        let mut last = "no connection could be made in time".to_owned();
        match tokio::time::timeout_at(deadline, self.make(&mut last)).await {
            Ok(lease) => Ok(lease),
            Err(_) => Err(Unreachable(last)),
        }
    }

    fn pick(&self) -> Option<Lease> {
        let mut connections = self.connections.lock();
        connections.retain(|connection| !connection.is_closed.load(Ordering::Relaxed));
        connections.iter().find_map(Connection::lease)
    }

    /// Makes a connection; tries until it succeeds.
    async fn make(&self, last: &mut String) -> Lease {
        let _one_at_a_time = self.connecting.lock().await;
        let mut backoff = Backoff::new(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        loop {
            // Another call may have made one, or have ended.
            if let Some(lease) = self.pick() {
                return lease;
            }
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await;
            match connected.context("no answer in time").flatten() {
                Ok(connection) => {
                    let lease = connection.lease();
                    self.connections.lock().push(connection);
                    if let Some(lease) = lease {
                        return lease;
                    }
                    "it accepts no calls".clone_into(last);
                }
                Err(error) => *last = format!("{error:#}"),
            }
            backoff.wait().await;
        }
    }

    async fn connect(&self) -> Result<Arc<Connection>> {
        let host = self.host.trim_matches(['[', ']']);
        let tcp = TcpStream::connect((host, self.port)).await?;
        tcp.set_nodelay(true)?;
        let remote = tcp.peer_addr()?;
        let conn = match &self.tls {
            None => Conn::plain(tcp, remote),
            Some((tls, name)) => {
                let stream = tls.connector().connect(name.clone(), tcp).await.context("TLS")?;
                Conn::tls(tokio_rustls::TlsStream::Client(stream), remote)
            }
        };
        if self.tls.is_some() && conn.alpn() != Some(b"h2") {
            bail!("the server does not offer HTTP/2 (ALPN h2); `berth doctor` finds the cause");
        }
        let (sender, mut connection) = client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .enable_push(false)
            .data_frame_budget(CONNECTION_WINDOW_BYTES as usize * SMALL_FRAME_FACTOR)
            .handshake::<_, Bytes>(conn)
            .await
            .context("HTTP/2")?;
        // The server's SETTINGS show that it is there.
        let mut pings = connection.ping_pong().context("HTTP/2")?;
        tokio::select! {
            ended = &mut connection => {
                ended.context("HTTP/2")?;
                bail!("the server closed the connection before its first answer");
            }
            answered = pings.ping(Ping::opaque()) => { answered.context("HTTP/2")?; }
        }
        let this = Arc::new(Connection {
            sender,
            open_calls: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
        });
        tokio::spawn(drive(connection, pings, Arc::clone(&this)));
        Ok(this)
    }

    /// Closes idle connections; those with calls end with their calls.
    pub(super) fn close(&self) {
        self.connections.lock().clear();
    }
}

/// Drives a connection until it ends or does not answer a ping; its calls end with it.
async fn drive(mut connection: client::Connection<Conn, Bytes>, mut pings: PingPong, this: Arc<Connection>) {
    let lost = async {
        loop {
            tokio::time::sleep(PING_INTERVAL).await;
            let answered = tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await;
            if !matches!(answered, Ok(Ok(_))) {
                break;
            }
        }
    };
    let driven = poll_fn(|cx| std::pin::Pin::new(&mut connection).poll(cx));
    tokio::select! {
        biased;
        // Its calls get the error.
        _ = driven => {}
        () = lost => {}
    }
    this.is_closed.store(true, Ordering::Relaxed);
}
