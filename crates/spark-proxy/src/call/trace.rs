//! The span of a call, and what log lines have without one.

use crate::worker::tokens::Caller;
use h2::RecvStream;
use http::Request;
use http::request::Parts;
use service_kit::{request_span, telemetry};
use session_core::Reason;
use std::time::Duration;
use tracing::Span;

/// The span of an admitted call, if its trace is sampled. Before, the sampled flag of a `traceparent`
/// would let anybody make the proxy record and export spans, also with a revoked token, so the span
/// begins after `authentication`.
pub(super) fn call_span(head: &Parts, caller: &Caller, authentication: Duration) -> Span {
    request_span!(
        &head.headers,
        "call",
        otel.name = head.uri.path(),
        otel.kind = "server",
        rpc.system = "grpc",
        session = caller.claims.sid.as_str(),
        authentication_seconds = authentication.as_secs_f64(),
        outcome = tracing::field::Empty,
    )
}

/// What the log line of a refused call shows; empty unless debug lines are enabled.
pub(super) struct LoggedRequest {
    path: Option<String>,
    trace_id: Option<String>,
}

impl LoggedRequest {
    pub(super) fn of(request: &Request<RecvStream>) -> Self {
        let enabled = tracing::enabled!(tracing::Level::DEBUG);
        Self {
            path: enabled.then(|| request.uri().path().to_owned()),
            trace_id: enabled
                .then(|| telemetry::incoming_trace_id(request.headers()))
                .flatten(),
        }
    }

    /// Logs that the call was refused. A span has a trace id of its own.
    pub(super) fn refused(self, span: &Span, reason: Reason) {
        let Self { path, trace_id } = self;
        let trace_id = trace_id.filter(|_| span.is_none());
        tracing::debug!(parent: span, path, trace_id, %reason, "call refused");
    }
}
