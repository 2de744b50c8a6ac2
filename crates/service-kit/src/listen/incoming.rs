//! Accepts connections of a port: limits and TLS handshakes.

use super::Listener;
use crate::connection::{Conn, IdleLimits, LingeringIo};
use crate::limiter::{ConcurrencyLimiter, address_key};
use crate::tls::ServerTls;
use futures::Stream;
use ipnet::IpNet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

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
    /// pass a [`crate::admission::AdmissionLayer`] count as usage.
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

/// Errors during accept, mostly caused by the peer.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    /// The handshake exceeded its timeout.
    #[error("the TLS handshake took too long")]
    Timeout,
    /// The handshake failed: no TLS, no trust, or no valid client certificate.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[from] io::Error),
}

/// Converts an accepted socket to a connection: with a handshake if `tls` is
/// given.
async fn accept(
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

/// A connection of a client: its close waits for the client, so that the end of
/// the last responses is not lost.
pub type Accepted = LingeringIo<Conn>;

/// The connections of a port, for tonic's `serve_with_incoming`. Also reloads
/// the port's certificate files. Ends at `stop`.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<io::Result<Accepted>>,
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
    type Item = io::Result<Accepted>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx)
    }
}

/// Handshakes run concurrently, so that a slow one does not delay others.
async fn accept_all(listener: Listener, limits: AcceptLimits, ready: mpsc::Sender<io::Result<Accepted>>) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let addresses = ConcurrencyLimiter::new(limits.connections_per_address);
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
                Ok(conn) => {
                    let conn = conn.with_limits((connection, of_address), idle);
                    let _ = ready.send(Ok(LingeringIo::new(conn))).await;
                }
                Err(error) => tracing::debug!(%remote, %error, "connection handshake failed"),
            }
        });
    }
}
