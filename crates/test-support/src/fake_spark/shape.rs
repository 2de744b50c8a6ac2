//! Shapes of responses and their header.

use http::{HeaderMap, HeaderValue};

/// The header with the shape of the response.
pub const SHAPE: &str = "x-shape";

/// Shape of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The body of the request, with initial metadata and trailers.
    Echo,
    /// This many messages of this many bytes each.
    Stream(usize, usize),
    /// The result of a query: this many messages of about so many bytes, with response ids, then
    /// `result_complete`.
    Results(usize, usize),
    /// The same messages, then nothing.
    ResultsThenHang(usize, usize),
    /// The number of bytes of the request body, as decimal text.
    Count,
    /// No response.
    Hang,
    /// Headers and one message, then nothing.
    HangAfterOne,
    /// Trailers alone: INTERNAL with details.
    Error,
    /// Headers and one message, then the connection closes.
    Kill,
    /// The connection closes at once.
    KillAtOnce,
    /// `RST_STREAM(REFUSED_STREAM)`.
    Refuse,
    /// The same for the first such request, [`Shape::Echo`] for all others.
    RefuseOnce,
    /// The error of Apache Spark for an unknown operation.
    SparkUnknown,
    /// The error of Sail for the unknown operation [`OPERATION`](super::OPERATION).
    SailUnknown,
    /// The error of Apache Spark for a missing table.
    MissingTable,
    /// HTTP 503 without gRPC.
    Bare,
    /// A message without trailers.
    NoStatus,
    /// A message and this many bytes of trailers; the status comes last.
    HeavyTrailers(usize),
    /// This many bytes of initial metadata.
    HeavyHead(usize),
    /// The complete result of a query, with this many bytes of initial metadata and of trailers.
    HeavyResult(usize),
}

impl Shape {
    /// The header's value.
    pub fn header(self) -> HeaderValue {
        let text = match self {
            Self::Echo => "echo".to_owned(),
            Self::Stream(count, size) => format!("stream {count} {size}"),
            Self::Results(count, size) => format!("results {count} {size}"),
            Self::ResultsThenHang(count, size) => format!("results-then-hang {count} {size}"),
            Self::Count => "count".to_owned(),
            Self::Hang => "hang".to_owned(),
            Self::HangAfterOne => "hang-after-one".to_owned(),
            Self::Error => "error".to_owned(),
            Self::Kill => "kill".to_owned(),
            Self::KillAtOnce => "kill-at-once".to_owned(),
            Self::Refuse => "refuse".to_owned(),
            Self::RefuseOnce => "refuse-once".to_owned(),
            Self::SparkUnknown => "spark-unknown".to_owned(),
            Self::SailUnknown => "sail-unknown".to_owned(),
            Self::MissingTable => "missing-table".to_owned(),
            Self::Bare => "bare".to_owned(),
            Self::NoStatus => "no-status".to_owned(),
            Self::HeavyTrailers(bytes) => format!("heavy-trailers {bytes}"),
            Self::HeavyHead(bytes) => format!("heavy-head {bytes}"),
            Self::HeavyResult(bytes) => format!("heavy-result {bytes}"),
        };
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("echo"))
    }

    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = headers
            .get(SHAPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("echo");
        let mut words = text.split(' ');
        let word = words.next().unwrap_or("echo");
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match word {
            "stream" => Self::Stream(number(), number()),
            "results" => Self::Results(number(), number()),
            "results-then-hang" => Self::ResultsThenHang(number(), number()),
            "count" => Self::Count,
            "hang" => Self::Hang,
            "hang-after-one" => Self::HangAfterOne,
            "error" => Self::Error,
            "kill" => Self::Kill,
            "kill-at-once" => Self::KillAtOnce,
            "refuse" => Self::Refuse,
            "refuse-once" => Self::RefuseOnce,
            "spark-unknown" => Self::SparkUnknown,
            "sail-unknown" => Self::SailUnknown,
            "missing-table" => Self::MissingTable,
            "bare" => Self::Bare,
            "no-status" => Self::NoStatus,
            "heavy-trailers" => Self::HeavyTrailers(number()),
            "heavy-head" => Self::HeavyHead(number()),
            "heavy-result" => Self::HeavyResult(number()),
            _ => Self::Echo,
        }
    }
}
