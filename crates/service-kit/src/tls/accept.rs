//! Accepts connections of a port: limits and TLS handshakes.

use super::server::ServerTls;
use super::usage::{ConnectionUse, IdleClock, IdleLimits};
use crate::limits::{AtOnce, Permit, address_key};
use crate::listen::Listener;
use futures::Stream;
use ipnet::IpNet;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Limits of an [`Incoming`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptLimits {
    /// Timeout of a TLS handshake.
    pub handshake_timeout: Duration,
    /// Maximum number of concurrent handshakes.
    pub handshakes: usize,
    /// Maximum number of open connections; more wait in the kernel.
    pub connections: usize,
    /// Maximum number of open connections per address (IPv6: per /64); more are
    /// closed at once. Zero means no limit.
    pub connections_per_address: u32,
    /// Networks that are exempt from the limit per address.
    pub exempt: Vec<IpNet>,
    /// Idle timeouts of connections; `None` means no timeout. Only calls that
    /// pass a [`crate::admission::Gate`] count as usage.
    pub idle: Option<IdleLimits>,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            handshakes: 512,
            connections: 10_000,
            connections_per_address: 0,
            exempt: Vec::new(),
            idle: None,
        }
    }
}

/// The peer of a connection; gRPC handlers find it in the request's extensions.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Address of the peer.
    pub remote: SocketAddr,
    /// Whether the connection uses TLS.
    pub tls: bool,
    /// The verified client certificate chain; empty without a client
    /// certificate.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Usage of the connection.
    pub usage: ConnectionUse,
}

impl PeerInfo {
    /// Whether `name` is in the client's certificate: a DNS name or an IP
    /// address by the rules of TLS, or a URI (`spiffe://…`) by exact
    /// comparison. A wildcard in the certificate matches no name.
    pub fn is_named(&self, name: &str) -> bool {
        let Some(certificate) = self.certificates.first() else {
            return false;
        };
        let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else {
            return false;
        };
        if name.contains("://") {
            return parsed.valid_uri_names().any(|uri| uri == name);
        }
        match ServerName::try_from(name) {
            Ok(ServerName::DnsName(dns)) => parsed
                .valid_dns_names()
                .any(|one| one.eq_ignore_ascii_case(dns.as_ref())),
            Ok(address @ ServerName::IpAddress(_)) => {
                parsed.verify_is_valid_for_subject_name(&address).is_ok()
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// The names in the client's certificate, for logs: at most eight.
    pub fn names(&self) -> Vec<String> {
        let parsed = self
            .certificates
            .first()
            .and_then(|certificate| webpki::EndEntityCert::try_from(certificate).ok());
        let names = parsed.iter().flat_map(|parsed| {
            parsed
                .valid_dns_names()
                .chain(parsed.valid_uri_names())
                .map(str::to_owned)
        });
        names.take(8).collect()
    }
}

/// A connection, plaintext or TLS, of a server or a client.
#[derive(Debug)]
pub struct Conn {
    io: Io,
    peer: PeerInfo,
    /// Permits of [`AcceptLimits`].
    _permits: Option<ConnectionPermits>,
    idle: Option<IdleClock>,
    /// Whether the idle timeout has ended the connection: reads and waits end
    /// at once.
    over: bool,
}

type ConnectionPermits = (OwnedSemaphorePermit, Option<Permit<IpAddr>>);

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Conn {
    /// A plaintext connection.
    pub fn plain(tcp: TcpStream, remote: SocketAddr) -> Self {
        let peer = PeerInfo {
            remote,
            tls: false,
            certificates: Arc::new([]),
            usage: ConnectionUse::default(),
        };
        Self::new(Io::Plain(tcp), peer)
    }

    /// A connection after its handshake.
    pub fn tls(stream: impl Into<TlsStream<TcpStream>>, remote: SocketAddr) -> Self {
        let stream = stream.into();
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|c| c.clone().into_owned()).collect();
        let peer = PeerInfo {
            remote,
            tls: true,
            certificates,
            usage: ConnectionUse::default(),
        };
        Self::new(Io::Tls(Box::new(stream)), peer)
    }

    fn new(io: Io, peer: PeerInfo) -> Self {
        Self {
            io,
            peer,
            _permits: None,
            idle: None,
            over: false,
        }
    }

    /// Converts a pending operation to a timeout error after the end of the
    /// connection.
    fn at_once_if_over<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match done {
            Poll::Pending if self.over => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            done => done,
        }
    }

    /// The peer of the connection.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// The negotiated ALPN protocol, if any.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.io {
            Io::Plain(_) => None,
            Io::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }
}

impl Connected for Conn {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

/// Errors during accept, mostly caused by the peer.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The handshake exceeded its timeout.
    #[error("the TLS handshake took too long")]
    Timeout,
    /// The handshake failed: no TLS, no trust, or no valid client certificate.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[from] io::Error),
}

/// Converts an accepted socket to a connection: with a handshake if `tls` is
/// given.
pub async fn accept(
    tcp: TcpStream,
    remote: SocketAddr,
    tls: Option<&ServerTls>,
    handshake_timeout: Duration,
) -> Result<Conn, AcceptError> {
    let _ = tcp.set_nodelay(true);
    let Some(tls) = tls else {
        return Ok(Conn::plain(tcp, remote));
    };
    match tokio::time::timeout(handshake_timeout, tls.acceptor().accept(tcp)).await {
        Ok(Ok(stream)) => Ok(Conn::tls(TlsStream::Server(stream), remote)),
        Ok(Err(error)) => Err(AcceptError::Handshake(error)),
        Err(_) => Err(AcceptError::Timeout),
    }
}

/// The connections of a port, for tonic's `serve_with_incoming`. Also reloads
/// the port's certificate files. Ends at `stop`.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<io::Result<Conn>>,
}

impl Incoming {
    /// Starts to accept. Must be called inside a tokio runtime.
    pub fn new(listener: Listener, limits: AcceptLimits, stop: CancellationToken) -> Self {
        let (sender, ready) = mpsc::channel(16);
        if let Some(tls) = &listener.tls {
            tokio::spawn(Arc::clone(tls).keep_fresh(stop.clone()));
        }
        tokio::spawn(async move {
            tokio::select! {
                () = accept_all(listener, limits, sender.clone()) => {}
                () = stop.cancelled() => {}
                () = sender.closed() => {}
            }
        });
        Self { ready }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Conn>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx)
    }
}

/// Handshakes run concurrently, so that a slow one does not delay others.
async fn accept_all(listener: Listener, limits: AcceptLimits, ready: mpsc::Sender<io::Result<Conn>>) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let addresses = AtOnce::new(limits.connections_per_address);
    loop {
        let Ok(connection) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let (tcp, remote) = match listener.tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer has already
                // disconnected.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let ip = remote.ip().to_canonical();
        let counted = !limits.exempt.iter().any(|net| net.contains(&ip));
        let of_address = match counted.then(|| addresses.enter(address_key(ip))) {
            // The socket is closed by its drop.
            Some(None) => {
                tracing::debug!(%remote, "connection rejected: limit per address");
                continue;
            }
            Some(permit) => permit,
            None => None,
        };
        let (tls, ready) = (listener.tls.clone(), ready.clone());
        let (handshake_timeout, idle) = (limits.handshake_timeout, limits.idle);
        tokio::spawn(async move {
            let accepted = tokio::select! {
                accepted = accept(tcp, remote, tls.as_deref(), handshake_timeout) => accepted,
                () = ready.closed() => return,
            };
            drop(handshake);
            match accepted {
                Ok(mut conn) => {
                    conn._permits = Some((connection, of_address));
                    conn.idle = idle.map(IdleClock::new);
                    let _ = ready.send(Ok(conn)).await;
                }
                Err(error) => tracing::debug!(%remote, %error, "connection handshake failed"),
            }
        });
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { idle, peer, .. } = &mut *self;
        let over = idle.as_mut().is_some_and(|idle| idle.is_over(&peer.usage, cx));
        if over {
            if !self.over {
                tracing::debug!(remote = %self.peer.remote, "idle connection closed");
            }
            self.over = true;
            // The reader receives an end of stream.
            return Poll::Ready(Ok(()));
        }
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        };
        self.at_once_if_over(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        };
        self.at_once_if_over(done)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        };
        self.at_once_if_over(done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        };
        self.at_once_if_over(done)
    }
}
