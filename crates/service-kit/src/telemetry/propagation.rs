//! W3C trace context in the headers of requests.

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Makes `span` part of the trace in the request's `traceparent`, and records
/// the trace id in the span's `trace_id` field if it declares one (`trace_id =
/// tracing::field::Empty`).
pub fn adopt(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    let incoming = parent.span().span_context().trace_id();
    let _ = span.set_parent(parent);
    record_trace_id_or(span, incoming);
}

/// Records the id of the trace that `span` begins in its `trace_id` field.
pub fn record_trace_id(span: &Span) {
    record_trace_id_or(span, TraceId::INVALID);
}

/// The span has no trace id of its own while no traces are exported.
fn record_trace_id_or(span: &Span, incoming: TraceId) {
    let own = span.context().span().span_context().trace_id();
    let trace_id = if own == TraceId::INVALID { incoming } else { own };
    if trace_id != TraceId::INVALID {
        span.record("trace_id", tracing::field::display(trace_id));
    }
}

/// Writes the `traceparent` of `span` into the headers of an outgoing request.
/// Without traces, an existing header is passed on unchanged.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let context = span.context();
    if context.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&context, &mut HeadersMut(headers));
    }
}

/// The trace id of the request's `traceparent`, for log lines outside of spans;
/// none without a valid one.
pub fn incoming_trace_id(headers: &HeaderMap) -> Option<String> {
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    let trace_id = context.span().span_context().trace_id();
    (trace_id != TraceId::INVALID).then(|| trace_id.to_string())
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (
            http::HeaderName::try_from(key),
            http::HeaderValue::try_from(value),
        ) {
            self.0.insert(name, value);
        }
    }
}
