//! The client's side of a call: its response, or an error of the forwarder itself, always as a gRPC
//! status.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, Response};
use service_kit::http2::{Closed, poll_capacity};
use session_proto::reply::{trailers, trailers_only};
use std::task::{Context, Poll};
use tonic::Status;

/// The client disconnected or cancelled the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientGone;

/// The client's stream of one call, which carries its response.
pub(super) enum Reply {
    /// Nothing has been sent.
    Fresh(SendResponse<Bytes>),
    /// Response headers have been sent.
    Begun(SendStream<Bytes>),
    /// Everything has been sent.
    Done,
}

impl Reply {
    /// Sends response headers; `end` means that nothing follows.
    pub(super) fn begin(&mut self, head: Response<()>, end: bool) -> Result<(), ClientGone> {
        let Self::Fresh(respond) = self else {
            return Err(ClientGone);
        };
        let stream = respond.send_response(head, end).map_err(|_| ClientGone)?;
        *self = if end { Self::Done } else { Self::Begun(stream) };
        Ok(())
    }

    /// Waits until the client takes some of `len` bytes; returns how many. More would be held by
    /// HTTP/2.
    pub(super) fn poll_room(&mut self, len: usize, cx: &mut Context<'_>) -> Poll<Result<usize, ClientGone>> {
        match self {
            Self::Begun(stream) => {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(ClientGone));
                }
                poll_capacity(stream, len, cx).map_err(|Closed| ClientGone)
            }
            Self::Fresh(_) | Self::Done => Poll::Ready(Err(ClientGone)),
        }
    }

    /// Sends response bytes, within [`Self::poll_room`].
    pub(super) fn data(&mut self, data: Bytes) -> Result<(), ClientGone> {
        match self {
            Self::Begun(stream) => stream.send_data(data, false).map_err(|_| ClientGone),
            Self::Fresh(_) | Self::Done => Err(ClientGone),
        }
    }

    /// Sends trailers, which end the response.
    pub(super) fn trailers(&mut self, trailers: HeaderMap) -> Result<(), ClientGone> {
        let Self::Begun(stream) = self else {
            return Err(ClientGone);
        };
        stream.send_trailers(trailers).map_err(|_| ClientGone)?;
        *self = Self::Done;
        Ok(())
    }

    /// Ends the call with `status`, in any state.
    pub(super) fn fail(&mut self, status: &Status) {
        // Fails only if the client is gone.
        let _ = match self {
            Self::Fresh(respond) => respond.send_response(trailers_only(status), true).map(drop),
            Self::Begun(stream) => stream.send_trailers(trailers(status)),
            Self::Done => Ok(()),
        };
        *self = Self::Done;
    }

    /// Answers with a text, for programs that are no gRPC clients.
    pub(super) fn text(&mut self, head: Response<()>, text: String) {
        if self.begin(head, false).is_ok()
            && let Self::Begun(stream) = self
        {
            // Fails only if the client is gone.
            let _ = stream.send_data(Bytes::from(text), true);
            *self = Self::Done;
        }
    }

    /// Waits until the client is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Fresh(respond) => respond.poll_reset(cx).map(drop),
            Self::Begun(stream) => stream.poll_reset(cx).map(drop),
            Self::Done => Poll::Pending,
        }
    }
}

impl Drop for Reply {
    /// A call whose task is dropped must not end like a successful one.
    fn drop(&mut self) {
        match self {
            Self::Fresh(respond) => respond.send_reset(Reason::CANCEL),
            Self::Begun(stream) => stream.send_reset(Reason::CANCEL),
            Self::Done => {}
        }
    }
}
