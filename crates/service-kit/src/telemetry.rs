//! Logs and traces.
//!
//! Logs go to standard error, as JSON or text. Traces go to an OTLP endpoint
//! if there is one; a trace is kept when the caller's was, or else by a small
//! chance. [`adopt`] joins a request to its caller's trace and writes the
//! trace id into the span's `trace_id` field, so that every log line has it.

use crate::config::{Problems, Validate};
use anyhow::Context as _;
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use std::fmt;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// What is logged and traced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// How log lines look.
    pub format: LogFormat,
    /// A level, or directives such as `info,h2=warn`.
    pub level: String,
    /// Where traces go, e.g. `http://collector:4317`; nowhere if not set.
    pub otlp_endpoint: Option<String>,
    /// The share of traces kept when the caller did not decide.
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

/// Sends what is left of the traces when dropped; keep it until the end of `main`.
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

/// Starts logs and traces of this process. Call once, inside a tokio runtime.
pub fn init(config: &TelemetryConfig, service: &'static str) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&config.level).context("log level")?;
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
        .map(|to| provider(to, config.sample_ratio, service))
        .transpose()?;
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(service)));
    tracing_subscriber::registry()
        .with(filter)
        .with(traces)
        .with(logs)
        .try_init()
        .context("telemetry")?;
    log_panics();
    Ok(Telemetry { provider })
}

fn provider(endpoint: &str, ratio: f64, service: &'static str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .context("OTLP endpoint")?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}

/// Writes an event as one line of plain text, whatever is in it: names and
/// texts that others chose must neither begin a line of their own nor speak to
/// a terminal. JSON by itself escapes only what would break it.
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

    /// What is not plain is inside a string here, so that its escape is one of
    /// JSON's own.
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

/// A panic is one log line like any other, and nothing besides.
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

/// Makes `span` part of the trace that the request's `traceparent` names, and
/// records the trace id in the span's `trace_id` field if it declared one
/// (`trace_id = tracing::field::Empty`).
pub fn adopt(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    let incoming = parent.span().span_context().trace_id();
    let _ = span.set_parent(parent);
    let own = span.context().span().span_context().trace_id();
    let trace_id = if own == opentelemetry::TraceId::INVALID {
        incoming
    } else {
        own
    };
    if trace_id != opentelemetry::TraceId::INVALID {
        span.record("trace_id", tracing::field::display(trace_id));
    }
}

/// Writes `traceparent` of `span` into the headers of an outgoing request.
/// Without traces, what is there already is passed on as it is.
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

    /// Handles one request under a subscriber and gives its log and the
    /// `traceparent` of its outgoing call.
    fn handle(traces: bool, ratio: f64, traceparent: Option<&str>) -> (String, Option<String>) {
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
        let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
        let layer = traces.then(|| tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
        let buffer = Buffer::default();
        let logs = tracing_subscriber::fmt::layer()
            .json()
            .with_writer(buffer.clone());
        let subscriber = tracing_subscriber::registry().with(layer).with(logs);
        let mut outgoing = HeaderMap::new();
        tracing::subscriber::with_default(subscriber, || {
            let headers: HeaderMap = traceparent
                .iter()
                .map(|t| ("traceparent".parse().unwrap(), t.parse().unwrap()))
                .collect();
            let span = tracing::info_span!("call", trace_id = tracing::field::Empty);
            adopt(&span, &headers);
            span.in_scope(|| tracing::info!("handled"));
            inject(&span, &mut outgoing);
        });
        let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        (
            log,
            outgoing
                .get("traceparent")
                .map(|v| v.to_str().unwrap().to_owned()),
        )
    }

    #[test]
    fn a_callers_trace_goes_on() {
        let (log, outgoing) = handle(true, 0.0, Some(INCOMING));
        assert!(log.contains("0af7651916cd43dd8448eb211c80319c"), "{log}");
        let outgoing = outgoing.unwrap();
        assert!(outgoing.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && outgoing.ends_with("-01"));
        assert_ne!(outgoing, INCOMING, "a span of its own");
    }

    #[test]
    fn a_callers_no_is_respected_and_its_own_decision_is_by_chance() {
        let unsampled = INCOMING.replace("-01", "-00");
        assert!(handle(true, 1.0, Some(&unsampled)).1.unwrap().ends_with("-00"));
        assert!(handle(true, 0.0, None).1.unwrap().ends_with("-00"));
        assert!(handle(true, 1.0, None).1.unwrap().ends_with("-01"));
    }

    #[test]
    fn without_traces_the_log_still_has_the_callers_id() {
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
                // Nothing is lost: who reads the JSON has the very text.
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
