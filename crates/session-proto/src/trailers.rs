//! Trailers of a size that gRPC clients accept.
//!
//! A gRPC client limits the header list of a response. Larger trailers are dropped, and the caller
//! gets a status of its own library (`RESOURCE_EXHAUSTED: received metadata size exceeds soft
//! limit`). HTTP/2 counts names, values and 32 bytes for each field. Limits of released clients:
//!
//! | client | limit |
//! |---|---|
//! | grpc-core (PySpark), measured with grpcio 1.85.1 | 8 KiB always accepted, above that rejected at random, 16 KiB always rejected |
//! | grpc-java (Scala, JDBC) | 8 KiB |
//! | hyper (Rust) | 16 KiB |
//! | grpc-go | 16 MiB |
//!
//! A text costs more than its length: `grpc-message` is percent-encoded (9 bytes for a CJK letter),
//! and `grpc-status-details-bin` repeats it in base64 (4 more bytes).

use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use std::borrow::Cow;
use tonic::Status;
use tonic::metadata::{Binary, MetadataMap, MetadataValue};
use tonic_types::pb;

/// Trailer with the reason of every Berth error.
pub const REASON_TRAILER: &str = "berth-reason";

/// Maximum size of the trailers: 8 KiB of the strictest clients, less what load balancers in front
/// of Berth may add.
pub const MAX_TRAILERS_BYTES: usize = 7 * 1024;
/// Maximum cost of a Berth error text, as [`text_cost`] counts it: a status with such a text always
/// fits.
pub const MAX_TEXT_COST: usize = 4 * 1024;
/// Maximum length of a metadata value of a Berth error.
pub const MAX_METADATA_VALUE: usize = 256;

/// Overhead of each field in HTTP/2.
const FIELD: usize = 32;
/// `:status: 200`, which belongs to the list of a trailers-only response.
const STATUS_FIELD: usize = ":status".len() + "200".len() + FIELD;
/// Details are not cut while they leave this much for the text.
const ENOUGH_TEXT_COST: usize = 2 * 1024;
/// Maximum size of metadata that stays in cut details.
const SMALL_DETAIL: usize = 256;
/// Maximum size of all details once they are cut.
const MAX_DETAILS: usize = 3 * 1024;
const NOTE: &str = "… [cut: too long for gRPC clients]";

const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Trailers that are never removed.
const NEEDED: [HeaderName; 5] = [
    HeaderName::from_static("grpc-status"),
    MESSAGE,
    DETAILS,
    HeaderName::from_static("content-type"),
    HeaderName::from_static(REASON_TRAILER),
];
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
/// Metadata of ErrorInfo from which clients build the exception, most important first.
const ERROR_METADATA: [&str; 5] = [
    "errorClass",
    "errorId",
    "classes",
    "sqlState",
    "messageParameters",
];

/// The size of a header list as HTTP/2 counts it, `:status` included.
pub fn list_size(headers: &HeaderMap) -> usize {
    let fields = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    STATUS_FIELD + fields.sum::<usize>()
}

/// Parses a foreign status from trailers. Details that are not base64 are ignored:
/// [`Status::from_header_map`] panics on them.
pub fn status_of(trailers: &HeaderMap) -> Option<Status> {
    if !trailers.contains_key(&DETAILS) {
        return Status::from_header_map(trailers);
    }
    let metadata = MetadataMap::from_headers(trailers.clone());
    if metadata
        .get_all_bin(DETAILS.as_str())
        .iter()
        .all(|value| value.to_bytes().is_ok())
    {
        return Status::from_header_map(trailers);
    }
    let mut trailers = trailers.clone();
    trailers.remove(&DETAILS);
    Status::from_header_map(&trailers)
}

/// Appends `note` to the error text in trailers; other details are kept.
pub fn append_text(trailers: &mut HeaderMap, note: &str) {
    let Some(status) = status_of(trailers) else { return };
    let text = format!("{}{note}", status.message());
    trailers.insert(MESSAGE, percent_encoded(&text));
    if let Some(mut details) = Some(status.details())
        .filter(|details| !details.is_empty())
        .and_then(|details| pb::Status::decode(details).ok())
    {
        // Clients reject details with another text than the status.
        details.message = text;
        let encoded = MetadataValue::<Binary>::from_bytes(&details.encode_to_vec());
        if let Ok(value) = HeaderValue::from_bytes(encoded.as_encoded_bytes()) {
            trailers.insert(DETAILS, value);
        }
    }
}

/// Cuts the headers that end a response to a size that every client accepts. Code and error class
/// stay; the text is cut at a character boundary and marked. Trailers within the limit are
/// unchanged.
///
/// Returns whether something was cut.
pub fn fit(trailers: &mut HeaderMap) -> bool {
    if list_size(trailers) <= MAX_TRAILERS_BYTES {
        return false;
    }
    remove_largest_foreign(trailers);
    if list_size(trailers) <= MAX_TRAILERS_BYTES {
        return true;
    }
    let (text, details) = match status_of(trailers) {
        Some(status) => {
            let details = Some(status.details()).filter(|details| !details.is_empty());
            (
                status.message().to_owned(),
                details.and_then(|details| pb::Status::decode(details).ok()),
            )
        }
        None => (String::new(), None),
    };
    trailers.remove(&MESSAGE);
    trailers.remove(&DETAILS);
    let mut room = MAX_TRAILERS_BYTES.saturating_sub(list_size(trailers) + MESSAGE.as_str().len() + FIELD);
    let details = details.map(|mut details| {
        details.message.clear();
        room = room.saturating_sub(DETAILS.as_str().len() + FIELD + PROTO_FIELD);
        if room.saturating_sub(base64_len(details.encoded_len())) < ENOUGH_TEXT_COST {
            shrink(&mut details);
        }
        room = room.saturating_sub(base64_len(details.encoded_len()));
        details
    });
    let text = cut(&text, room, details.is_some());
    trailers.insert(MESSAGE, percent_encoded(&text));
    if let Some(mut details) = details {
        // Clients reject details with another text than the status.
        details.message = text.into_owned();
        let encoded = MetadataValue::<Binary>::from_bytes(&details.encode_to_vec());
        if let Ok(value) = HeaderValue::from_bytes(encoded.as_encoded_bytes()) {
            trailers.insert(DETAILS, value);
        }
    }
    true
}

/// Removes trailers that are not part of the status, largest first, until they take at most half of
/// the limit.
fn remove_largest_foreign(trailers: &mut HeaderMap) {
    let mut foreign: Vec<(usize, HeaderName)> = trailers
        .keys()
        .filter(|name| !NEEDED.contains(name))
        .map(|name| {
            let values = trailers.get_all(name).iter();
            let bytes = values.map(|value| name.as_str().len() + value.len() + FIELD);
            (bytes.sum(), name.clone())
        })
        .collect();
    foreign.sort_unstable_by_key(|(bytes, _)| *bytes);
    let mut total: usize = foreign.iter().map(|(bytes, _)| bytes).sum();
    while total > MAX_TRAILERS_BYTES / 2
        && let Some((bytes, name)) = foreign.pop()
    {
        trailers.remove(&name);
        total -= bytes;
    }
}

/// Removes details that clients do not need.
fn shrink(details: &mut pb::Status) {
    let mut room = MAX_DETAILS;
    for detail in &mut details.details {
        if detail.type_url == ERROR_INFO
            && let Ok(info) = pb::ErrorInfo::decode(&*detail.value)
        {
            detail.value = shrunk(info).encode_to_vec();
        }
    }
    // ErrorInfo first: it identifies the error.
    details
        .details
        .sort_by_key(|detail| detail.type_url != ERROR_INFO);
    details.details.retain(|detail| {
        let len = detail.encoded_len();
        let keep = len <= room && (detail.type_url == ERROR_INFO || len <= SMALL_DETAIL);
        if keep {
            room -= len;
        }
        keep
    });
}

/// Keeps ErrorInfo metadata that is small or required. Values are never cut: some are JSON.
fn shrunk(mut info: pb::ErrorInfo) -> pb::ErrorInfo {
    cut_at_char(&mut info.reason, MAX_METADATA_VALUE);
    cut_at_char(&mut info.domain, MAX_METADATA_VALUE);
    let mut kept = std::collections::HashMap::new();
    let mut room = MAX_DETAILS / 2;
    for name in ERROR_METADATA {
        if let Some(value) = info.metadata.remove(name)
            && name.len() + value.len() <= room
        {
            room -= name.len() + value.len();
            kept.insert(name.to_owned(), value);
        }
    }
    let mut others: Vec<_> = info.metadata.into_iter().collect();
    others.sort_unstable_by_key(|(name, value)| name.len() + value.len());
    for (name, value) in others {
        let len = name.len() + value.len();
        if len > SMALL_DETAIL || len > room {
            break;
        }
        room -= len;
        kept.insert(name, value);
    }
    info.metadata = kept;
    info
}

/// Shortens a Berth error text to the size that every client accepts.
pub fn short_text(text: &str) -> Cow<'_, str> {
    cut(text, MAX_TEXT_COST, true)
}

/// Cuts a text to at most `most` bytes, at a character boundary.
pub fn cut_at_char(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

/// Cost of a text in the header list of a response: in `grpc-message`, and again in the details if
/// there are any.
fn text_cost(text: &str, in_details: bool) -> usize {
    let message: usize = text.bytes().map(encoded_len).sum();
    message + if in_details { base64_len(text.len()) } else { 0 }
}

/// Cuts the text to a cost of at most `most`.
fn cut(text: &str, most: usize, in_details: bool) -> Cow<'_, str> {
    if text_cost(text, in_details) <= most {
        return Cow::Borrowed(text);
    }
    let most = most.saturating_sub(text_cost(NOTE, in_details));
    let mut cost = 0;
    let mut end = 0;
    for (at, char) in text.char_indices() {
        let next = at + char.len_utf8();
        cost += text[at..next].bytes().map(encoded_len).sum::<usize>();
        let details = if in_details { base64_len(next) } else { 0 };
        if cost + details > most {
            break;
        }
        end = next;
    }
    Cow::Owned(format!("{}{NOTE}", &text[..end]))
}

/// Tag and length of the text in the details.
const PROTO_FIELD: usize = 8;

/// Length in base64 without padding, rounded up.
const fn base64_len(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Whether the byte is not percent-encoded. gRPC allows more; tonic, which encodes the errors of
/// the APIs, does not.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'#' | b'%' | b'<' | b'>' | b'?' | b'`' | b'{' | b'}')
}

const fn encoded_len(byte: u8) -> usize {
    if is_plain(byte) { 1 } else { 3 }
}

/// Encodes a text for `grpc-message`.
fn percent_encoded(text: &str) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain(byte) {
            encoded.push(byte);
        } else {
            encoded.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
        }
    }
    // Contains printable ASCII only.
    HeaderValue::from_bytes(&encoded).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Refused, reason_of};
    use session_core::Reason;
    use std::collections::HashMap;
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt as _};

    fn headers(status: &Status) -> HeaderMap {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers
    }

    /// An error as Apache Spark encodes it.
    fn spark(text: &str, more: &[(&str, String)]) -> Status {
        let mut metadata = HashMap::from([
            ("errorClass".to_owned(), "PARSE_SYNTAX_ERROR".to_owned()),
            (
                "errorId".to_owned(),
                "5f2c3c1e-0d3b-4d0a-9d0e-6f1f6f1f6f1f".to_owned(),
            ),
            ("sqlState".to_owned(), "42601".to_owned()),
            (
                "classes".to_owned(),
                r#"["org.apache.spark.sql.AnalysisException"]"#.to_owned(),
            ),
        ]);
        metadata.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        let details = ErrorDetails::with_error_info(
            "org.apache.spark.sql.AnalysisException",
            "org.apache.spark",
            metadata,
        );
        Status::with_error_details(Code::Internal, text, details)
    }

    /// Checks the requirements of clients: within the limit, the same text twice, a class.
    fn checked(trailers: &HeaderMap) -> Status {
        assert!(
            list_size(trailers) <= MAX_TRAILERS_BYTES,
            "{}",
            list_size(trailers)
        );
        let status = Status::from_header_map(trailers).unwrap();
        let details = pb::Status::decode(status.details()).unwrap();
        assert_eq!(details.message, status.message());
        assert_eq!(details.code, i32::from(status.code()));
        status
    }

    #[test]
    fn what_fits_is_left_alone() {
        let mut trailers = headers(&spark("[PARSE_SYNTAX_ERROR] short", &[]));
        let before = trailers.clone();
        assert!(!fit(&mut trailers));
        assert_eq!(trailers, before);
    }

    #[test]
    fn a_long_text_is_cut_at_a_character_and_keeps_its_class() {
        for unit in ["查", "a", "é", "🦀", "%", " ", "\n", "a查"] {
            for count in [900, 901, 902, 5000, 100_000] {
                let text = unit.repeat(count);
                let mut trailers = headers(&spark(&text, &[]));
                if !fit(&mut trailers) {
                    continue;
                }
                let status = checked(&trailers);
                let kept = status.message().strip_suffix(NOTE).unwrap();
                assert!(text.starts_with(kept), "{unit:?} {count}");
                assert!(
                    list_size(&trailers) > MAX_TRAILERS_BYTES - 64,
                    "as much as fits: {unit:?} {count} {}",
                    list_size(&trailers)
                );
                let info = status.get_details_error_info().unwrap();
                assert_eq!(info.metadata["errorClass"], "PARSE_SYNTAX_ERROR");
                assert_eq!(info.metadata["errorId"], "5f2c3c1e-0d3b-4d0a-9d0e-6f1f6f1f6f1f");
            }
        }
    }

    #[test]
    fn a_text_without_details_is_cut_too() {
        let mut trailers = headers(&Status::internal("查".repeat(900)));
        assert!(fit(&mut trailers));
        assert!(list_size(&trailers) <= MAX_TRAILERS_BYTES);
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().starts_with("查查") && status.message().ends_with(NOTE));
        assert!(!trailers.contains_key("grpc-status-details-bin"));
    }

    #[test]
    fn long_details_keep_the_class_and_the_error_id() {
        let parameters = format!(r#"{{"error":"{}"}}"#, "x".repeat(6000));
        let more = [
            ("stackTrace", "at org.apache.spark\n".repeat(1000)),
            ("messageParameters", parameters),
            ("note", "small".to_owned()),
        ];
        let mut trailers = headers(&spark(&"查".repeat(3000), &more));
        assert!(fit(&mut trailers));
        let status = checked(&trailers);
        assert!(status.message().len() > 300, "{}", status.message());
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata["errorClass"], "PARSE_SYNTAX_ERROR");
        assert_eq!(info.metadata["sqlState"], "42601");
        assert_eq!(info.metadata["note"], "small");
        assert!(info.metadata.contains_key("errorId"));
        assert!(info.metadata.contains_key("classes"));
        assert!(!info.metadata.contains_key("stackTrace"));
        assert!(!info.metadata.contains_key("messageParameters"));
    }

    #[test]
    fn other_details_go_before_the_class() {
        let mut status = pb::Status {
            code: 13,
            message: "short".to_owned(),
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/google.rpc.DebugInfo".to_owned(),
                value: vec![7; 20_000],
            }],
        };
        let with_class = headers(&spark("short", &[]));
        let class = Status::from_header_map(&with_class).unwrap();
        status
            .details
            .extend(pb::Status::decode(class.details()).unwrap().details);
        let mut trailers = headers(&Status::with_details(
            Code::Internal,
            "short",
            status.encode_to_vec().into(),
        ));
        assert!(fit(&mut trailers));
        let status = checked(&trailers);
        assert_eq!(status.message(), "short");
        assert!(status.get_details_error_info().is_some());
    }

    #[test]
    fn other_trailers_go_before_the_status() {
        let mut trailers = headers(&spark("short", &[]));
        trailers.insert("x-engine", HeaderValue::from_str(&"y".repeat(20_000)).unwrap());
        trailers.insert("x-small", HeaderValue::from_static("kept"));
        let message = trailers["grpc-message"].clone();
        assert!(fit(&mut trailers));
        assert_eq!(trailers["grpc-message"], message);
        assert_eq!(trailers["x-small"], "kept");
        assert!(!trailers.contains_key("x-engine"));
        checked(&trailers);
    }

    #[test]
    fn broken_trailers_end_within_the_bound() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
        trailers.insert(
            "grpc-message",
            HeaderValue::from_str(&"%E6".repeat(9000)).unwrap(),
        );
        trailers.insert(
            "grpc-status-details-bin",
            HeaderValue::from_str(&"!".repeat(9000)).unwrap(),
        );
        assert!(fit(&mut trailers));
        assert!(list_size(&trailers) <= MAX_TRAILERS_BYTES);
        assert_eq!(trailers["grpc-status"], "13");
        let mut trailers = headers(&Status::internal("text"));
        trailers.insert("grpc-status-details-bin", HeaderValue::from_static("!"));
        let status = status_of(&trailers).unwrap();
        assert_eq!((status.code(), status.message()), (Code::Internal, "text"));
    }

    #[test]
    fn every_error_of_berth_fits() {
        for reason in Reason::ALL.iter().copied() {
            for text in ["查".repeat(900), "a".repeat(20_000)] {
                let status = Refused::new(reason, text)
                    .with("cause", "因".repeat(5000))
                    .with("field", "f".repeat(5000))
                    .into_status();
                let trailers = headers(&status);
                assert!(
                    list_size(&trailers) <= MAX_TRAILERS_BYTES,
                    "{reason} {}",
                    list_size(&trailers)
                );
                assert_eq!(reason_of(&status), Some(reason));
                assert!(status.message().ends_with(NOTE));
            }
        }
    }
}
