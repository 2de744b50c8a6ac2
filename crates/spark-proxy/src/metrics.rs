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
        NotAllowed => "not_allowed",
        SessionEnded => "session_ended",
        Warming => "warming",
        Limited => "limited",
        ControlPlane => "control_plane",
        Draining => "draining",
        Health => "health",
        Local => "local",
    }
}

labels! {
    /// Reason for a wait of a call.
    pub(crate) enum Stage("stage") {
        Auth => "auth",
        Resolve => "resolve",
        Connect => "connect",
        FirstByte => "first_byte",
    }
}

labels! {
    /// Direction of bytes.
    pub(crate) enum Way("direction") {
        ToBackend => "to_backend",
        ToClient => "to_client",
    }
}

labels! {
    /// Reason for a failed handshake.
    pub(crate) enum Handshake("result") {
        Failed => "failed",
        TimedOut => "timed_out",
        Plaintext => "plaintext",
    }
}

labels! {
    /// Reason for closing a connection.
    pub(crate) enum Unwanted("cause") {
        AddressLimit => "address_limit",
        ProxyHeader => "proxy_header",
        NoToken => "no_good_token",
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
    pub(crate) calls: Arc<Family<Outcome, Counter>>,
    pub(crate) call_duration: Arc<Family<Outcome, Histogram>>,
    pub(crate) opened: Arc<Family<(), Counter>>,
    pub(crate) bytes: Arc<Family<Way, Counter>>,
    pub(crate) waited: Arc<Family<Stage, Histogram>>,
    pub(crate) connections: Arc<Family<(), Gauge>>,
    pub(crate) accepted: Arc<Family<(), Counter>>,
    pub(crate) handshakes: Arc<Family<Handshake, Counter>>,
    pub(crate) backend_connections: Arc<Family<(), Gauge>>,
    pub(crate) backend_connected: Arc<Family<(), Counter>>,
    pub(crate) resolves: Arc<Family<(), Counter>>,
    pub(crate) watching: Arc<Family<(), Gauge>>,
    pub(crate) key_fetches_failed: Arc<Family<(), Counter>>,
    pub(crate) held: Arc<Family<(), Gauge>>,
    pub(crate) sent_again: Arc<Family<(), Counter>>,
    pub(crate) kept_alive: Arc<Family<(), Counter>>,
    pub(crate) bindings: Arc<Family<(), Counter>>,
    pub(crate) settings_not_kept: Arc<Family<(), Counter>>,
    pub(crate) reports_failed: Arc<Family<(), Counter>>,
    pub(crate) unwanted: Arc<Family<Unwanted, Counter>>,
    pub(crate) aged: Arc<Family<(), Counter>>,
    pub(crate) pings: Arc<Family<Peer, Counter>>,
    pub(crate) pings_lost: Arc<Family<Peer, Counter>>,
    pub(crate) pool_full: Arc<Family<(), Counter>>,
    pub(crate) shed: Arc<Family<(), Counter>>,
    pub(crate) shedding: Arc<Family<(), Gauge>>,
    pub(crate) memory: Arc<Family<(), Gauge>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            calls: registry.counter("spark_proxy_calls_total", "Ended calls, by outcome."),
            call_duration: registry.histogram(
                "spark_proxy_call_duration_seconds",
                "Duration of calls from their headers to their end, by outcome.",
                SECONDS,
            ),
            opened: registry.counter(
                "spark_proxy_calls_opened_total",
                "Started calls; open calls are these minus the ended ones.",
            ),
            bytes: registry.counter("spark_proxy_bytes_total", "Forwarded bytes of message bodies, by direction."),
            waited: registry.histogram(
                "spark_proxy_wait_duration_seconds",
                "Waiting time of forwarded calls, by stage.",
                SECONDS,
            ),
            connections: registry.gauge("spark_proxy_connections", "Open client connections."),
            accepted: registry.counter(
                "spark_proxy_connections_accepted_total",
                "Accepted client connections.",
            ),
            handshakes: registry.counter(
                "spark_proxy_handshakes_failed_total",
                "Client connections with a failed handshake, by result.",
            ),
            backend_connections: registry.gauge("spark_proxy_backend_connections", "Open connections to compute."),
            backend_connected: registry.counter(
                "spark_proxy_backend_connections_made_total",
                "Connections made to compute.",
            ),
            resolves: registry.counter(
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
            held: registry.gauge("spark_proxy_held_calls", "Held calls, which wait for compute."),
            sent_again: registry.counter(
                "spark_proxy_calls_retried_total",
                "Calls sent again because the compute provably did not process them.",
            ),
            kept_alive: registry.counter(
                "spark_proxy_spark_sessions_kept_alive_total",
                "Keep-alive calls for Spark sessions with running queries on shared Sail servers.",
            ),
            bindings: registry.counter(
                "spark_proxy_spark_sessions_bound_total",
                "Bind requests to session-manager for Spark sessions.",
            ),
            settings_not_kept: registry.counter(
                "spark_proxy_settings_not_kept_total",
                "Settings changes of Spark sessions that were not stored and will be lost when compute is replaced.",
            ),
            reports_failed: registry.counter(
                "spark_proxy_activity_reports_failed_total",
                "Failed or rejected activity reports to session-manager.",
            ),
            unwanted: registry.counter(
                "spark_proxy_connections_refused_total",
                "Client connections closed before a valid token or for a flood, by cause.",
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
            pool_full: registry.counter(
                "spark_proxy_backend_pool_full_total",
                "Calls that waited because all allowed connections to their compute were full.",
            ),
            shed: registry.counter(
                "spark_proxy_calls_rejected_overloaded_total",
                "Calls rejected because memory was short.",
            ),
            shedding: registry.gauge("spark_proxy_overloaded", "1 while memory is short."),
            memory: registry.gauge("spark_proxy_memory_bytes", "Resident memory of the process."),
        }
    }
}
