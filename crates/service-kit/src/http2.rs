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

/// Maximum size of the first data of a request that [`request_capacity`] lets go with its headers.
/// HTTP/2 holds these bytes if the peer's window does not take them.
const MAX_WITH_HEADERS_BYTES: usize = 16 * 1024;

/// [`capacity`] for the data of a request, of which `sent` bytes were sent before. Small first data
/// goes with the headers, in one write: h2 gives a stream no capacity until its headers are written,
/// so data that waited for it would be a second write, which wakes the peer twice.
///
/// # Errors
/// The stream has ended.
pub async fn request_capacity<B: Buf>(
    stream: &mut SendStream<B>,
    sent: usize,
    len: usize,
) -> Result<usize, Closed> {
    if sent == 0 && len <= MAX_WITH_HEADERS_BYTES {
        return Ok(len);
    }
    capacity(stream, len).await
}

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
    use bytes::Bytes;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

    /// Counts writes.
    struct Counted {
        io: DuplexStream,
        writes: Arc<AtomicUsize>,
    }

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.io).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.io).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    async fn serve(io: DuplexStream) {
        let mut connection = h2::server::handshake(io).await.unwrap();
        while let Some(call) = connection.accept().await {
            let (request, mut respond) = call.unwrap();
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(data) = body.data().await {
                    data.unwrap();
                }
                respond.send_response(http::Response::new(()), true).unwrap();
            });
        }
    }

    #[tokio::test]
    async fn small_first_data_goes_with_the_headers() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(far));
        let writes = Arc::new(AtomicUsize::new(0));
        let io = Counted {
            io: near,
            writes: Arc::clone(&writes),
        };
        let (mut client, connection) = h2::client::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut writes_per_call = Vec::new();
        // The first call, whose writes include settings, is not counted.
        for waits in [true, true, false] {
            writes.store(0, Ordering::Relaxed);
            client = client.ready().await.unwrap();
            let request = http::Request::post("http://localhost/").body(()).unwrap();
            let (response, mut stream) = client.send_request(request, false).unwrap();
            let data = Bytes::from_static(b"request");
            let len = data.len();
            let room = if waits {
                capacity(&mut stream, len).await
            } else {
                request_capacity(&mut stream, 0, len).await
            };
            assert_eq!(room, Ok(len));
            stream.send_data(data, true).unwrap();
            response.await.unwrap();
            writes_per_call.push(writes.load(Ordering::Relaxed));
        }
        assert_eq!(
            writes_per_call[1..],
            [2, 1],
            "with waiting for capacity, and without"
        );
    }

    #[tokio::test]
    async fn large_or_later_data_waits_for_capacity() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(far));
        let (client, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("http://localhost/").body(()).unwrap();
        let (_response, mut stream) = client
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        for (sent, len) in [(0, MAX_WITH_HEADERS_BYTES + 1), (1, 1)] {
            let waiting = async {
                let mut room = std::pin::pin!(request_capacity(&mut stream, sent, len));
                poll_fn(|cx| Poll::Ready(room.as_mut().poll(cx).is_pending())).await
            };
            assert!(waiting.await, "{len} bytes after {sent}");
        }
    }

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
