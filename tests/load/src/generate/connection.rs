//! Connections, and single calls on them.

use crate::callers::{self, Caller};
use crate::protocol::Target;
use crate::wire::{self, Method, PATIENCE, Shape};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, spawn_local};
use tokio_rustls::TlsConnector;

/// Makes connections to one target.
pub(super) struct Dialer {
    target: Target,
    tls: Option<TlsConnector>,
    name: ServerName<'static>,
}

/// An HTTP/2 connection; closed when dropped.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A unary call, made ready once and sent many times.
pub(super) struct Prepared {
    head: Request<()>,
    body: Bytes,
    spark_session: String,
}

impl Dialer {
    pub(super) fn new(target: Target) -> Result<Self> {
        let tls = target
            .ca
            .as_ref()
            .map(|ca| {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(ca)?)?;
                // What gRPC's C core offers on a machine with AES instructions, in
                // its order: so every peer does the same cryptography.
                let provider = rustls::crypto::CryptoProvider {
                    cipher_suites: vec![
                        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                    ],
                    kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
                    ..aws_lc_rs::default_provider()
                };
                let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
                    .with_protocol_versions(&[&rustls::version::TLS13])?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                config.alpn_protocols = vec![b"h2".to_vec()];
                // Every connection is a whole handshake.
                config.resumption = rustls::client::Resumption::disabled();
                anyhow::Ok(TlsConnector::from(Arc::new(config)))
            })
            .transpose()?;
        Ok(Self {
            target,
            tls,
            name: ServerName::try_from("localhost")?,
        })
    }

    pub(super) async fn connect(&self) -> Result<Connection> {
        let tcp = TcpStream::connect(self.target.address)
            .await
            .context("connecting")?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            Some(tls) => over(tls.connect(self.name.clone(), tcp).await.context("TLS")?).await,
            None => over(tcp).await,
        }
    }

    pub(super) async fn connect_many(&self, count: usize) -> Result<Vec<Connection>> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(self.connect().await?);
        }
        Ok(connections)
    }

    pub(super) fn head(&self, method: Method, caller: &Caller) -> Result<Request<()>> {
        let authority = format!("localhost:{}", self.target.address.port());
        let caller = (!self.target.anonymous).then_some(caller);
        wire::head(method, &authority, self.tls.is_some(), caller)
    }

    pub(super) fn unary(&self, method: Method, caller: &Caller) -> Result<Prepared> {
        Ok(Prepared {
            head: self.head(method, caller)?,
            body: wire::request(method, caller.index, Shape::default()),
            spark_session: callers::spark_session(caller.index),
        })
    }
}

async fn over(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Connection> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(256 << 10)
        .max_send_buffer_size(1 << 20)
        .enable_push(false)
        .handshake(io)
        .await
        .context("HTTP/2")?;
    let driver = spawn_local(async move {
        // Calls on it say what went wrong.
        let _ = connection.await;
    });
    Ok(Connection { sender, driver })
}

impl Prepared {
    /// Makes the call and looks at the whole answer.
    pub(super) async fn call(&self, sender: &SendRequest<Bytes>) -> Result<()> {
        let (response, mut upload) = begin(sender, self.head.clone()).await?;
        upload.send_data(self.body.clone(), true)?;
        let (headers, mut body) = response.await?.into_parts();
        ensure!(headers.status == 200, "HTTP status {}", headers.status);
        // Small answers come in one piece: no copy is made.
        let mut whole = Bytes::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            whole = if whole.is_empty() {
                data
            } else {
                [whole, data].concat().into()
            };
        }
        went_well(&headers.headers, body.trailers().await?)?;
        let echoed = whole.get(7..7 + self.spark_session.len());
        ensure!(
            echoed == Some(self.spark_session.as_bytes()),
            "the answer is of another session"
        );
        Ok(())
    }

    /// The call, given up after a while.
    pub(super) async fn call_in_time(&self, sender: &SendRequest<Bytes>) -> Result<()> {
        tokio::time::timeout(PATIENCE, self.call(sender))
            .await
            .context("no answer")?
    }
}

/// Sends a request's headers.
pub(super) async fn begin(
    sender: &SendRequest<Bytes>,
    head: Request<()>,
) -> Result<(
    impl Future<Output = Result<Response<RecvStream>, h2::Error>>,
    SendStream<Bytes>,
)> {
    let mut sender = sender.clone().ready().await?;
    Ok(sender.send_request(head, false)?)
}

/// Is the gRPC status OK?
pub(super) fn went_well(headers: &HeaderMap, trailers: Option<HeaderMap>) -> Result<()> {
    let trailers = trailers.as_ref().unwrap_or(headers);
    let text = |name: &str| {
        let value = trailers.get(name).or_else(|| headers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or("none")
    };
    match text("grpc-status") {
        "0" => Ok(()),
        status => bail!("gRPC status {status}: {}", text("grpc-message")),
    }
}
