//! Parts of HTTP/2 proxies that use the `h2` crate directly: sizes and names of headers, waiting for
//! flow-control capacity, and the classification of lost streams.

use bytes::Buf;
use h2::SendStream;
use http::HeaderMap;
use http::uri::{Authority, PathAndQuery};
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

/// Size of a request's header list, as HTTP/2 counts it.
pub fn list_size<B>(request: &http::Request<B>) -> usize {
    /// Overhead of each field.
    const FIELD: usize = 32;
    let uri = request.uri();
    let pseudo = [
        (":method", request.method().as_str()),
        (":scheme", uri.scheme_str().unwrap_or_default()),
        (":authority", uri.authority().map_or("", Authority::as_str)),
        (":path", uri.path_and_query().map_or("", PathAndQuery::as_str)),
    ];
    let pseudo = pseudo.iter().map(|(name, value)| name.len() + value.len());
    let named = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    pseudo.chain(named).map(|bytes| bytes + FIELD).sum()
}

/// Whether a header is for one connection only; h2 itself accepts most of these from no peer.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "transfer-encoding"
            | "upgrade"
            | "host"
    )
}

/// Removes the headers whose names match: few or none in nearly every request, so that a look at
/// the names costs less than the look-up of each.
pub fn remove_matching(headers: &mut HeaderMap, matches: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| matches(name.as_str())) {
        let name = name.clone();
        headers.remove(name);
    }
}

/// The peer accepts no more data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// Waits until a stream can take more; returns how much. h2 buffers data beyond the window.
///
/// # Errors
/// The stream has ended.
pub async fn capacity<B: Buf>(stream: &mut SendStream<B>, len: usize) -> Result<usize, Closed> {
    poll_fn(|cx| poll_capacity(stream, len, cx)).await
}

/// [`capacity`] as a poll function.
pub fn poll_capacity<B: Buf>(
    stream: &mut SendStream<B>,
    len: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, Closed>> {
    if len == 0 {
        return Poll::Ready(Ok(0));
    }
    stream.reserve_capacity(len);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Closed)),
        }
    }
    Poll::Ready(Ok(stream.capacity()))
}

/// Whether the peer provably processed nothing of a lost stream: only REFUSED_STREAM, or a GOAWAY
/// below the stream id, proves it.
pub fn is_not_processed(error: &h2::Error) -> bool {
    error.is_remote()
        && match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
            Some(h2::Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_lists_are_counted_as_http2_counts_them() {
        let request = http::Request::post("http://localhost/path")
            .header("ab", "cde")
            .body(())
            .unwrap();
        let bytes = [":method", "POST", ":scheme", "http", ":authority", "localhost"];
        let bytes: usize = bytes.iter().map(|text| text.len()).sum();
        let rest = ":path".len() + "/path".len() + "ab".len() + "cde".len();
        assert_eq!(list_size(&request), bytes + rest + 5 * 32);
    }
}
