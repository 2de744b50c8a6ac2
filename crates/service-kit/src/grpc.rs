//! gRPC defaults: channels, servers, bearer credentials, health.

use crate::admin::Readiness;
use crate::config::{Problems, Validate, duration};
use crate::tls::{ClientTls, ClientTlsFiles, Conn, H2, must_be_file};
use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Uri, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};

/// The largest message our own APIs take.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The largest header list of a request that our own APIs take, counted as
/// HTTP/2 counts it. It holds a token of 48 KiB, as identity providers make them
/// for members of many groups, what one service adds when it passes that token
/// on, and a service's own token.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// What HTTP/2 itself enforces, by a bare HTTP 431: what is between the two is
/// answered with a status that says what is too large.
const HARD_HEAD_BYTES: u32 = 128 * 1024;
/// The largest header list of a response that our own clients take.
const MAX_RESPONSE_HEAD_BYTES: u32 = 64 * 1024;

/// A connection on which nothing came for so long is pinged,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// and is replaced if no answer comes within this: one that is half open fails
/// calls for 15 s at most.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where another service is and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// `https://host:port`, or `http://` for plaintext.
    pub uri: String,
    /// Certificates for `https`.
    #[serde(default)]
    pub tls: ClientTlsFiles,
    /// A file with our own token, to show in place of a client certificate;
    /// `https` only.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Says in so many words that plaintext beyond loopback is meant.
    #[serde(default)]
    pub insecure: bool,
    /// How long a connection may take, handshake included.
    #[serde(with = "duration", default = "connect_timeout")]
    pub connect_timeout: Duration,
    /// How long an answer may take to begin.
    #[serde(with = "duration", default = "timeout")]
    pub timeout: Duration,
}

fn connect_timeout() -> Duration {
    Duration::from_secs(2)
}

fn timeout() -> Duration {
    Duration::from_secs(10)
}

impl ClientConfig {
    /// This address with the defaults.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            tls: ClientTlsFiles::default(),
            token_file: None,
            insecure: false,
            connect_timeout: connect_timeout(),
            timeout: timeout(),
        }
    }

    fn parsed(&self) -> Option<(Uri, bool)> {
        let uri: Uri = self.uri.parse().ok()?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return None,
        };
        uri.host()?;
        Some((uri, secure))
    }
}

impl Validate for ClientConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check("tls", &self.tls);
        if let Some(path) = &self.token_file {
            must_be_file(problems, "token_file", path);
            problems.require(
                matches!(self.parsed(), Some((_, true))),
                "token_file",
                "needs an https address: our token is shown over TLS only",
            );
        }
        match self.parsed() {
            None => problems.add("uri", "must be like https://host:port"),
            Some((_, true)) => problems.require(!self.insecure, "insecure", "contradicts `https`; remove it"),
            Some((uri, false)) => problems.require(
                self.insecure || is_loopback(uri.host().unwrap_or_default()),
                "uri",
                "must be https beyond loopback (or say `insecure = true` to use plaintext)",
            ),
        }
        problems.require(
            !self.connect_timeout.is_zero(),
            "connect_timeout",
            "must not be zero",
        );
        problems.require(!self.timeout.is_zero(), "timeout", "must not be zero");
    }
}

/// Is it safe to send a secret to this address: `https`, or this very machine?
pub fn is_secure(address: &str) -> bool {
    address.parse::<Uri>().is_ok_and(|uri| match uri.scheme_str() {
        Some("https") => true,
        Some("http") => is_loopback(uri.host().unwrap_or_default()),
        _ => false,
    })
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_matches(['[', ']']);
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A channel that connects when first used, and again after every loss.
/// Must be called inside a tokio runtime.
pub fn channel(config: &ClientConfig) -> anyhow::Result<Channel> {
    let (uri, secure) = config
        .parsed()
        .with_context(|| format!("{:?} is not an address", config.uri))?;
    let tls = if secure {
        Some(ClientTls::load(&config.tls, H2)?)
    } else {
        None
    };
    // tonic refuses `https` without its own TLS: the connection is made by us
    // under an `http` address, and requests carry the true one.
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let endpoint = Endpoint::from(Uri::from_parts(parts)?)
        .origin(uri)
        .connect_timeout(config.connect_timeout)
        .timeout(config.timeout)
        .tcp_nodelay(true)
        .http2_max_header_list_size(MAX_RESPONSE_HEAD_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint
        .connect_with_connector_lazy(tower::service_fn(move |uri: Uri| connect(uri, port, tls.clone()))))
}

pub(crate) async fn connect(uri: Uri, port: u16, tls: Option<Arc<ClientTls>>) -> io::Result<TokioIo<Conn>> {
    let host = uri.host().unwrap_or_default();
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    tcp.set_nodelay(true)?;
    let remote = tcp.peer_addr()?;
    let Some(tls) = tls else {
        return Ok(TokioIo::new(Conn::plain(tcp, remote)));
    };
    let name = tls.server_name(host).map_err(io::Error::other)?;
    let connector = tokio::task::spawn_blocking(move || tls.connector())
        .await
        .map_err(io::Error::other)?;
    let stream = connector.connect(name, tcp).await?;
    Ok(TokioIo::new(Conn::tls(
        tokio_rustls::TlsStream::Client(stream),
        remote,
    )))
}

/// How a gRPC server treats its connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// How long a handler may take to begin its answer; open streams are not ended.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Streams at once on one connection. HTTP/2 enforces it, and clients queue
    /// in silence what exceeds it: it must be above every limit that is
    /// answered with an error.
    pub streams_per_connection: u32,
    /// How often a silent client is asked whether it is there.
    #[serde(with = "duration")]
    pub keepalive_interval: Duration,
    /// How long it may take to say so.
    #[serde(with = "duration")]
    pub keepalive_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            streams_per_connection: 512,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

impl Validate for ServerConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(!self.timeout.is_zero(), "timeout", "must not be zero");
        problems.require(
            self.streams_per_connection > 0,
            "streams_per_connection",
            "must not be 0",
        );
        problems.require(
            !self.keepalive_interval.is_zero(),
            "keepalive_interval",
            "must not be zero",
        );
        problems.require(
            !self.keepalive_timeout.is_zero(),
            "keepalive_timeout",
            "must not be zero",
        );
    }
}

/// A server to add services to, then `serve_with_incoming_shutdown`. Give each
/// service `.max_decoding_message_size(MAX_MESSAGE)`.
pub fn server(config: &ServerConfig) -> Server {
    Server::builder()
        .timeout(config.timeout)
        .max_concurrent_streams(config.streams_per_connection)
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .http2_max_header_list_size(HARD_HEAD_BYTES)
        .http2_max_pending_accept_reset_streams(Some(64))
}

/// Why a call carries no usable bearer credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// No `authorization`.
    #[error("no credential: send `authorization: Bearer …`")]
    Missing,
    /// More than one `authorization`.
    #[error("more than one `authorization`")]
    Duplicate,
    /// Another scheme, or bytes that cannot be a credential.
    #[error("`authorization` is not `Bearer …`")]
    NotBearer,
}

/// The one bearer credential of a request. For tonic requests pass
/// `request.metadata().as_ref()`.
pub fn bearer(headers: &HeaderMap) -> Result<&str, BearerError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(BearerError::Missing)?;
    if values.next().is_some() {
        return Err(BearerError::Duplicate);
    }
    bearer_of(value)
}

/// The bearer credential of one header's value.
pub fn bearer_of(value: &HeaderValue) -> Result<&str, BearerError> {
    let text = value.to_str().map_err(|_| BearerError::NotBearer)?;
    let (scheme, credential) = text.split_once(' ').ok_or(BearerError::NotBearer)?;
    let credential = credential.trim_start_matches(' ');
    let usable = !credential.is_empty() && credential.bytes().all(|b| b.is_ascii_graphic() && b != b',');
    if scheme.eq_ignore_ascii_case("bearer") && usable {
        Ok(credential)
    } else {
        Err(BearerError::NotBearer)
    }
}

/// The standard health service, which follows `readiness`: the whole server
/// (the empty name) is serving while ready. When told to stop it says so and
/// ends the streams of its watchers, which would hold up the drain. Must be
/// called inside a tokio runtime.
pub fn health(readiness: &Readiness, stop: CancellationToken) -> HealthServer<impl Health> {
    let (mut reporter, service) = tonic_health::server::health_reporter();
    let readiness = readiness.clone();
    tokio::spawn(async move {
        let mut ready = readiness.is_ready();
        let mut running = true;
        while running {
            let status = if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            match stop.run_until_cancelled(readiness.changed_from(ready)).await {
                Some(now) => ready = now,
                None => running = false,
            }
        }
        reporter.set_service_status("", ServingStatus::NotServing).await;
        reporter.clear_service_status("").await;
    });
    service
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|v| (header::AUTHORIZATION, v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn exactly_one_bearer_credential() {
        for good in ["Bearer abc.def", "bearer abc.def", "BEARER  abc.def"] {
            assert_eq!(bearer(&headers(&[good])), Ok("abc.def"), "{good}");
        }
        assert_eq!(bearer(&headers(&[])), Err(BearerError::Missing));
        assert_eq!(
            bearer(&headers(&["Bearer a", "Bearer a"])),
            Err(BearerError::Duplicate)
        );
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Basic abc",
            "Bearerabc",
            "Bearer a b",
            "Bearer a,Bearer b",
            "Bearer\ta",
        ] {
            assert_eq!(bearer(&headers(&[bad])), Err(BearerError::NotBearer), "{bad:?}");
        }
    }

    #[test]
    fn plaintext_beyond_loopback_needs_the_word_insecure() {
        let problems = |uri: &str, insecure| {
            let mut problems = Problems::default();
            ClientConfig {
                insecure,
                ..ClientConfig::new(uri)
            }
            .validate(&mut problems);
            problems.found().len()
        };
        for good in [
            "http://127.0.0.1:1",
            "http://[::1]:1",
            "http://localhost:1",
            "https://manager:8082",
        ] {
            assert_eq!(problems(good, false), 0, "{good}");
        }
        for bad in [
            "http://manager:8082",
            "manager:8082",
            "ftp://x",
            "",
            "http://127.0.0.1.evil.example",
        ] {
            assert_eq!(problems(bad, false), 1, "{bad}");
        }
        assert_eq!(problems("http://manager:8082", true), 0);
    }
}
