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
pub(super) struct Reply {
    state: State,
}

enum State {
    /// Nothing has been sent.
    Fresh(SendResponse<Bytes>),
    /// Response headers have been sent.
    Begun(SendStream<Bytes>),
    /// Everything has been sent.
    Done,
}

impl Reply {
    pub(super) fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            state: State::Fresh(respond),
        }
    }

    /// Sends response headers; `end` means that nothing follows.
    pub(super) fn begin(&mut self, head: Response<()>, end: bool) -> Result<(), ClientGone> {
        let State::Fresh(respond) = &mut self.state else {
            return Err(ClientGone);
        };
        let stream = respond.send_response(head, end).map_err(|_| ClientGone)?;
        self.state = if end { State::Done } else { State::Begun(stream) };
        Ok(())
    }

    /// Waits until the client takes some of `len` bytes; returns how many. More would be held by
    /// HTTP/2.
    pub(super) fn poll_room(&mut self, len: usize, cx: &mut Context<'_>) -> Poll<Result<usize, ClientGone>> {
        match &mut self.state {
            State::Begun(stream) => {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(ClientGone));
                }
                poll_capacity(stream, len, cx).map_err(|Closed| ClientGone)
            }
            State::Fresh(_) | State::Done => Poll::Ready(Err(ClientGone)),
        }
    }

    /// Sends response bytes, within [`Self::poll_room`].
    pub(super) fn data(&mut self, data: Bytes) -> Result<(), ClientGone> {
        match &mut self.state {
            State::Begun(stream) => stream.send_data(data, false).map_err(|_| ClientGone),
            State::Fresh(_) | State::Done => Err(ClientGone),
        }
    }

    /// Sends trailers, which end the response.
    pub(super) fn trailers(&mut self, trailers: HeaderMap) -> Result<(), ClientGone> {
        let State::Begun(stream) = &mut self.state else {
            return Err(ClientGone);
        };
        stream.send_trailers(trailers).map_err(|_| ClientGone)?;
        self.state = State::Done;
        Ok(())
    }

    /// Ends the call with `status`, in any state.
    pub(super) fn fail(&mut self, status: &Status) {
        // Fails only if the client is gone.
        let _ = match &mut self.state {
            State::Fresh(respond) => respond.send_response(trailers_only(status), true).map(drop),
            State::Begun(stream) => stream.send_trailers(trailers(status)),
            State::Done => Ok(()),
        };
        self.state = State::Done;
    }

    /// Answers with a text, for programs that are no gRPC clients.
    pub(super) fn text(&mut self, head: Response<()>, text: &'static str) {
        if self.begin(head, false).is_ok()
            && let State::Begun(stream) = &mut self.state
        {
            // Fails only if the client is gone.
            let _ = stream.send_data(Bytes::from_static(text.as_bytes()), true);
            self.state = State::Done;
        }
    }

    /// Waits until the client is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Fresh(respond) => respond.poll_reset(cx).map(drop),
            State::Begun(stream) => stream.poll_reset(cx).map(drop),
            State::Done => Poll::Pending,
        }
    }
}

impl Drop for Reply {
    /// A call whose task is dropped must not end like a successful one.
    fn drop(&mut self) {
        match &mut self.state {
            State::Fresh(respond) => respond.send_reset(Reason::CANCEL),
            State::Begun(stream) => stream.send_reset(Reason::CANCEL),
            State::Done => {}
        }
    }
}
