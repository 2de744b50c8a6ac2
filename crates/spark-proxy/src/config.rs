//! The configuration of the proxy: one struct per section, defaults < file <
//! environment (`BERTH__SECTION__KEY`).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use service_kit::admin::AdminConfig;
use service_kit::config::{Problems, Validate, duration};
use service_kit::grpc::ClientConfig;
use service_kit::polled_document::DocumentConfig;
use service_kit::telemetry::TelemetryConfig;
use service_kit::tls::{ClientTlsFiles, TlsFiles};
use session_token::VerifierConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The Spark Connect port.
    pub listen: ListenConfig,
    /// Health and metrics.
    pub admin: AdminConfig,
    /// Which tokens are good.
    pub tokens: TokenConfig,
    /// Session-manager's internal port.
    pub manager: ClientConfig,
    /// Routes: how long calls are held and answers kept.
    pub routes: RouteConfig,
    /// Connections to compute.
    pub backend: BackendConfig,
    /// What one client, and all of them, may take.
    pub limits: LimitConfig,
    /// How the proxy ends.
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
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Worker threads; 0 takes one per core.
    pub workers: usize,
    /// Says in so many words that plaintext beyond loopback is meant.
    pub insecure: bool,
    /// TLS of the port.
    pub tls: TlsConfig,
    /// Load balancers that begin each connection with a PROXY v2 header; from
    /// nobody else one is taken.
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
    /// Plaintext calls are told to use TLS.
    #[default]
    Required,
    /// No TLS.
    Off,
    /// Both, told apart by the first byte (development).
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
    /// The files, if TLS is spoken at all.
    pub fn files(&self) -> Option<TlsFiles> {
        let (cert, key) = (self.cert.clone()?, self.key.clone()?);
        (self.mode != TlsMode::Off).then_some(TlsFiles {
            cert,
            key,
            client_ca: None,
        })
    }
}

/// Which tokens are good, and where their keys come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// The exact issuer of every token.
    pub issuer: String,
    /// The exact audience of every token.
    pub audience: String,
    /// The token-issuer's key set.
    pub keys: DocumentConfig,
    /// How long the last good set is used when it cannot be read again.
    #[serde(with = "duration")]
    pub keep_keys: Duration,
    /// The longest life of a token.
    #[serde(with = "duration")]
    pub max_ttl: Duration,
    /// How far clocks may differ.
    #[serde(with = "duration")]
    pub leeway: Duration,
    /// How long after its expiry a token may reattach to, and release, running operations.
    #[serde(with = "duration")]
    pub reattach_grace: Duration,
    /// How long after its expiry a token may interrupt running operations.
    #[serde(with = "duration")]
    pub interrupt_grace: Duration,
    /// Refuse calls without `x-session-id`.
    pub require_session_header: bool,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self::new("berth", "berth-spark-connect")
    }
}

impl TokenConfig {
    /// Tokens of this issuer and audience, with the defaults and no key set yet.
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

/// Routes: how long calls are held and answers kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteConfig {
    /// How long a call is held while its session warms.
    #[serde(with = "duration")]
    pub hold_max: Duration,
    /// How long known routes are used while session-manager cannot be asked; zero fails closed.
    #[serde(with = "duration")]
    pub stale_if_unreachable: Duration,
    /// What was not used for this long is forgotten.
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
    /// How long a connection may take, handshake included.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Certificates for routes that ask for TLS.
    pub tls: ClientTlsFiles,
    /// Response bytes in flight per call.
    pub stream_window_bytes: u32,
    /// Response bytes in flight per connection; a multiple of those per call.
    /// As many calls share a connection as it holds whole windows of calls.
    pub connection_window_bytes: u32,
    /// Connections of one worker to one server, or to one generation of a session's own.
    pub connections_per_pool: usize,
    /// Calls of one session at one shared server at once, of each worker; 0 is no limit.
    pub shared_calls_per_session: u32,
    /// The same for one organization.
    pub shared_calls_per_org: u32,
    /// The largest frame taken from a backend.
    pub frame_bytes: u32,
    /// A connection without calls is closed after this.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// A connection with calls to a shared server that sent nothing for this
    /// long is pinged. Dedicated compute is not: its owner knows whether it lives.
    #[serde(with = "duration")]
    pub silence: Duration,
    /// It is dropped if nothing comes within this time after the ping. An
    /// engine that is busy can be silent for minutes.
    #[serde(with = "duration")]
    pub ping_timeout: Duration,
    /// How long the other end's kernel may acknowledge nothing before a
    /// connection to compute is dropped (TCP keepalive and `TCP_USER_TIMEOUT`).
    #[serde(with = "duration")]
    pub half_open_timeout: Duration,
    /// How long an `Interrupt` may take: Apache Spark 4.1 never answers about
    /// an operation that it does not know.
    #[serde(with = "duration")]
    pub interrupt_timeout: Duration,
    /// While a query runs on a shared Sail server, its Spark session gets a
    /// small call this often, because Sail's own timer does not wait for
    /// queries. Less than that timer; zero is never.
    #[serde(with = "duration")]
    pub sail_keep_alive: Duration,
}

impl BackendConfig {
    /// How many calls share a connection: even if none of their clients reads,
    /// they cannot use up its window.
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

/// What one client, and all of them, may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitConfig {
    /// Client connections in all; more wait in the kernel.
    pub connections: usize,
    /// Connections of one client address (IPv6: of one /64); 0 is no limit.
    pub connections_per_address: usize,
    /// Calls at once on one connection, which can carry several sessions; more
    /// than `calls_per_session`. What ends work is free.
    pub streams_per_connection: u32,
    /// Headers of one request; beyond four times as much, and beyond 256 KiB,
    /// HTTP/2 itself refuses them.
    pub header_list_bytes: u32,
    /// From the first byte to the end of the TLS and HTTP/2 handshakes.
    #[serde(with = "duration")]
    pub handshake: Duration,
    /// Tokens from one address that are not valid, per second, with bursts of
    /// twice as many; 0 is no limit.
    pub bad_tokens_per_second_per_address: u32,
    /// A connection that has shown no good token for this long is closed.
    #[serde(with = "duration")]
    pub first_token: Duration,
    /// Request bytes in flight per call before the connection has shown a good token.
    pub first_stream_window_bytes: u32,
    /// Request bytes in flight per call afterwards.
    pub stream_window_bytes: u32,
    /// Request bytes in flight per connection.
    pub connection_window_bytes: u32,
    /// The largest frame taken from a client.
    pub frame_bytes: u32,
    /// Response bytes buffered per call beyond the client's window.
    pub send_buffer_bytes: usize,
    /// A client with open calls that sent nothing for this long is pinged.
    #[serde(with = "duration")]
    pub ping_interval: Duration,
    /// The same for a client without calls.
    #[serde(with = "duration")]
    pub idle_ping_interval: Duration,
    /// It is given up if nothing comes within this time after the ping.
    #[serde(with = "duration")]
    pub ping_timeout: Duration,
    /// After this long, give or take a tenth, a connection takes no new calls; zero is never.
    #[serde(with = "duration")]
    pub connection_age: Duration,
    /// With more memory in use than this, new work is refused; 0 is never. 85 %
    /// of the container's limit unless set.
    pub shed_above_bytes: Option<u64>,
    /// From a call's headers to the first message of its request.
    #[serde(with = "duration")]
    pub first_message: Duration,
    /// How long nothing may come of a request that goes on to compute.
    #[serde(with = "duration")]
    pub request_idle_timeout: Duration,
    /// Calls of one session at once; what ends work is free.
    pub calls_per_session: u32,
    /// Calls of one organization per second, with bursts of as many; 0 is no
    /// limit; `ReleaseExecute` is free.
    pub calls_per_second_per_org: u32,
    /// Calls of one session that wait for compute at once.
    pub held_calls_per_session: usize,
    /// The same for one organization.
    pub held_calls_per_org: usize,
    /// Calls that wait for compute at once, in all.
    pub held_calls: usize,
    /// Bytes of one session's requests that wait for compute.
    pub held_bytes_per_session: usize,
    /// The same for one organization.
    pub held_bytes_per_org: usize,
    /// Bytes of requests that wait for compute, in all.
    pub held_bytes: usize,
    /// Bytes of responses to one session that its clients do not take.
    pub unread_bytes_per_session: usize,
    /// The same for one organization.
    pub unread_bytes_per_org: usize,
    /// The same in all.
    pub unread_bytes: usize,
}

impl LimitConfig {
    /// What HTTP/2 itself enforces, by a bare HTTP 431.
    pub(crate) fn hard_header_list_bytes(&self) -> u32 {
        self.header_list_bytes.saturating_mul(4).max(MIN_HARD_HEADER_LIST)
    }

    /// What HTTP/2 itself enforces, in silence: clients queue what is above it.
    /// The difference is for calls that end work, and for errors.
    pub(crate) fn hard_streams_per_connection(&self) -> u32 {
        self.streams_per_connection.saturating_add(SPARE_STREAMS)
    }
}

/// Streams of a connection beyond the calls that it may have.
const SPARE_STREAMS: u32 = 256;
/// Headers up to this size get an error with a text, whatever is accepted.
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
            ping_interval: Duration::from_secs(15),
            idle_ping_interval: Duration::from_secs(120),
            ping_timeout: Duration::from_secs(20),
            connection_age: Duration::from_secs(3600),
            shed_above_bytes: None,
        }
    }
}

/// How the proxy ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// How long running calls may go on.
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

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        problems.check("listen", &self.listen);
        problems.check("admin", &self.admin);
        problems.check("tokens", &self.tokens);
        problems.check("manager", &self.manager);
        problems.check("routes", &self.routes);
        problems.check("backend", &self.backend);
        problems.check("limits", &self.limits);
        problems.check("telemetry", &self.telemetry);
    }
}

impl Validate for ListenConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.workers <= 1024, "workers", "must be at most 1024");
        if self.tls.mode == TlsMode::Off {
            problems.require(
                self.insecure || self.address.ip().is_loopback(),
                "tls.mode",
                "must not be off beyond loopback (or say `insecure = true` to serve plaintext)",
            );
            return;
        }
        if self.tls.mode == TlsMode::Auto {
            problems.require(
                self.insecure || self.address.ip().is_loopback(),
                "tls.mode",
                "must not be auto beyond loopback (or say `insecure = true` to serve plaintext too)",
            );
        } else {
            problems.require(
                !self.insecure,
                "insecure",
                "contradicts `tls.mode = \"required\"`; remove it",
            );
        }
        match self.tls.files() {
            Some(files) => problems.check("tls", &files),
            None => problems.within("tls", |problems| {
                problems.require(self.tls.cert.is_some(), "cert", "is required unless mode is off");
                problems.require(self.tls.key.is_some(), "key", "is required unless mode is off");
            }),
        }
    }
}

impl Validate for TokenConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(!self.issuer.is_empty(), "issuer", "must not be empty");
        problems.require(!self.audience.is_empty(), "audience", "must not be empty");
        problems.check("keys", &self.keys);
        problems.require(!self.max_ttl.is_zero(), "max_ttl", "must not be zero");
        // What session-manager remembers revoked tokens for.
        let most = VerifierConfig::new("", "");
        problems.require(
            self.leeway <= most.leeway,
            "leeway",
            "must be at most 30s: revoked tokens are not remembered for longer",
        );
        problems.require(
            self.reattach_grace.max(self.interrupt_grace) <= most.reattach_grace,
            "reattach_grace",
            "and interrupt_grace must be at most 12h: revoked tokens are not remembered for longer",
        );
    }
}

impl Validate for RouteConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            self.hold_max <= Duration::from_secs(900),
            "hold_max",
            "must be at most 15min",
        );
        problems.require(
            self.forget_after >= Duration::from_secs(60),
            "forget_after",
            "must be at least 1min",
        );
    }
}

impl Validate for BackendConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            !self.connect_timeout.is_zero(),
            "connect_timeout",
            "must not be zero",
        );
        problems.check("tls", &self.tls);
        window(problems, "stream_window_bytes", self.stream_window_bytes);
        window(problems, "connection_window_bytes", self.connection_window_bytes);
        problems.require(
            self.connection_window_bytes >= self.stream_window_bytes
                && self.connection_window_bytes.checked_rem(self.stream_window_bytes) == Some(0),
            "connection_window_bytes",
            "must be a multiple of stream_window_bytes",
        );
        problems.require(
            self.connections_per_pool > 0,
            "connections_per_pool",
            "must not be 0",
        );
        frame(problems, self.frame_bytes);
        problems.require(
            self.sail_keep_alive.is_zero() || (Duration::from_secs(1)..=DAY).contains(&self.sail_keep_alive),
            "sail_keep_alive",
            "must be from 1s to 1day, or zero",
        );
        patience(problems, "silence", self.silence);
        patience(problems, "ping_timeout", self.ping_timeout);
        patience(problems, "half_open_timeout", self.half_open_timeout);
        patience(problems, "interrupt_timeout", self.interrupt_timeout);
    }
}

impl Validate for LimitConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.connections > 0, "connections", "must not be 0");
        problems.require(
            self.streams_per_connection > self.calls_per_session,
            "streams_per_connection",
            "must be more than calls_per_session: a connection can carry several sessions",
        );
        problems.require(
            (8 << 10..=4 << 20).contains(&self.header_list_bytes),
            "header_list_bytes",
            "must be from 8192 to 4194304",
        );
        problems.require(!self.handshake.is_zero(), "handshake", "must not be zero");
        patience(problems, "first_token", self.first_token);
        window(
            problems,
            "first_stream_window_bytes",
            self.first_stream_window_bytes,
        );
        window(problems, "stream_window_bytes", self.stream_window_bytes);
        window(problems, "connection_window_bytes", self.connection_window_bytes);
        frame(problems, self.frame_bytes);
        problems.require(!self.first_message.is_zero(), "first_message", "must not be zero");
        patience(problems, "request_idle_timeout", self.request_idle_timeout);
        problems.require(self.calls_per_session > 0, "calls_per_session", "must not be 0");
        problems.require(
            self.held_calls_per_session > 0,
            "held_calls_per_session",
            "must not be 0",
        );
        problems.require(self.held_calls > 0, "held_calls", "must not be 0");
        problems.require(self.held_calls_per_org > 0, "held_calls_per_org", "must not be 0");
        for (key, bytes) in [
            ("held_bytes_per_session", self.held_bytes_per_session),
            ("held_bytes_per_org", self.held_bytes_per_org),
            ("held_bytes", self.held_bytes),
            ("unread_bytes_per_session", self.unread_bytes_per_session),
            ("unread_bytes_per_org", self.unread_bytes_per_org),
            ("unread_bytes", self.unread_bytes),
        ] {
            problems.require(bytes >= 1 << 20, key, "must be at least 1048576");
        }
        problems.require(
            self.send_buffer_bytes >= 16 << 10,
            "send_buffer_bytes",
            "must be at least 16384",
        );
        patience(problems, "ping_interval", self.ping_interval);
        patience(problems, "idle_ping_interval", self.idle_ping_interval);
        problems.require(
            self.idle_ping_interval >= self.ping_interval,
            "idle_ping_interval",
            "must be at least ping_interval",
        );
        patience(problems, "ping_timeout", self.ping_timeout);
        problems.require(
            self.connection_age <= 365 * DAY,
            "connection_age",
            "must be at most 365days",
        );
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn patience(problems: &mut Problems, key: &str, time: Duration) {
    problems.require(
        !time.is_zero() && time <= DAY,
        key,
        "must be more than zero and at most 1day",
    );
}

fn window(problems: &mut Problems, key: &str, bytes: u32) {
    problems.require(
        (65_535..=1 << 30).contains(&bytes),
        key,
        "must be from 65535 to 1073741824",
    );
}

fn frame(problems: &mut Problems, bytes: u32) {
    problems.require(
        (16_384..=(1 << 24) - 1).contains(&bytes),
        "frame_bytes",
        "must be from 16384 to 16777215",
    );
}
