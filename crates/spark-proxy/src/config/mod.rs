//! Configuration of the proxy: one struct per section; defaults < file < environment
//! (`BERTH__SECTION__KEY`).

mod validate;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use service_kit::admin::AdminConfig;
use service_kit::config::duration;
use service_kit::grpc::ClientConfig;
use service_kit::polled_document::DocumentConfig;
use service_kit::telemetry::TelemetryConfig;
use service_kit::tls::{ClientTlsFiles, TlsFiles};
use session_token::VerifierConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The Spark Connect port.
    pub listen: ListenConfig,
    /// Health and metrics.
    pub admin: AdminConfig,
    /// Session tokens.
    pub tokens: TokenConfig,
    /// Session-manager's internal port.
    pub manager: ClientConfig,
    /// Routes.
    pub routes: RouteConfig,
    /// Connections to compute.
    pub backend: BackendConfig,
    /// Limits of clients, sessions and organizations, and in all.
    pub limits: LimitConfig,
    /// Drain.
    pub drain: DrainConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ListenConfig::default(),
            admin: AdminConfig {
                address: (Ipv4Addr::LOCALHOST, 9085).into(),
            },
            tokens: TokenConfig::default(),
            manager: ClientConfig::new("http://127.0.0.1:8082"),
            routes: RouteConfig::default(),
            backend: BackendConfig::default(),
            limits: LimitConfig::default(),
            drain: DrainConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// The Spark Connect port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// Address and port; 0 selects a free port.
    pub address: SocketAddr,
    /// Worker threads; 0 means one per core.
    pub workers: usize,
    /// Allows plaintext beyond loopback.
    pub insecure: bool,
    /// TLS of the port.
    pub tls: TlsConfig,
    /// Load balancers that begin each connection with a PROXY v2 header; it is accepted from no
    /// other peer.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::UNSPECIFIED, 8085).into(),
            workers: 0,
            insecure: false,
            tls: TlsConfig::default(),
            trusted_proxies: Vec::new(),
        }
    }
}

/// How TLS and plaintext connections are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Plaintext calls get an error that requests TLS.
    #[default]
    Required,
    /// No TLS.
    Off,
    /// TLS and plaintext, distinguished by the first byte (for development).
    Auto,
}

/// TLS of the Spark Connect port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// `required`, `off` or `auto`.
    pub mode: TlsMode,
    /// PEM file with the certificate chain, own certificate first.
    pub cert: Option<PathBuf>,
    /// PEM file with the private key.
    pub key: Option<PathBuf>,
}

impl TlsConfig {
    /// The certificate files, if TLS is configured.
    pub fn files(&self) -> Option<TlsFiles> {
        let (cert, key) = (self.cert.clone()?, self.key.clone()?);
        (self.mode != TlsMode::Off).then_some(TlsFiles {
            cert,
            key,
            client_ca: None,
        })
    }
}

/// Session tokens and the keys that verify them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// The exact issuer of every token.
    pub issuer: String,
    /// The exact audience of every token.
    pub audience: String,
    /// The token-issuer's key set.
    pub keys: DocumentConfig,
    /// Time for which the last key set is used while it cannot be read.
    #[serde(with = "duration")]
    pub keep_keys: Duration,
    /// Maximum lifetime of a token.
    #[serde(with = "duration")]
    pub max_ttl: Duration,
    /// Maximum clock difference.
    #[serde(with = "duration")]
    pub leeway: Duration,
    /// Time after its expiry for which a token may reattach to, and release, running operations.
    #[serde(with = "duration")]
    pub reattach_grace: Duration,
    /// Time after its expiry for which a token may interrupt running operations.
    #[serde(with = "duration")]
    pub interrupt_grace: Duration,
    /// Reject calls without `x-session-id`.
    pub require_session_header: bool,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self::new("berth", "berth-spark-connect")
    }
}

impl TokenConfig {
    /// Creates the section for this issuer and audience, with defaults and without a key set.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            keys: DocumentConfig::new("http://127.0.0.1:8084/.well-known/jwks.json"),
            keep_keys: Duration::from_secs(24 * 3600),
            max_ttl: Duration::from_secs(12 * 3600),
            leeway: Duration::from_secs(30),
            reattach_grace: Duration::from_secs(12 * 3600),
            interrupt_grace: Duration::from_secs(15 * 60),
            require_session_header: false,
        }
    }

    pub(crate) fn verifier(&self) -> VerifierConfig {
        VerifierConfig {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            max_ttl: self.max_ttl,
            leeway: self.leeway,
            reattach_grace: self.reattach_grace,
            interrupt_grace: self.interrupt_grace,
        }
    }
}

/// Routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteConfig {
    /// Maximum time for which a call is held while its session warms.
    #[serde(with = "duration")]
    pub hold_max: Duration,
    /// Time for which cached routes are used while session-manager is unreachable; 0 rejects calls
    /// at once.
    #[serde(with = "duration")]
    pub stale_if_unreachable: Duration,
    /// Routes unused for this long are removed.
    #[serde(with = "duration")]
    pub forget_after: Duration,
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self {
            hold_max: Duration::from_secs(50),
            stale_if_unreachable: Duration::from_secs(600),
            forget_after: Duration::from_secs(1800),
        }
    }
}

/// Connections to compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendConfig {
    /// Time limit for connecting, handshakes included.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Certificates for routes with TLS.
    pub tls: ClientTlsFiles,
    /// Response bytes in flight per call.
    pub stream_window_bytes: u32,
    /// Response bytes in flight per connection; a multiple of `stream_window_bytes`. Their ratio is
    /// the number of calls per connection.
    pub connection_window_bytes: u32,
    /// Connections of one worker to one shared server, or to one generation of dedicated compute.
    pub connections_per_pool: usize,
    /// Concurrent calls of one session at one shared server, per worker; 0 means no limit.
    pub shared_calls_per_session: u32,
    /// The same for one organization.
    pub shared_calls_per_org: u32,
    /// Maximum frame size accepted from a backend.
    pub frame_bytes: u32,
    /// Connections without calls are closed after this time.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// Time without received bytes after which a connection with calls to a shared server is
    /// pinged. Dedicated compute is not pinged: its provider observes it.
    #[serde(with = "duration")]
    pub silence: Duration,
    /// Time after a ping without received bytes after which the connection is dropped. A busy
    /// engine can be silent for minutes.
    #[serde(with = "duration")]
    pub ping_timeout: Duration,
    /// Time without acknowledgements from the peer's kernel after which a connection to compute is
    /// dropped (TCP keepalive and `TCP_USER_TIMEOUT`).
    #[serde(with = "duration")]
    pub half_open_timeout: Duration,
    /// Time limit for an `Interrupt`: Apache Spark 4.1 never responds for an unknown operation.
    #[serde(with = "duration")]
    pub interrupt_timeout: Duration,
    /// Interval of Sail keep-alive calls while a query runs on a shared Sail server. It must be
    /// shorter than Sail's own timer, which does not wait for queries; 0 disables them.
    #[serde(with = "duration")]
    pub sail_keep_alive: Duration,
}

impl BackendConfig {
    /// Maximum number of calls per connection: even if no client reads, they cannot use up its
    /// window.
    pub(crate) fn calls_per_connection(&self) -> usize {
        (self.connection_window_bytes / self.stream_window_bytes.max(1)).max(1) as usize
    }
}

impl Default for BackendConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            tls: ClientTlsFiles::default(),
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 16 << 20,
            connections_per_pool: 64,
            shared_calls_per_session: 256,
            shared_calls_per_org: 512,
            frame_bytes: 256 << 10,
            idle_timeout: Duration::from_secs(300),
            silence: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(300),
            half_open_timeout: Duration::from_secs(180),
            interrupt_timeout: Duration::from_secs(120),
            sail_keep_alive: Duration::from_secs(60),
        }
    }
}

/// Limits of clients, sessions and organizations, and in all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitConfig {
    /// Maximum number of client connections; further connections wait in the kernel.
    pub connections: usize,
    /// Connections of one client IP (IPv6: of one /64); 0 means no limit.
    pub connections_per_address: u32,
    /// Concurrent calls on one connection, which can carry several sessions; must exceed
    /// `calls_per_session`. Calls that end work are not limited.
    pub streams_per_connection: u32,
    /// Maximum header size of a request. HTTP/2 itself rejects headers beyond four times this size,
    /// or beyond 256 KiB if that is larger.
    pub header_list_bytes: u32,
    /// Time limit from the first byte to the end of the TLS and HTTP/2 handshakes.
    #[serde(with = "duration")]
    pub handshake: Duration,
    /// Invalid tokens of one client IP per second, with bursts of twice as many; 0 means no limit.
    pub bad_tokens_per_second_per_address: u32,
    /// Time limit for the first valid token of a connection.
    #[serde(with = "duration")]
    pub first_token: Duration,
    /// Request bytes in flight per call before the first valid token of the connection.
    pub first_stream_window_bytes: u32,
    /// Request bytes in flight per call after it.
    pub stream_window_bytes: u32,
    /// Request bytes in flight per connection.
    pub connection_window_bytes: u32,
    /// Maximum frame size accepted from a client.
    pub frame_bytes: u32,
    /// Response bytes buffered per call beyond the client's window.
    pub send_buffer_bytes: usize,
    /// Time without received bytes after which a client with open calls is pinged.
    #[serde(with = "duration")]
    pub ping_interval: Duration,
    /// The same for a client without calls.
    #[serde(with = "duration")]
    pub idle_ping_interval: Duration,
    /// Time after a ping without received bytes after which the connection is closed.
    #[serde(with = "duration")]
    pub ping_timeout: Duration,
    /// Age, ±10 %, at which a connection stops accepting new calls; 0 disables the limit.
    #[serde(with = "duration")]
    pub connection_age: Duration,
    /// Memory use above which new work is rejected; 0 disables the limit. Default: 85 % of the
    /// container's limit.
    pub shed_above_bytes: Option<u64>,
    /// Time limit from the headers of a call to the first message of its request.
    #[serde(with = "duration")]
    pub first_message: Duration,
    /// Maximum pause within a request that is forwarded to compute.
    #[serde(with = "duration")]
    pub request_idle_timeout: Duration,
    /// Concurrent calls of one session. Calls that end work are not limited.
    pub calls_per_session: u32,
    /// Calls of one organization per second, with bursts of as many; 0 means no limit.
    /// `ReleaseExecute` is not counted.
    pub calls_per_second_per_org: u32,
    /// Held calls of one session.
    pub held_calls_per_session: usize,
    /// The same for one organization.
    pub held_calls_per_org: usize,
    /// Held calls in all.
    pub held_calls: usize,
    /// Request bytes of the held calls of one session.
    pub held_bytes_per_session: usize,
    /// The same for one organization.
    pub held_bytes_per_org: usize,
    /// Request bytes of held calls in all.
    pub held_bytes: usize,
    /// Response bytes of one session that its clients do not read.
    pub unread_bytes_per_session: usize,
    /// The same for one organization.
    pub unread_bytes_per_org: usize,
    /// The same in all.
    pub unread_bytes: usize,
    /// Time for which the stream of a query on Sail is held for a client that disconnected; 0 ends
    /// the query with its client's stream.
    #[serde(with = "duration")]
    pub held_stream_timeout: Duration,
    /// Response bytes of one query on Sail that its client has not acknowledged. Beyond it, sent
    /// bytes are dropped, and held streams are not read.
    pub unacknowledged_bytes_per_stream: usize,
    /// The same for one session.
    pub unacknowledged_bytes_per_session: usize,
    /// The same for one organization.
    pub unacknowledged_bytes_per_org: usize,
    /// The same in all.
    pub unacknowledged_bytes: usize,
}

impl LimitConfig {
    /// Header limit of HTTP/2, enforced with HTTP 431.
    pub(crate) fn hard_header_list_bytes(&self) -> u32 {
        self.header_list_bytes.saturating_mul(4).max(MIN_HARD_HEADER_LIST)
    }

    /// Stream limit of HTTP/2: clients queue calls beyond it without an error. The difference is
    /// for calls that end work, and for errors.
    pub(crate) fn hard_streams_per_connection(&self) -> u32 {
        self.streams_per_connection.saturating_add(SPARE_STREAMS)
    }
}

/// Streams of a connection beyond its call limit.
const SPARE_STREAMS: u32 = 256;
/// Headers up to this size get a gRPC error, whatever the configured limit.
const MIN_HARD_HEADER_LIST: u32 = 256 << 10;

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 1000,
            streams_per_connection: 2048,
            header_list_bytes: 16 << 10,
            handshake: Duration::from_secs(10),
            bad_tokens_per_second_per_address: 50,
            first_token: Duration::from_secs(15),
            first_stream_window_bytes: 256 << 10,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 4 << 20,
            frame_bytes: 256 << 10,
            send_buffer_bytes: 512 << 10,
            first_message: Duration::from_secs(60),
            request_idle_timeout: Duration::from_secs(60),
            calls_per_session: 512,
            calls_per_second_per_org: 5000,
            held_calls_per_session: 64,
            held_calls_per_org: 5000,
            held_calls: 10_000,
            held_bytes_per_session: 64 << 20,
            held_bytes_per_org: 128 << 20,
            held_bytes: 256 << 20,
            unread_bytes_per_session: 128 << 20,
            unread_bytes_per_org: 256 << 20,
            unread_bytes: 1 << 30,
            held_stream_timeout: Duration::from_secs(300),
            unacknowledged_bytes_per_stream: 16 << 20,
            unacknowledged_bytes_per_session: 64 << 20,
            unacknowledged_bytes_per_org: 128 << 20,
            unacknowledged_bytes: 256 << 20,
            ping_interval: Duration::from_secs(15),
            idle_ping_interval: Duration::from_secs(120),
            ping_timeout: Duration::from_secs(20),
            connection_age: Duration::from_secs(3600),
            shed_above_bytes: None,
        }
    }
}

/// Drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Time limit for running calls.
    #[serde(with = "duration")]
    pub timeout: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(150),
        }
    }
}
