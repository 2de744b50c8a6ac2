//! The public keys that tokens are checked with: read at start, read again
//! from time to time and when a token names an unknown one, and kept for a
//! day when they cannot be read.

use crate::config::TokenConfig;
use crate::metrics::Metrics;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use service_kit::tls::{ClientTls, Conn};
use session_core::Clock;
use session_token::{Jwks, Keyring};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const MAX_BYTES: usize = 64 * 1024;
const FETCH_TIME: Duration = Duration::from_secs(5);
/// Between attempts while there is no key at all.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The key set of the token issuer.
pub(crate) struct Keys {
    ring: Keyring,
    source: Source,
    config: TokenConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// Rises when the set changed, so that what was verified before is verified again.
    generation: AtomicU64,
    last: Mutex<Last>,
}

enum Source {
    File(PathBuf),
    Url { uri: Uri, tls: Option<Arc<ClientTls>> },
}

#[derive(Default)]
struct Last {
    set: Option<Jwks>,
    etag: Option<header::HeaderValue>,
    attempt: Option<Instant>,
}

/// The key set could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

enum Fetched {
    Set(Jwks, Option<header::HeaderValue>),
    Unchanged,
}

impl Keys {
    pub(crate) fn new(
        config: &TokenConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Arc<Self>> {
        let source = match (&config.jwks_file, &config.jwks_url) {
            (Some(path), _) => Source::File(path.clone()),
            (None, Some(url)) => {
                let uri: Uri = url.parse().context("tokens.jwks_url")?;
                let tls = match uri.scheme_str() {
                    Some("https") => Some(ClientTls::load(&config.jwks_tls, &[b"http/1.1"])?),
                    _ => None,
                };
                Source::Url { uri, tls }
            }
            (None, None) => bail!("neither tokens.jwks_url nor tokens.jwks_file is set"),
        };
        Ok(Arc::new(Self {
            ring: Keyring::empty(),
            source,
            config: config.clone(),
            clock,
            metrics,
            generation: AtomicU64::new(0),
            last: Mutex::default(),
        }))
    }

    pub(crate) fn ring(&self) -> &Keyring {
        &self.ring
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns when the first key is there.
    pub(crate) async fn first(&self) {
        let mut told = false;
        while self.ring.is_empty() {
            let problem = match self.fetch().await {
                Ok(()) if self.ring.is_empty() => "it holds no usable key".to_owned(),
                Ok(()) => break,
                Err(error) => format!("{error:#}"),
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(%problem, "no key to check tokens with yet; waiting for the key set");
            }
            tokio::time::sleep(FIRST_RETRY).await;
        }
    }

    /// Keeps the set current until `stop`.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut failing = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(self.config.refresh))
            .await
            .is_some()
        {
            match self.fetch().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the key set cannot be read; keeping the last good one"
                        );
                    }
                    if self
                        .ring
                        .age(self.clock.now())
                        .is_some_and(|age| age > self.config.keep_keys)
                    {
                        tracing::error!(
                            "the key set could not be read for too long; tokens are no longer accepted"
                        );
                        self.ring.replace(&Jwks::default(), self.clock.now());
                        self.generation.fetch_add(1, Ordering::AcqRel);
                    }
                }
            }
        }
    }

    /// A token named a key that is not in the set: reads the set again unless
    /// that was just done. Everybody who asks meanwhile waits for the one reading.
    pub(crate) async fn look_again(&self) -> Result<(), Unreadable> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        match last.attempt {
            Some(attempt) if attempt >= asked || attempt.elapsed() < self.config.unknown_key_interval => {
                Ok(())
            }
            _ => self.fetch_locked(&mut last).await.map_err(|error| {
                tracing::warn!(error = format!("{error:#}"), "the key set cannot be read");
                Unreadable
            }),
        }
    }

    async fn fetch(&self) -> anyhow::Result<()> {
        self.fetch_locked(&mut *self.last.lock().await).await
    }

    async fn fetch_locked(&self, last: &mut Last) -> anyhow::Result<()> {
        last.attempt = Some(Instant::now());
        let fetched = tokio::time::timeout(FETCH_TIME, self.source.fetch(last.etag.as_ref()))
            .await
            .context("it took too long")
            .flatten()
            .inspect_err(|_| self.metrics.key_fetches_failed.inc())?;
        match fetched {
            Fetched::Unchanged => self.ring.confirm(self.clock.now()),
            Fetched::Set(set, etag) => {
                last.etag = etag;
                if last.set.as_ref() == Some(&set) && !self.ring.is_empty() {
                    self.ring.confirm(self.clock.now());
                } else {
                    self.ring.replace(&set, self.clock.now());
                    self.generation.fetch_add(1, Ordering::AcqRel);
                    tracing::info!(keys = set.keys().len(), "key set read");
                    last.set = Some(set);
                }
            }
        }
        Ok(())
    }
}

impl Source {
    async fn fetch(&self, etag: Option<&header::HeaderValue>) -> anyhow::Result<Fetched> {
        match self {
            Self::File(path) => {
                let text = tokio::fs::read_to_string(path)
                    .await
                    .with_context(|| path.display().to_string())?;
                Ok(Fetched::Set(Jwks::from_json(&text)?, None))
            }
            Self::Url { uri, tls } => get(uri, tls.as_deref(), etag).await,
        }
    }
}

async fn get(
    uri: &Uri,
    tls: Option<&ClientTls>,
    etag: Option<&header::HeaderValue>,
) -> anyhow::Result<Fetched> {
    let host = uri.host().context("no host")?;
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let remote = tcp.peer_addr()?;
    let conn = match tls {
        None => Conn::plain(tcp, remote),
        Some(tls) => {
            let stream = tls.connector().connect(tls.server_name(host)?, tcp).await?;
            Conn::tls(tokio_rustls::TlsStream::Client(stream), remote)
        }
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(conn)).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(
            header::HOST,
            uri.authority().map_or(host, |authority| authority.as_str()),
        )
        .header(header::ACCEPT, "application/json");
    if let Some(etag) = etag {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let answer = match response.status() {
        StatusCode::NOT_MODIFIED => Fetched::Unchanged,
        StatusCode::OK => {
            let etag = response.headers().get(header::ETAG).cloned();
            let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            Fetched::Set(Jwks::from_json(std::str::from_utf8(&body)?)?, etag)
        }
        status => bail!("the answer is {status}"),
    };
    connection.abort();
    Ok(answer)
}
