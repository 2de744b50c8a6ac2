//! A connection: plaintext or TLS, of a server or a client, with its peer, its idle timeout and its
//! close.

mod lingering_io;
mod usage;

pub use lingering_io::LingeringIo;
pub use usage::{ConnectionUse, IdleLimits, OpenCall};

use crate::limiter::Permit;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;
use usage::IdleClock;

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
    /// Permits of the port's limits; released with the connection.
    _permits: Option<ConnectionPermits>,
    idle: Option<IdleClock>,
    /// Whether the idle timeout has ended the connection: reads and waits end
    /// at once.
    over: bool,
}

/// One of all connections of a port, and one of those of its address.
pub(crate) type ConnectionPermits = (OwnedSemaphorePermit, Option<Permit<IpAddr>>);

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

    /// Adds the limits of the accepting port. A new connection has none.
    pub(crate) fn with_limits(mut self, permits: ConnectionPermits, idle: Option<IdleLimits>) -> Self {
        self._permits = Some(permits);
        self.idle = idle.map(IdleClock::new);
        self
    }

    /// Whether the idle timeout has ended the connection. Wakes `cx` when it does.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { idle, peer, over, .. } = self;
        if !*over && idle.as_mut().is_some_and(|idle| idle.is_over(&peer.usage, cx)) {
            tracing::debug!(remote = %peer.remote, "idle connection closed");
            *over = true;
        }
        *over
    }

    /// Converts a pending write to a timeout error after the end of the connection. A peer that
    /// reads nothing blocks writes, and HTTP/1.1 reads nothing more then, so writes ask too.
    fn unless_over<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_pending() && self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        done
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

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
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
        self.unless_over(cx, done)
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
        self.unless_over(cx, done)
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
        self.unless_over(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        };
        self.unless_over(cx, done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_write_that_the_peer_never_reads_ends_with_the_idle_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _reads_nothing = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, remote) = listener.accept().await.unwrap();
        let mut conn = Conn::plain(tcp, remote);
        let limit = Duration::from_millis(100);
        conn.idle = Some(IdleClock::new(IdleLimits {
            unknown_caller: limit,
            idle: limit,
        }));
        let writing = async {
            loop {
                if let Err(error) = conn.write_all(&[0; 64 * 1024]).await {
                    break error;
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(10), writing)
            .await
            .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
