//! Macros that create a span if its trace is sampled.

/// The span of one request if it is sampled, else a disabled span:
/// `request_span!(&headers, "rpc", otel.kind = "server")`.
#[macro_export]
macro_rules! request_span {
    ($headers:expr, $name:literal $(, $($fields:tt)*)?) => {{
        let headers = $headers;
        if $crate::telemetry::is_sampled(headers) {
            let span = tracing::info_span!(
                target: $crate::telemetry::SPANS, $name, trace_id = tracing::field::Empty $(, $($fields)*)?
            );
            $crate::telemetry::adopt(&span, headers);
            span
        } else {
            tracing::Span::none()
        }
    }};
}

/// The span of work without a request, if it is sampled, else a disabled span.
#[macro_export]
macro_rules! root_span {
    ($name:literal $(, $($fields:tt)*)?) => {
        if $crate::telemetry::is_chosen() {
            let span = tracing::info_span!(
                target: $crate::telemetry::SPANS, parent: None, $name, trace_id = tracing::field::Empty $(, $($fields)*)?
            );
            $crate::telemetry::record_trace_id(&span);
            span
        } else {
            tracing::Span::none()
        }
    };
}

/// A child of the current span; a disabled span without a current one.
#[macro_export]
macro_rules! child_span {
    ($name:literal $(, $($fields:tt)*)?) => {
        if tracing::Span::current().is_none() {
            tracing::Span::none()
        } else {
            tracing::info_span!(target: $crate::telemetry::SPANS, $name $(, $($fields)*)?)
        }
    };
}
