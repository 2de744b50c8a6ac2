//! Spans and log lines under a subscriber.

use super::export::OurSpans;
use super::logs::OneLine;
use super::{export, inject, sampling};
use http::HeaderMap;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::io;
use std::sync::{Arc, Mutex};
use tracing_subscriber::Layer as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

const INCOMING: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The writer of a log that the test reads.
#[derive(Clone, Default)]
pub(crate) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

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
    let layer = traces.then(|| export::layer(&provider));
    sampling::set_ratio(ratio);
    let buffer = Buffer::default();
    let logs = tracing_subscriber::fmt::layer()
        .json()
        .with_writer(buffer.clone());
    let subscriber = tracing_subscriber::registry().with(layer).with(logs);
    tracing::subscriber::with_default(subscriber, work);
    buffer.text()
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
        let log = buffer.text();
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
