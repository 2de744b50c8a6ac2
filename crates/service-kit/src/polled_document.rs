//! A small external document, from a file or over HTTP, that is polled.
//!
//! Designed for key sets: fetched at start, again at an interval with its ETag,
//! and earlier when a key is missing, but then by one caller at a time and at
//! most every `again_after`, so that unknown tokens cannot cause a flood of
//! requests to the source.

use crate::backoff::Backoff;
use crate::config::{Problems, Validate, duration};
use crate::http_client::HttpClient;
use crate::tls::ClientTlsFiles;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const MAX_DOCUMENT_BYTES: usize = 256 * 1024;
const LONGEST_FETCH: Duration = Duration::from_secs(5);

/// Default poll interval: a withdrawn key must be rejected within a second, and an unchanged document
/// costs a request with its ETag.
const REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// Location of a document and polling parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentConfig {
    /// `https://…`, `http://…`, or the path of a file. Empty only where the
    /// document can be discovered.
    #[serde(default)]
    pub location: String,
    /// Certificates for `https`.
    #[serde(default)]
    pub tls: ClientTlsFiles,
    /// Allows plaintext beyond loopback.
    #[serde(default)]
    pub insecure: bool,
    /// Poll interval; 500 ms unless the user of the document has another default.
    #[serde(with = "duration::option", default)]
    pub refresh: Option<Duration>,
    /// Minimum interval between fetches on demand.
    #[serde(with = "duration", default = "again_after")]
    pub again_after: Duration,
}

fn again_after() -> Duration {
    Duration::from_secs(30)
}

impl DocumentConfig {
    /// This location with default parameters.
    pub fn new(location: impl Into<String>) -> Self {
        Self {
            location: location.into(),
            tls: ClientTlsFiles::default(),
            insecure: false,
            refresh: None,
            again_after: again_after(),
        }
    }

    /// The poll interval.
    pub fn refresh(&self) -> Duration {
        self.refresh.unwrap_or(REFRESH_INTERVAL)
    }

    fn uri(&self) -> Option<Uri> {
        let web = self.location.starts_with("https://") || self.location.starts_with("http://");
        web.then(|| self.location.parse().ok()).flatten()
    }
}

impl Validate for DocumentConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check("tls", &self.tls);
        problems.require(!self.refresh().is_zero(), "refresh", "must not be zero");
        problems.require(
            !self.location.is_empty(),
            "location",
            "is required: a URL or a file",
        );
        let looks_like_url = self.location.contains("://");
        match self.uri() {
            Some(uri) if uri.host().is_none() => problems.add("location", "must name a host"),
            Some(uri) if uri.scheme_str() == Some("http") => problems.require(
                self.insecure || crate::grpc::is_loopback(uri.host().unwrap_or_default()),
                "location",
                "must be https beyond loopback (or say `insecure = true` to use plaintext)",
            ),
            Some(_) => {}
            None => problems.require(
                !looks_like_url,
                "location",
                "must be like https://host/path, or a file",
            ),
        }
    }
}

enum Source {
    File(PathBuf),
    Web(HttpClient),
}

/// Result of a fetch: the text, or that it is unchanged.
#[derive(Debug, Clone, Copy)]
pub enum Fetched<'a> {
    /// A new text, or the first one.
    New(&'a str),
    /// Unchanged since the last fetch.
    Same,
}

impl<'a> Fetched<'a> {
    /// The text, if there is a new one.
    pub fn new_text(self) -> Option<&'a str> {
        match self {
            Self::New(text) => Some(text),
            Self::Same => None,
        }
    }
}

type Accept = Box<dyn Fn(Fetched<'_>) -> anyhow::Result<()> + Send + Sync>;

/// A polled document.
pub struct Document {
    source: Source,
    refresh: Duration,
    again_after: Duration,
    accept: Accept,
    etag: Mutex<Option<String>>,
    last: tokio::sync::Mutex<Option<Instant>>,
}

impl Document {
    /// `accept` processes a fetched text; its error leaves the state unchanged.
    /// An `accept` that no longer has the last text rejects [`Fetched::Same`],
    /// and receives the whole text at the next fetch.
    pub fn new(
        config: &DocumentConfig,
        accept: impl Fn(Fetched<'_>) -> anyhow::Result<()> + Send + Sync + 'static,
    ) -> anyhow::Result<Arc<Self>> {
        let source = match config.uri() {
            None => Source::File(PathBuf::from(&config.location)),
            Some(uri) => Source::Web(HttpClient::new(uri, &config.tls)?),
        };
        Ok(Arc::new(Self {
            source,
            refresh: config.refresh(),
            again_after: config.again_after,
            accept: Box::new(accept),
            etag: Mutex::default(),
            last: tokio::sync::Mutex::default(),
        }))
    }

    /// Fetches now, independent of earlier fetches.
    pub async fn fetch(&self) -> anyhow::Result<()> {
        let mut last = self.last.lock().await;
        *last = Some(Instant::now());
        self.fetch_unlimited().await
    }

    /// Fetches on demand: one at a time, and only if the last fetch is old
    /// enough. Returns whether a fetch took place.
    pub async fn fetch_again(&self) -> anyhow::Result<bool> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        match *last {
            // Another caller fetched during the wait for the lock.
            Some(at) if at >= asked => return Ok(true),
            Some(at) if at.elapsed() < self.again_after => return Ok(false),
            Some(_) | None => {}
        }
        *last = Some(Instant::now());
        self.fetch_unlimited().await.map(|()| true)
    }

    /// Fetches until the first success, then at the poll interval, until
    /// `stop`. `failed` is called after each failure; the first failure of
    /// several in a row is logged here.
    pub async fn keep_fresh(self: Arc<Self>, failed: impl Fn() + Send, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let wait = match self.fetch().await {
                Ok(()) => {
                    backoff.reset();
                    self.refresh
                }
                Err(error) => {
                    failed();
                    if backoff.failures() == 2 {
                        let error = format!("{error:#}");
                        tracing::warn!(error, source = %self.source, "fetching document failed; retrying");
                    }
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn fetch_unlimited(&self) -> anyhow::Result<()> {
        let fetched = tokio::time::timeout(LONGEST_FETCH, self.read()).await;
        match fetched.context("timed out").and_then(|read| read)? {
            None => (self.accept)(Fetched::Same).inspect_err(|_| {
                // `accept` has no previous text, so the next fetch must return
                // the whole text.
                *self.etag.lock() = None;
            }),
            Some((text, etag)) => {
                (self.accept)(Fetched::New(&text))?;
                *self.etag.lock() = etag;
                Ok(())
            }
        }
    }

    async fn read(&self) -> anyhow::Result<Option<(String, Option<String>)>> {
        match &self.source {
            Source::File(path) => {
                let text = tokio::fs::read(path)
                    .await
                    .with_context(|| format!("reading {}", path.display()))?;
                if text.len() > MAX_DOCUMENT_BYTES {
                    bail!("{} is larger than {MAX_DOCUMENT_BYTES} bytes", path.display());
                }
                Ok(Some((String::from_utf8(text)?, None)))
            }
            Source::Web(client) => self.get(client).await,
        }
    }

    async fn get(&self, client: &HttpClient) -> anyhow::Result<Option<(String, Option<String>)>> {
        let mut request = Request::get("/");
        if let Some(etag) = self.etag.lock().clone() {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let response = client.send(request, Bytes::new(), MAX_DOCUMENT_BYTES).await?;
        match response.status() {
            StatusCode::NOT_MODIFIED => Ok(None),
            StatusCode::OK => {
                let etag = response.headers().get(header::ETAG);
                let etag = etag.and_then(|tag| tag.to_str().ok()).map(str::to_owned);
                Ok(Some((String::from_utf8(response.into_body().to_vec())?, etag)))
            }
            status => bail!("HTTP status {status}"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Web(client) => client.uri().fmt(f),
        }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("source", &self.source.to_string())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::get;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counting(seen: &Arc<Mutex<Vec<String>>>) -> impl Fn(Fetched<'_>) -> anyhow::Result<()> + use<> {
        let seen = Arc::clone(seen);
        move |fetched| {
            seen.lock().push(match fetched {
                Fetched::New(text) => text.to_owned(),
                Fetched::Same => "same".to_owned(),
            });
            Ok(())
        }
    }

    async fn serve(hits: Arc<AtomicUsize>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let route = get(async move |headers: HeaderMap| {
            hits.fetch_add(1, Ordering::SeqCst);
            if headers.get("if-none-match").is_some_and(|tag| tag == "\"1\"") {
                return (StatusCode::NOT_MODIFIED, [("etag", "\"1\"")], "");
            }
            (StatusCode::OK, [("etag", "\"1\"")], "text")
        });
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/doc", route)).await });
        format!("http://{address}/doc")
    }

    #[tokio::test]
    async fn the_second_fetch_asks_only_whether_it_changed() {
        let seen = Arc::default();
        let uri = serve(Arc::default()).await;
        let document = Document::new(&DocumentConfig::new(uri), counting(&seen)).unwrap();
        document.fetch().await.unwrap();
        document.fetch().await.unwrap();
        assert_eq!(*seen.lock(), ["text", "same"]);
    }

    #[tokio::test]
    async fn many_needs_make_one_fetch() {
        let hits = Arc::new(AtomicUsize::new(0));
        let uri = serve(Arc::clone(&hits)).await;
        let document = Document::new(&DocumentConfig::new(uri), |_| Ok(())).unwrap();
        let needs = (0..50).map(|_| document.fetch_again());
        futures::future::join_all(needs).await;
        assert_eq!(hits.load(Ordering::SeqCst), 1);
        assert!(!document.fetch_again().await.unwrap());
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_and_changes_nothing() {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let document = Document::new(&DocumentConfig::new("/nowhere/keys.json"), counting(&seen)).unwrap();
        assert!(document.fetch().await.is_err());
        assert!(seen.lock().is_empty());
    }

    #[test]
    fn bad_locations_are_named() {
        let problems = |location: &str| {
            let mut problems = Problems::default();
            DocumentConfig::new(location).validate(&mut problems);
            problems.found().len()
        };
        for good in [
            "https://issuer:8084/jwks.json",
            "http://127.0.0.1:1/x",
            "/etc/berth/jwks.json",
        ] {
            assert_eq!(problems(good), 0, "{good}");
        }
        for bad in ["", "http://issuer:8084/jwks.json", "ftp://x/y", "https://"] {
            assert_eq!(problems(bad), 1, "{bad}");
        }
    }
}
