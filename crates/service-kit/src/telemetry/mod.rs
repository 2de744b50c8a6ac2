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

mod config;
mod export;
mod logs;
mod propagation;
mod sampling;
mod spans;
#[cfg(test)]
pub(crate) mod tests;

pub use config::{LogFormat, TelemetryConfig};
pub use propagation::{adopt, incoming_trace_id, inject, record_trace_id};
pub use sampling::{is_chosen, is_sampled};

use anyhow::Context as _;
use logs::OneLine;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// The `tracing` target of all own spans. Spans of libraries are not exported.
pub const SPANS: &str = "berth";

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
        .map(|endpoint| export::provider(endpoint, service))
        .transpose()?;
    // One filter for all layers: with one per layer, tracing-subscriber loses
    // spans after `tracing::enabled!` and the equivalent macros of `log`.
    tracing_subscriber::registry()
        .with(filter)
        .with(provider.as_ref().map(export::layer))
        .with(logs)
        .try_init()
        .context("telemetry")?;
    if provider.is_some() {
        sampling::set_ratio(config.sample_ratio);
    }
    logs::log_panics();
    Ok(Telemetry { provider })
}
