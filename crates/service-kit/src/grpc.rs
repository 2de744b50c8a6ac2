//! gRPC defaults: channels, servers, bearer credentials, health.

use crate::admin::Readiness;
use crate::config::{Problems, Validate, duration};
use crate::connection::Conn;
use crate::tls::{ClientTls, ClientTlsFiles, H2, must_be_file};
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

/// Maximum message size of Berth's own APIs in bytes.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Maximum header list of a request to Berth's own APIs, counted as in HTTP/2.
/// It has room for a token of 48 KiB, which identity providers issue for
/// members of many groups, for the headers that a service adds when it passes
/// the token on, and for a service-account token.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Limit that HTTP/2 itself enforces with a bare HTTP 431. A header list
/// between both limits is rejected with a status that names the cause.
const HARD_HEAD_BYTES: u32 = 128 * 1024;
/// Maximum header list of a response to Berth's own clients.
const MAX_RESPONSE_HEAD_BYTES: u32 = 64 * 1024;

/// Idle time of a connection before a keepalive ping.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of the ping, after which the connection is replaced: calls on a
/// half-open connection fail within 15 s.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Address of another service and connection parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// `https://host:port`, or `http://` for plaintext.
    pub uri: String,
    /// Certificates for `https`.
    #[serde(default)]
    pub tls: ClientTlsFiles,
    /// File with the service-account token that replaces a client certificate;
    /// `https` only.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Allows plaintext beyond loopback.
    #[serde(default)]
    pub insecure: bool,
    /// Timeout of a connection attempt, handshake included.
    #[serde(with = "duration", default = "connect_timeout")]
    pub connect_timeout: Duration,
    /// Timeout until a response begins.
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
    /// This address with default parameters.
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

/// Whether a secret may be sent to this address: `https`, or loopback.
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

/// A channel that connects at first use, and reconnects after every loss. Must
/// be called inside a tokio runtime.
pub fn channel(config: &ClientConfig) -> anyhow::Result<Channel> {
    let (uri, secure) = config
        .parsed()
        .with_context(|| format!("{:?} is not an address", config.uri))?;
    let tls = if secure {
        Some(ClientTls::load(&config.tls, H2)?)
    } else {
        None
    };
    // tonic rejects `https` without its own TLS: the connector uses an `http`
    // address, and requests have the real one.
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

/// Connection parameters of a gRPC server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Timeout until a handler's response begins; open streams are not ended.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Maximum concurrent streams on one connection. HTTP/2 enforces it, and
    /// clients queue excess streams without an error, so it must exceed every
    /// limit that is reported as an error.
    pub streams_per_connection: u32,
    /// Idle time of a connection before a keepalive ping.
    #[serde(with = "duration")]
    pub keepalive_interval: Duration,
    /// Timeout of the ping.
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

/// A server builder; add services, then call `serve_with_incoming_shutdown`.
/// Each service needs `.max_decoding_message_size(MAX_MESSAGE)`.
pub fn server(config: &ServerConfig) -> Server {
    Server::builder()
        .timeout(config.timeout)
        .max_concurrent_streams(config.streams_per_connection)
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .http2_max_header_list_size(HARD_HEAD_BYTES)
        .http2_max_pending_accept_reset_streams(Some(64))
}

/// Reasons why a call has no usable bearer credential.
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

/// The single bearer credential of a request. For tonic requests pass
/// `request.metadata().as_ref()`.
pub fn bearer(headers: &HeaderMap) -> Result<&str, BearerError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(BearerError::Missing)?;
    if values.next().is_some() {
        return Err(BearerError::Duplicate);
    }
    bearer_of(value)
}

/// The bearer credential in one header value.
pub fn bearer_of(value: &HeaderValue) -> Result<&str, BearerError> {
    let bytes = value.as_bytes();
    let space = bytes.iter().position(|byte| *byte == b' ');
    let (scheme, rest) = bytes.split_at(space.ok_or(BearerError::NotBearer)?);
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    let (_, credential) = rest.split_at(spaces);
    if !scheme.eq_ignore_ascii_case(b"bearer") || credential.is_empty() || !are_usable(credential) {
        return Err(BearerError::NotBearer);
    }
    std::str::from_utf8(credential).map_err(|_| BearerError::NotBearer)
}

/// Whether all bytes may occur in a credential. Every call asks this of half a kilobyte: without an
/// early return the compiler uses vector instructions.
fn are_usable(credential: &[u8]) -> bool {
    credential.iter().fold(true, |usable, byte| {
        usable & byte.is_ascii_graphic() & (*byte != b',')
    })
}

/// The standard health service, which follows `readiness`: the whole server
/// (the empty name) is serving while ready. At `stop` it reports not serving
/// and ends the streams of its watchers, which would delay the drain. Must be
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
            "Bearer \ta",
            "Bearer é",
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
