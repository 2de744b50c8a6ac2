//! Metrics of the proxy. Labels are enums, never ids.

use service_kit::labels;
use service_kit::metrics::{Counter, Family, Gauge, Histogram, Registry, SECONDS};
use session_core::Reason;
use std::sync::Arc;

labels! {
    /// Outcome of a call, and who caused it.
    pub(crate) enum Outcome("outcome") {
        Ok => "ok",
        BackendError => "backend_error",
        BackendLost => "backend_lost",
        BackendUnavailable => "backend_unavailable",
        ClientGone => "client_gone",
        ClientError => "client_error",
        Unauthenticated => "unauthenticated",
        NotAllowed => "permission_denied",
        SessionEnded => "session_ended",
        Warming => "warming",
        Limited => "limit_exceeded",
        ControlPlane => "control_plane_error",
        Draining => "draining",
        Health => "health_check",
        Local => "local_reply",
    }
}

labels! {
    /// What a call waited for.
    pub(crate) enum Stage("stage") {
        Auth => "auth",
        Resolve => "resolve",
        Connect => "connect",
        FirstByte => "first_byte",
    }
}

labels! {
    /// Direction of bytes.
    pub(crate) enum Direction("direction") {
        ToBackend => "to_backend",
        ToClient => "to_client",
    }
}

labels! {
    /// Reason for a failed handshake.
    pub(crate) enum Handshake("reason") {
        Failed => "protocol_error",
        TimedOut => "timeout",
        Plaintext => "plaintext",
    }
}

labels! {
    /// Reason for closing a connection.
    pub(crate) enum CloseReason("reason") {
        AddressLimit => "per_ip_limit",
        ProxyHeader => "proxy_protocol",
        NoToken => "no_valid_token",
        Flood => "flood",
    }
}

labels! {
    /// The peer of a connection.
    pub(crate) enum Peer("peer") {
        Client => "client",
        Backend => "backend",
    }
}

labels! {
    /// Reason for ending a held stream without its client.
    pub(crate) enum Abandoned("reason") {
        Timeout => "timeout",
        LimitExceeded => "limit_exceeded",
        Released => "released",
        Replaced => "replaced",
        Draining => "draining",
        Ended => "ended",
    }
}

labels! {
    /// Reason for refusing to continue a query on Sail.
    pub(crate) enum ReattachRefused("reason") {
        NotHeld => "not_held",
        NotRetained => "not_retained",
        Interrupted => "interrupted",
        OtherSubject => "other_subject",
        OtherProxy => "other_proxy",
    }
}

labels! {
    /// Language of a client.
    pub(crate) enum ClientLanguage("client") {
        Python => "python",
        Scala => "scala",
        Go => "go",
        Rust => "rust",
        Other => "other",
    }
}

labels! {
    /// Version of Spark that a client states.
    pub(crate) enum ClientVersion("version") {
        V34 => "3.4",
        V35 => "3.5",
        V40 => "4.0",
        V41 => "4.1",
        V42 => "4.2",
        V43 => "4.3",
        Other => "other",
        Unknown => "unknown",
    }
}

impl Outcome {
    /// Maps a reason to an outcome.
    pub(crate) fn of(reason: Reason) -> Self {
        match reason {
            Reason::TokenMissing
            | Reason::TokenMalformed
            | Reason::TokenExpired
            | Reason::TokenRevoked
            | Reason::TokenInvalid
            | Reason::CallerUnknown => Self::Unauthenticated,
            Reason::HeaderMissing
            | Reason::HeaderDuplicate
            | Reason::MalformedMessage
            | Reason::InvalidArgument
            | Reason::CompressedRequest
            | Reason::UnknownMethod
            | Reason::TlsRequired => Self::ClientError,
            Reason::SessionMismatch
            | Reason::SparkSessionTaken
            | Reason::NotAuthorized
            | Reason::OrgDisabled
            | Reason::ManagedByConfig => Self::NotAllowed,
            Reason::SessionClosed
            | Reason::SessionFailed
            | Reason::ComputeReleased
            | Reason::CatalogUnavailable
            | Reason::ClusterNotActive => Self::SessionEnded,
            Reason::SessionWarming => Self::Warming,
            Reason::ProxyDraining => Self::Draining,
            Reason::BackendUnavailable => Self::BackendUnavailable,
            Reason::BackendLost | Reason::OperationLost => Self::BackendLost,
            Reason::QuotaExceeded | Reason::RateLimited | Reason::TooManyWaiting => Self::Limited,
            Reason::ControlPlaneUnavailable
            | Reason::RequestIdReused
            | Reason::Conflict
            | Reason::AlreadyExists
            | Reason::InUse
            | Reason::Internal => Self::ControlPlane,
        }
    }
}

/// All metrics of the proxy.
pub(crate) struct Metrics {
    pub(crate) calls: CallMetrics,
    pub(crate) clients: Arc<Family<(ClientLanguage, ClientVersion), Counter>>,
    pub(crate) connections: ConnectionMetrics,
    pub(crate) held_streams: HeldStreamMetrics,
    pub(crate) control: ControlMetrics,
    pub(crate) process: ProcessMetrics,
}

/// Metrics of calls.
pub(crate) struct CallMetrics {
    pub(crate) ended: Arc<Family<Outcome, Counter>>,
    pub(crate) duration: Arc<Family<Outcome, Histogram>>,
    pub(crate) opened: Arc<Family<(), Counter>>,
    pub(crate) bytes: Arc<Family<Direction, Counter>>,
    pub(crate) waited: Arc<Family<Stage, Histogram>>,
    pub(crate) held: Arc<Family<(), Gauge>>,
    pub(crate) retried: Arc<Family<(), Counter>>,
    pub(crate) kept_alive: Arc<Family<(), Counter>>,
}

/// Metrics of queries on Sail whose streams outlive their clients.
pub(crate) struct HeldStreamMetrics {
    pub(crate) held: Arc<Family<(), Gauge>>,
    pub(crate) bytes: Arc<Family<(), Gauge>>,
    pub(crate) resumed: Arc<Family<(), Counter>>,
    pub(crate) abandoned: Arc<Family<Abandoned, Counter>>,
    pub(crate) refused: Arc<Family<ReattachRefused, Counter>>,
}

/// Metrics of connections, of clients and to compute.
pub(crate) struct ConnectionMetrics {
    pub(crate) open: Arc<Family<(), Gauge>>,
    pub(crate) accepted: Arc<Family<(), Counter>>,
    pub(crate) handshakes: Arc<Family<Handshake, Counter>>,
    pub(crate) refused: Arc<Family<CloseReason, Counter>>,
    pub(crate) aged: Arc<Family<(), Counter>>,
    pub(crate) pings: Arc<Family<Peer, Counter>>,
    pub(crate) pings_lost: Arc<Family<Peer, Counter>>,
    pub(crate) backend_open: Arc<Family<(), Gauge>>,
    pub(crate) backend_made: Arc<Family<(), Counter>>,
    pub(crate) pool_full: Arc<Family<(), Counter>>,
}

/// Metrics of requests to other services.
pub(crate) struct ControlMetrics {
    pub(crate) route_requests: Arc<Family<(), Counter>>,
    pub(crate) watching: Arc<Family<(), Gauge>>,
    pub(crate) key_fetches_failed: Arc<Family<(), Counter>>,
    pub(crate) bindings: Arc<Family<(), Counter>>,
    pub(crate) settings_not_stored: Arc<Family<(), Counter>>,
    pub(crate) reports_failed: Arc<Family<(), Counter>>,
}

/// Metrics of the process.
pub(crate) struct ProcessMetrics {
    pub(crate) overload_rejections: Arc<Family<(), Counter>>,
    pub(crate) overloaded: Arc<Family<(), Gauge>>,
    pub(crate) memory: Arc<Family<(), Gauge>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            calls: CallMetrics::new(registry),
            clients: registry.counter(
                "spark_proxy_clients_total",
                "Spark sessions by the client that first used them here, by language and version.",
            ),
            connections: ConnectionMetrics::new(registry),
            held_streams: HeldStreamMetrics::new(registry),
            control: ControlMetrics::new(registry),
            process: ProcessMetrics::new(registry),
        }
    }
}

impl CallMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            ended: registry.counter("spark_proxy_calls_total", "Ended calls, by outcome."),
            duration: registry.histogram(
                "spark_proxy_call_duration_seconds",
                "Duration of calls from their headers to their end, by outcome.",
                SECONDS,
            ),
            opened: registry.counter(
                "spark_proxy_calls_opened_total",
                "Started calls; open calls are these minus the ended ones.",
            ),
            bytes: registry.counter(
                "spark_proxy_bytes_total",
                "Forwarded bytes of message bodies, by direction.",
            ),
            waited: registry.histogram(
                "spark_proxy_wait_duration_seconds",
                "Waiting time of forwarded calls, by stage.",
                SECONDS,
            ),
            held: registry.gauge("spark_proxy_held_calls", "Held calls, which wait for compute."),
            retried: registry.counter(
                "spark_proxy_calls_retried_total",
                "Calls sent again because the compute provably did not process them.",
            ),
            kept_alive: registry.counter(
                "spark_proxy_spark_sessions_kept_alive_total",
                "Keep-alive calls for Spark sessions with running queries on shared Sail servers.",
            ),
        }
    }
}

impl HeldStreamMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            held: registry.gauge(
                "spark_proxy_held_streams",
                "Streams of queries on Sail that are held for a client that disconnected.",
            ),
            bytes: registry.gauge(
                "spark_proxy_unacknowledged_bytes",
                "Response bytes of queries on Sail that their clients have not acknowledged.",
            ),
            resumed: registry.counter(
                "spark_proxy_streams_resumed_total",
                "Queries on Sail that a returning client continued without loss.",
            ),
            abandoned: registry.counter(
                "spark_proxy_held_streams_abandoned_total",
                "Held streams that ended before their client returned, by reason.",
            ),
            refused: registry.counter(
                "spark_proxy_reattaches_refused_total",
                "Reattaches to queries on Sail that ended with an error, by reason.",
            ),
        }
    }
}

impl ConnectionMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            open: registry.gauge("spark_proxy_connections", "Open client connections."),
            accepted: registry.counter(
                "spark_proxy_connections_accepted_total",
                "Accepted client connections.",
            ),
            handshakes: registry.counter(
                "spark_proxy_handshakes_failed_total",
                "Client connections with a failed handshake, by reason.",
            ),
            refused: registry.counter(
                "spark_proxy_connections_refused_total",
                "Client connections closed before a valid token or for a flood, by reason.",
            ),
            aged: registry.counter(
                "spark_proxy_connections_expired_total",
                "Client connections drained because of their age.",
            ),
            pings: registry.counter("spark_proxy_pings_total", "Keepalive pings sent, by peer."),
            pings_lost: registry.counter(
                "spark_proxy_pings_lost_total",
                "Connections lost by keepalive timeout, by peer.",
            ),
            backend_open: registry.gauge("spark_proxy_backend_connections", "Open connections to compute."),
            backend_made: registry.counter(
                "spark_proxy_backend_connections_made_total",
                "Connections made to compute.",
            ),
            pool_full: registry.counter(
                "spark_proxy_backend_pool_full_total",
                "Calls that waited because all allowed connections to their compute were full.",
            ),
        }
    }
}

impl ControlMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            route_requests: registry.counter(
                "spark_proxy_route_requests_total",
                "Route requests to session-manager.",
            ),
            watching: registry.gauge(
                "spark_proxy_route_watch_connected",
                "1 while the route watch is connected.",
            ),
            key_fetches_failed: registry.counter(
                "spark_proxy_key_fetches_failed_total",
                "Failed reads of the key set.",
            ),
            bindings: registry.counter(
                "spark_proxy_spark_sessions_bound_total",
                "Bind requests to session-manager for Spark sessions.",
            ),
            settings_not_stored: registry.counter(
                "spark_proxy_settings_dropped_total",
                "Settings changes of Spark sessions that were not stored and will be lost when compute is replaced.",
            ),
            reports_failed: registry.counter(
                "spark_proxy_activity_reports_failed_total",
                "Failed or rejected activity reports to session-manager.",
            ),
        }
    }
}

impl ProcessMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            overload_rejections: registry.counter(
                "spark_proxy_calls_rejected_overloaded_total",
                "Calls rejected because memory was short.",
            ),
            overloaded: registry.gauge("spark_proxy_overloaded", "1 while memory is short."),
            memory: registry.gauge("spark_proxy_memory_bytes", "Resident memory of the process."),
        }
    }
}
