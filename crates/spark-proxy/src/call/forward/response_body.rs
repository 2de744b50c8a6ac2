//! Reads the response body of the compute.

use crate::call_error::{CallError, backend_lost};
use crate::upstream::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use service_kit::http2::is_not_processed;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

/// Available response frames below this size are joined.
const MIN_FRAME_BYTES: usize = 4 * 1024;
/// Maximum size of joined frames.
const MAX_JOINED_BYTES: usize = 32 * 1024;

/// Bytes for one frame, the number of bytes read for them, and whether they are the last.
pub(crate) type Joined = (Bytes, usize, bool);

/// Reads the next bytes; small frames that are available together are joined.
pub(crate) fn poll_joined(body: &mut Body, cx: &mut Context<'_>) -> Poll<Result<Joined, CallError>> {
    let first = match ready!(body.poll_data(cx)) {
        None => return Poll::Ready(Ok((Bytes::new(), 0, true))),
        Some(data) => data.map_err(|error| stream_error(&error))?,
    };
    if first.len() >= MIN_FRAME_BYTES {
        let taken = first.len();
        return Poll::Ready(Ok((first, taken, false)));
    }
    let mut joined = BytesMut::new();
    let mut ended = false;
    while first.len() + joined.len() < MAX_JOINED_BYTES {
        match body.poll_data(cx) {
            Poll::Pending => break,
            Poll::Ready(None) => {
                ended = true;
                break;
            }
            Poll::Ready(Some(data)) => {
                let data = data.map_err(|error| stream_error(&error))?;
                if joined.is_empty() {
                    joined.reserve(MAX_JOINED_BYTES);
                    joined.extend_from_slice(&first);
                }
                joined.extend_from_slice(&data);
            }
        }
    }
    let data = if joined.is_empty() { first } else { joined.freeze() };
    let taken = data.len();
    Poll::Ready(Ok((data, taken, ended)))
}

pub(crate) async fn read_trailers(body: &mut Body) -> Result<Option<HeaderMap>, CallError> {
    poll_fn(|cx| body.poll_trailers(cx))
        .await
        .map_err(|error| stream_error(&error))
}

/// Classifies the loss of an upstream stream.
pub(crate) fn stream_error(error: &h2::Error) -> CallError {
    let refused = is_not_processed(error);
    tracing::debug!(%error, refused, "compute stream lost");
    if refused {
        CallError::NotProcessed
    } else {
        CallError::Refused(backend_lost(
            "The connection to the compute was lost while the call ran.",
        ))
    }
}
