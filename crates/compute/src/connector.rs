//! Connections to compute; every address is checked immediately before the connection.

use crate::address::{AddressError, AllowList, split_host_port};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use session_core::Route;
use session_core::route::Secret;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connection parameters of a server.
#[derive(Clone)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// TLS configuration and server name; `None` for plain text.
    pub tls: Option<(ServerName<'static>, Arc<rustls::ClientConfig>)>,
    /// Token of the server.
    pub credential: Option<Secret>,
    /// Allowed addresses; `None` for compute whose address Berth selected.
    pub allow: Option<Arc<AllowList>>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Parameters of dedicated compute, whose address Berth selected.
    pub fn dedicated(route: &Route) -> Self {
        Self {
            address: route.endpoint.clone(),
            tls: None,
            credential: route.credential.clone(),
            allow: None,
        }
    }

    /// Parameters of a child process on this machine.
    pub(crate) fn child(port: u16, credential: Option<Secret>) -> Self {
        Self {
            address: format!("127.0.0.1:{port}"),
            tls: None,
            credential,
            allow: None,
        }
    }

    /// Checks whether a connection is allowed now.
    ///
    /// # Errors
    /// [`AddressError`] with the reason.
    pub async fn check(&self) -> Result<(), AddressError> {
        self.resolve().await.map(drop)
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, AddressError> {
        match &self.allow {
            Some(allow) => allow.resolve(&self.address).await,
            None => self
                .address
                .parse()
                .map(|addr| vec![addr])
                .map_err(|_| AddressError::Malformed(self.address.clone())),
        }
    }

    async fn connect(&self) -> io::Result<Stream> {
        split_host_port(&self.address).map_err(io::Error::other)?;
        let mut last = io::Error::other("no address");
        for addr in self.resolve().await.map_err(io::Error::other)? {
            match TcpStream::connect(addr).await {
                Ok(tcp) => {
                    tcp.set_nodelay(true)?;
                    return match &self.tls {
                        None => Ok(Stream::Plain(tcp)),
                        Some((name, config)) => {
                            let tls = TlsConnector::from(config.clone())
                                .connect(name.clone(), tcp)
                                .await?;
                            Ok(Stream::Tls(Box::new(tls)))
                        }
                    };
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

/// TLS configuration with the trust store of this machine.
///
/// # Errors
/// If the trust store is unusable.
pub fn system_tls() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Connects to a [`Target`] for tonic.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    target: Target,
}

impl Connector {
    pub(crate) fn new(target: Target) -> Self {
        Self { target }
    }
}

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let target = self.target.clone();
        Box::pin(async move { target.connect().await.map(TokioIo::new) })
    }
}

/// A connection, plain or TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
