//! Logs and traces.
//!
//! Logs go to standard error, as JSON or text. Traces go to an OTLP endpoint if
//! configured.
//!
//! A span costs more than a small call, so spans exist only in sampled traces:
//! [`request_span!`](crate::request_span) creates one if the request's
//! `traceparent` has the sampled flag, or, without a `traceparent`, by the
//! configured ratio; [`root_span!`](crate::root_span) by the ratio alone;
//! [`child_span!`](crate::child_span) inside another span. The span's
//! `trace_id` field adds the id to every log line of the request.

use crate::config::{Problems, Validate};
use anyhow::Context as _;
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// Text for people.
    Text,
}

/// Configuration of logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Format of log lines.
    pub format: LogFormat,
    /// A level, or directives such as `info,h2=warn`.
    pub level: String,
    /// OTLP endpoint of traces, e.g. `http://collector:4317`; none by default.
    pub otlp_endpoint: Option<String>,
    /// Share of sampled traces, if the caller made no decision.
    pub sample_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            level: "info".to_owned(),
            otlp_endpoint: None,
            sample_ratio: 0.001,
        }
    }
}

impl Validate for TelemetryConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            EnvFilter::try_new(&self.level).is_ok(),
            "level",
            "must be error, warn, info, debug, trace, or directives such as \"info,h2=warn\"",
        );
        problems.require(
            (0.0..=1.0).contains(&self.sample_ratio),
            "sample_ratio",
            "must be from 0 to 1",
        );
        if let Some(endpoint) = &self.otlp_endpoint {
            problems.require(
                endpoint.starts_with("http://"),
                "otlp_endpoint",
                "must be like http://host:4317",
            );
        }
    }
}

/// The `tracing` target of all own spans. Spans of libraries are not exported.
pub const SPANS: &str = "berth";

/// Share of sampled traces without a caller's decision, as bits of an `f64`.
/// Zero, the bits of 0.0, until an exporter exists.
static SAMPLE_RATIO: AtomicU64 = AtomicU64::new(0);

/// Flushes the remaining traces on drop; keep it until the end of `main`.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            let _ = provider.shutdown_with_timeout(std::time::Duration::from_secs(3));
        }
    }
}

/// Starts logs and traces of this process. Call it once, inside a tokio
/// runtime.
pub fn init(config: &TelemetryConfig, service: &'static str) -> anyhow::Result<Telemetry> {
    let spans: Directive = format!("{SPANS}=info").parse()?;
    let filter = EnvFilter::try_new(&config.level)
        .context("log level")?
        .add_directive(spans);
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match config.format {
        LogFormat::Json => logs
            .json()
            .flatten_event(true)
            .map_event_format(OneLine::json)
            .boxed(),
        LogFormat::Text => logs.with_ansi(false).map_event_format(OneLine::text).boxed(),
    };
    let provider = config
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| provider(endpoint, service))
        .transpose()?;
    // One filter for all layers: with one per layer, tracing-subscriber loses
    // spans after `tracing::enabled!` and the equivalent macros of `log`.
    tracing_subscriber::registry()
        .with(filter)
        .with(provider.as_ref().map(traces))
        .with(logs)
        .try_init()
        .context("telemetry")?;
    if provider.is_some() {
        SAMPLE_RATIO.store(config.sample_ratio.to_bits(), Relaxed);
    }
    log_panics();
    Ok(Telemetry { provider })
}

/// Samples all own spans, because each exists only in a sampled trace. Spans of
/// libraries, which appear at debug level, are not exported.
#[derive(Debug, Clone)]
struct OurSpans;

impl ShouldSample for OurSpans {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let is_ours = attributes
            .iter()
            .any(|attribute| attribute.key.as_str() == "target" && attribute.value.as_str() == SPANS);
        let trace_state = parent.map(|parent| parent.span().span_context().trace_state().clone());
        SamplingResult {
            decision: if is_ours {
                SamplingDecision::RecordAndSample
            } else {
                SamplingDecision::Drop
            },
            attributes: Vec::new(),
            trace_state: trace_state.unwrap_or_default(),
        }
    }
}

fn traces<S>(provider: &SdkTracerProvider) -> impl tracing_subscriber::Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("berth"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
}

fn provider(endpoint: &str, service: &'static str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .context("OTLP endpoint")?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(OurSpans)
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}

/// Writes an event as one line of plain text: names and texts from others must
/// not start a new line or control a terminal. JSON itself escapes only what
/// would break JSON.
struct OneLine<F> {
    inner: F,
    escape: fn(&mut Writer<'_>, char) -> fmt::Result,
}

impl<F> OneLine<F> {
    fn text(inner: F) -> Self {
        Self {
            inner,
            escape: |writer, char| write!(writer, "{}", char.escape_unicode()),
        }
    }

    /// Non-printable characters occur only inside a string here, so JSON
    /// escapes are valid.
    fn json(inner: F) -> Self {
        Self {
            inner,
            escape: |writer, char| {
                let mut escaped = String::new();
                printable::push_json_escape(&mut escaped, char);
                writer.write_str(&escaped)
            },
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for OneLine<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        for char in line.trim_end_matches('\n').chars() {
            if printable::is_printable(char) {
                writer.write_char(char)?;
            } else {
                (self.escape)(&mut writer, char)?;
            }
        }
        writer.write_char('\n')
    }
}

/// Logs a panic as one log line, without other output.
fn log_panics() {
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or_default();
        tracing::error!(
            location = panic.location().map(tracing::field::display),
            said,
            "panic"
        );
    }));
}

const TRACEPARENT: &str = "traceparent";

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

/// Whether this request is part of a sampled trace: by the flag of its
/// `traceparent`, or without one by the configured ratio.
pub fn is_sampled(headers: &HeaderMap) -> bool {
    match headers.get(TRACEPARENT) {
        Some(value) => has_sampled_flag(value.as_bytes()),
        None => is_chosen(),
    }
}

/// Whether a trace that begins here is sampled: by the configured ratio; never
/// without an OTLP endpoint.
pub fn is_chosen() -> bool {
    match f64::from_bits(SAMPLE_RATIO.load(Relaxed)) {
        ratio if ratio <= 0.0 => false,
        ratio => rand::random::<f64>() < ratio,
    }
}

/// `version-traceid-parentid-flags`, 55 characters at least (W3C Trace Context).
fn has_sampled_flag(traceparent: &[u8]) -> bool {
    let flags = traceparent.get(53..55);
    let flags = flags.and_then(|digits| std::str::from_utf8(digits).ok());
    flags
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .is_some_and(|flags| flags & 1 == 1)
}

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
    let context = span.context();
    if context.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&context, &mut HeadersMut(headers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::fmt::MakeWriter;

    const INCOMING: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Buffer {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// Runs `work` under a subscriber and gives its log.
    fn logged(traces: bool, ratio: f64, work: impl FnOnce()) -> String {
        let provider = SdkTracerProvider::builder().with_sampler(OurSpans).build();
        let layer = traces.then(|| super::traces(&provider));
        SAMPLE_RATIO.store(ratio.to_bits(), Relaxed);
        let buffer = Buffer::default();
        let logs = tracing_subscriber::fmt::layer()
            .json()
            .with_writer(buffer.clone());
        let subscriber = tracing_subscriber::registry().with(layer).with(logs);
        tracing::subscriber::with_default(subscriber, work);
        let log = buffer.0.lock().unwrap().clone();
        String::from_utf8(log).unwrap()
    }

    /// Handles one request under a subscriber and gives its log and the
    /// `traceparent` of its outgoing call.
    fn handle(traces: bool, ratio: f64, traceparent: Option<&str>) -> (String, Option<String>) {
        let mut outgoing = HeaderMap::new();
        let log = logged(traces, ratio, || {
            let headers: HeaderMap = traceparent
                .iter()
                .map(|t| ("traceparent".parse().unwrap(), t.parse().unwrap()))
                .collect();
            let span = crate::request_span!(&headers, "call");
            span.in_scope(|| {
                let part = crate::child_span!("part");
                tracing::info!("handled");
                inject(&part, &mut outgoing);
            });
        });
        let outgoing = outgoing.get("traceparent");
        (log, outgoing.map(|v| v.to_str().unwrap().to_owned()))
    }

    /// The ratio is global, so these tests run one at a time.
    static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

    #[test]
    fn a_callers_trace_goes_on() {
        let _alone = ALONE.lock();
        let (log, outgoing) = handle(true, 0.0, Some(INCOMING));
        assert!(log.contains("0af7651916cd43dd8448eb211c80319c"), "{log}");
        let outgoing = outgoing.unwrap();
        assert!(outgoing.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && outgoing.ends_with("-01"));
        assert_ne!(outgoing, INCOMING, "a span of its own");
    }

    #[test]
    fn unsampled_requests_have_no_span() {
        let _alone = ALONE.lock();
        let unsampled = INCOMING.replace("-01", "-00");
        for (ratio, traceparent) in [(1.0, Some(unsampled.as_str())), (1.0, Some("junk")), (0.0, None)] {
            let (log, outgoing) = handle(true, ratio, traceparent);
            assert_eq!(outgoing, None);
            assert!(!log.contains("trace_id"), "{log}");
        }
        assert!(handle(true, 1.0, None).1.unwrap().ends_with("-01"));
    }

    #[test]
    fn root_spans_are_sampled_by_the_ratio_and_log_their_trace_id() {
        let _alone = ALONE.lock();
        for (ratio, sampled) in [(1.0, true), (0.0, false)] {
            let log = logged(true, ratio, || {
                let span = crate::root_span!("work", session = "s-1");
                span.in_scope(|| tracing::info!("done"));
            });
            assert_eq!(log.contains("trace_id"), sampled, "{log}");
            assert_eq!(log.contains("s-1"), sampled, "{log}");
        }
    }

    #[test]
    fn the_sampled_flag_is_the_lowest_bit() {
        for (traceparent, sampled) in [
            (INCOMING, true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-", false),
            ("", false),
        ] {
            assert_eq!(has_sampled_flag(traceparent.as_bytes()), sampled, "{traceparent}");
        }
    }

    #[test]
    fn without_traces_the_log_still_has_the_callers_id() {
        let _alone = ALONE.lock();
        let (log, outgoing) = handle(false, 0.0, Some(INCOMING));
        assert!(log.contains("0af7651916cd43dd8448eb211c80319c"), "{log}");
        assert_eq!(outgoing, None);
        for junk in ["", "x", "00-0-0-00", &"0".repeat(5000)] {
            assert!(!handle(false, 0.0, Some(junk)).0.contains("trace_id\":\"0"));
        }
    }

    #[test]
    fn what_others_chose_stays_in_its_line() {
        const HOSTILE: &str =
            "x\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{7}\u{9b}31m\u{202e}\u{2028}\u{e0041}\0end";
        for json in [false, true] {
            let buffer = Buffer::default();
            let logs = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(buffer.clone());
            let logs = if json {
                let logs = logs.json().flatten_event(true);
                logs.map_event_format(OneLine::json).boxed()
            } else {
                logs.map_event_format(OneLine::text).boxed()
            };
            tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
                let span = tracing::info_span!("call", name = HOSTILE, shown = %HOSTILE);
                let _inside = span.enter();
                tracing::info!(name = HOSTILE, shown = %HOSTILE, debug = ?HOSTILE, "{HOSTILE}");
            });
            let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
            assert_eq!(log.matches('\n').count(), 1, "{log:?}");
            assert!(log.ends_with('\n') && log.matches("end").count() >= 6, "{log:?}");
            assert!(printable::all_printable(log.trim_end_matches('\n')), "{log:?}");
            if json {
                // The escaped JSON decodes to the original text.
                let line: serde_json::Value = serde_json::from_str(&log).unwrap();
                assert_eq!(line["name"], HOSTILE);
                assert_eq!(line["shown"], HOSTILE);
            }
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let bad = TelemetryConfig {
            level: "info,,=".into(),
            sample_ratio: 2.0,
            otlp_endpoint: Some("collector:4317".into()),
            ..TelemetryConfig::default()
        };
        let mut problems = Problems::default();
        bad.validate(&mut problems);
        assert_eq!(problems.found().len(), 3, "{problems:?}");
    }
}
