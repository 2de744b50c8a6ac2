//! Making one connection: TCP, TLS if the route asks for it, HTTP/2.

use crate::config::BackendConfig;
use crate::messages::Outgoing;
use crate::metrics::Metrics;
use crate::routes::Backend;
use anyhow::Context as _;
use h2::client::{self, SendRequest};
use service_kit::tls::{ClientTls, Conn};
use std::sync::Arc;
use tokio::net::TcpStream;

/// No connection came to be, or it takes no more calls: nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreachable;

/// Makes connections.
pub(crate) struct Connector {
    config: BackendConfig,
    tls: Arc<ClientTls>,
    metrics: Arc<Metrics>,
}

/// The part of a connection that must be run for it to work.
pub(super) struct Connection {
    inner: client::Connection<Conn, Outgoing>,
    metrics: Arc<Metrics>,
}

impl Connector {
    pub(super) fn new(config: &BackendConfig, tls: Arc<ClientTls>, metrics: Arc<Metrics>) -> Self {
        Self {
            config: config.clone(),
            tls,
            metrics,
        }
    }

    pub(super) async fn connect(
        &self,
        backend: &Backend,
    ) -> Result<(SendRequest<Outgoing>, Connection), Unreachable> {
        let connected = tokio::time::timeout(self.config.connect_timeout, self.open(backend))
            .await
            .context("it took too long")
            .flatten();
        match connected {
            Ok((sender, inner)) => {
                self.metrics.backend_connected.inc();
                self.metrics.backend_connections.add(1);
                Ok((
                    sender,
                    Connection {
                        inner,
                        metrics: Arc::clone(&self.metrics),
                    },
                ))
            }
            Err(error) => {
                tracing::info!(pool = ?backend.pool, error = format!("{error:#}"), "cannot connect to compute");
                Err(Unreachable)
            }
        }
    }

    async fn open(
        &self,
        backend: &Backend,
    ) -> anyhow::Result<(SendRequest<Outgoing>, client::Connection<Conn, Outgoing>)> {
        let host = backend.authority.host().trim_matches(['[', ']']);
        let port = backend.authority.port_u16().context("no port")?;
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        let remote = tcp.peer_addr()?;
        let conn = match &backend.tls {
            None => Conn::plain(tcp, remote),
            Some(name) => {
                let stream = self.tls.connector().connect(name.clone(), tcp).await?;
                Conn::tls(tokio_rustls::TlsStream::Client(stream), remote)
            }
        };
        let config = &self.config;
        Ok(client::Builder::new()
            .initial_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .max_frame_size(config.frame_bytes)
            .enable_push(false)
            .handshake::<_, Outgoing>(conn)
            .await?)
    }
}

impl Connection {
    /// Until it ends.
    pub(super) async fn run(self) {
        let Self { inner, metrics } = self;
        if let Err(error) = inner.await {
            tracing::debug!(%error, "a backend connection ended");
        }
        metrics.backend_connections.add(-1);
    }
}
