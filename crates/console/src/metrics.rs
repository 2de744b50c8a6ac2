//! Metrics of console.

use http::StatusCode;
use service_kit::metrics::{Counter, Family, Gauge, Histogram, Registry, SECONDS};
use std::sync::Arc;

service_kit::labels! {
    /// The part of the service that a request is for.
    pub(crate) enum Part("part") {
        /// The REST API.
        Rest => "rest",
        /// Sign-in and sign-out.
        SignIn => "sign_in",
        /// Web pages and their assets.
        Pages => "pages",
    }
}

service_kit::labels! {
    /// Outcome of a request.
    pub(crate) enum Outcome("outcome") {
        /// Status 1xx, 2xx or 3xx.
        Ok => "ok",
        /// Status 401 or 403.
        Denied => "denied",
        /// Status 429.
        Limited => "limited",
        /// Another 4xx status.
        ClientError => "client_error",
        /// Status 503 or 504: the gRPC APIs are not available.
        Unavailable => "unavailable",
        /// Another 5xx status.
        ServerError => "server_error",
    }
}

service_kit::labels! {
    /// Kind of a request that stays open.
    pub(crate) enum StreamKind("kind") {
        /// Server-sent events.
        Watch => "watch",
        /// A read that waits for a status.
        LongPoll => "long_poll",
    }
}

service_kit::labels! {
    /// How a browser signs in.
    pub enum SignInMethod("method") {
        /// With a service-account key.
        Key => "key",
        /// At an identity provider.
        Oidc => "oidc",
    }
}

service_kit::labels! {
    /// Outcome of a sign-in.
    pub enum SignInOutcome("outcome") {
        /// Signed in.
        Ok => "ok",
        /// The credential, code or caller is not accepted.
        Rejected => "rejected",
        /// The identity provider or session-manager did not answer properly.
        Failed => "failed",
    }
}

/// All metrics of the service.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Arc<Family<(Part, Outcome), Counter>>,
    /// Time until the response begins.
    pub(crate) seconds: Arc<Family<Part, Histogram>>,
    /// Open streams.
    pub(crate) streams: Arc<Family<StreamKind, Gauge>>,
    /// Watches that ended because their client did not read.
    pub(crate) slow_watchers: Arc<Family<(), Counter>>,
    /// Sign-ins of browsers.
    pub(crate) sign_ins: Arc<Family<(SignInMethod, SignInOutcome), Counter>>,
    /// Open channels to the gRPC APIs.
    pub(crate) channels: Arc<Family<(), Gauge>>,
}

impl Metrics {
    /// Registers all families.
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.counter("console_requests_total", "Requests, by outcome."),
            seconds: registry.histogram(
                "console_request_seconds",
                "Time until the response of a request began, without streams.",
                SECONDS,
            ),
            streams: registry.gauge("console_streams", "Open watches and long polls."),
            slow_watchers: registry.counter(
                "console_slow_watchers_total",
                "Watches that ended because the client did not read.",
            ),
            sign_ins: registry.counter("console_sign_ins_total", "Sign-ins of browsers, by outcome."),
            channels: registry.gauge(
                "console_channels",
                "Credentials with channels of their own to the gRPC APIs.",
            ),
        }
    }

    /// Counts a response.
    pub(crate) fn count(&self, part: Part, status: StatusCode) {
        let outcome = match status.as_u16() {
            ..=399 => Outcome::Ok,
            401 | 403 => Outcome::Denied,
            429 => Outcome::Limited,
            400..=499 => Outcome::ClientError,
            503 | 504 => Outcome::Unavailable,
            500.. => Outcome::ServerError,
        };
        self.requests.at((part, outcome)).inc();
    }
}
