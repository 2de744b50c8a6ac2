//! Request and response headers, edited in place: Berth's own and hop-by-hop headers are removed.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use service_kit::http2::{is_hop_by_hop, remove_matching};
use session_proto::error::REASON_TRAILER;
use std::time::Duration;

/// Session id; must match the token.
pub(crate) static SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
/// Name of `authorization` in older Scala clients.
pub(crate) static AUTHENTICATION: HeaderName = HeaderName::from_static("authentication");
/// Outcome of a call, in its trailers.
pub(crate) static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The client's deadline.
pub(crate) static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Returns a header that may occur at most once.
pub(crate) fn at_most_one<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'h HeaderValue>, DuplicateHeader> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(DuplicateHeader),
    }
}

/// The header occurred more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DuplicateHeader;

/// Prepares the backend's response headers or trailers for the client. The reason of a Berth error is
/// never the engine's: `berth` decides by it whether a call may be sent again.
pub(crate) fn toward_client(headers: &mut HeaderMap) {
    remove_matching(headers, |name| name == REASON_TRAILER || is_hop_by_hop(name));
}

/// Parses the client's deadline: up to eight digits and a unit.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_parsed() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(&GRPC_TIMEOUT, HeaderValue::from_static(text));
            grpc_timeout(&headers)
        };
        assert_eq!(read("20S"), Some(Duration::from_secs(20)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("5m"), Some(Duration::from_millis(5)));
        for text in ["", "S", "20", "123456789S", "-1S", "1 S", "1x"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_value_of_a_hop_by_hop_header_is_removed_and_no_other_header() {
        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "transfer-encoding",
            "upgrade",
            "host",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(&GRPC_STATUS, HeaderValue::from_static("0"));
            headers.append(name, HeaderValue::from_static("a"));
            headers.append(name, HeaderValue::from_static("b"));
            headers.append(http::header::PROXY_AUTHORIZATION, HeaderValue::from_static("c"));
            toward_client(&mut headers);
            assert_eq!(headers.len(), 1, "{name}");
            assert!(headers.contains_key(&GRPC_STATUS));
        }
    }

    #[test]
    fn the_reason_of_a_berth_error_is_not_taken_from_an_engine() {
        let mut trailers = HeaderMap::new();
        trailers.insert(&GRPC_STATUS, HeaderValue::from_static("14"));
        trailers.append("berth-reason", HeaderValue::from_static("PROXY_DRAINING"));
        trailers.append("berth-reason", HeaderValue::from_static("BACKEND_UNAVAILABLE"));
        toward_client(&mut trailers);
        assert_eq!(trailers.len(), 1);
        assert!(trailers.contains_key(&GRPC_STATUS));
    }

    #[test]
    fn a_duplicate_header_is_detected() {
        let mut headers = HeaderMap::new();
        assert_eq!(at_most_one(&headers, &SESSION_ID), Ok(None));
        headers.append(&SESSION_ID, HeaderValue::from_static("a"));
        assert!(at_most_one(&headers, &SESSION_ID).unwrap().is_some());
        headers.append(&SESSION_ID, HeaderValue::from_static("a"));
        assert_eq!(at_most_one(&headers, &SESSION_ID), Err(DuplicateHeader));
    }
}
