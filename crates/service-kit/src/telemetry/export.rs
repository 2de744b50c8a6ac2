//! Export of own spans to the OTLP endpoint.

use super::SPANS;
use anyhow::Context as _;
use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample};
use tracing_subscriber::registry::LookupSpan;

/// Samples all own spans, because each exists only in a sampled trace. Spans of
/// libraries, which appear at debug level, are not exported.
#[derive(Debug, Clone)]
pub(super) struct OurSpans;

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

pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl tracing_subscriber::Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SPANS))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
}

pub(super) fn provider(endpoint: &str, service: &'static str) -> anyhow::Result<SdkTracerProvider> {
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
