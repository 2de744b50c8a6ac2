//! Every reply of the proxy itself: trailers-only before the response has begun, trailers
//! afterwards. Never a bare HTTP status.

use crate::grpc::unsent::Unsent;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Response, header};
use service_kit::http2::{Closed, poll_capacity};
use session_core::Reason as Why;
use session_proto::error::{REASON_TRAILER, Refused};
use session_proto::ports::{Port, check_sent};
use session_proto::reply::{self, trailers_only};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::metadata::MetadataValue;

/// The client disconnected or cancelled the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientGone;

/// The client's stream of one call, which carries its response.
pub(crate) struct ClientStream {
    /// Borrowed for one step at a time, never across an await.
    state: RefCell<StreamState>,
    /// Unsent bytes of the connection.
    unsent: Rc<Unsent>,
    /// The call continues when the client disconnects.
    outlives_client: Cell<bool>,
}

enum StreamState {
    /// Nothing has been sent.
    Fresh(SendResponse<Bytes>),
    /// Response headers have been sent.
    Begun(SendStream<Bytes>),
    /// Everything has been sent.
    Done,
}

impl ClientStream {
    pub(crate) fn new(respond: SendResponse<Bytes>, unsent: &Rc<Unsent>) -> Self {
        Self {
            state: RefCell::new(StreamState::Fresh(respond)),
            unsent: Rc::clone(unsent),
            outlives_client: Cell::default(),
        }
    }

    /// Whether nothing has been sent.
    pub(crate) fn is_fresh(&self) -> bool {
        matches!(*self.state.borrow(), StreamState::Fresh(_))
    }

    /// Ends the call with a Berth error, in any state.
    pub(crate) fn refuse(&self, refused: Refused) {
        let compressed = refused.reason == Why::CompressedRequest;
        let mut status = refused.into_status();
        if compressed {
            // Names the accepted encodings.
            status.metadata_mut().insert(
                "grpc-accept-encoding",
                MetadataValue::from_static("identity,gzip"),
            );
        }
        self.fail(&status);
    }

    /// Ends the call with `status`, in any state.
    pub(crate) fn fail(&self, status: &Status) {
        if let Some(reason) = status.metadata().get(REASON_TRAILER) {
            check_sent(Port::SparkConnect, reason.as_bytes());
        }
        let mut state = self.state.borrow_mut();
        let sent = match &mut *state {
            StreamState::Fresh(respond) => respond.send_response(trailers_only(status), true).map(|_| ()),
            StreamState::Begun(stream) => stream.send_trailers(reply::trailers(status)),
            StreamState::Done => Ok(()),
        };
        if sent.is_err() {
            tracing::debug!("sending the error failed: client disconnected");
        }
        *state = StreamState::Done;
    }

    /// Replies with one message and OK.
    pub(crate) fn reply(&self, message: Bytes) -> Result<(), ClientGone> {
        let mut head = Response::new(());
        head.headers_mut().insert(header::CONTENT_TYPE, GRPC);
        self.begin(head, false)?;
        self.data(message, false)?;
        self.trailers(reply::trailers(&Status::ok("")))
    }

    /// Sends response headers; `end` means that nothing follows.
    pub(crate) fn begin(&self, mut head: Response<()>, end: bool) -> Result<(), ClientGone> {
        if end {
            fit(head.headers_mut());
        }
        let mut state = self.state.borrow_mut();
        let StreamState::Fresh(respond) = &mut *state else {
            return Err(ClientGone);
        };
        let stream = respond.send_response(head, end).map_err(|_| ClientGone)?;
        *state = if end {
            StreamState::Done
        } else {
            StreamState::Begun(stream)
        };
        Ok(())
    }

    /// Waits until the client can take some of `len` available bytes; returns how many. More would
    /// be buffered by HTTP/2.
    pub(crate) async fn capacity(&self, len: usize) -> Result<usize, ClientGone> {
        let capacity = || {
            poll_fn(|cx| match &mut *self.state.borrow_mut() {
                StreamState::Begun(stream) => poll_capacity(stream, len, cx).map_err(|Closed| ClientGone),
                StreamState::Fresh(_) | StreamState::Done => Poll::Ready(Err(ClientGone)),
            })
        };
        loop {
            capacity().await?;
            self.unsent.room().await;
            // The capacity may have changed meanwhile.
            if let Some(room) = self.room(len)? {
                return Ok(room);
            }
        }
    }

    /// Bytes that the client can take now; `None` if none.
    fn room(&self, len: usize) -> Result<Option<usize>, ClientGone> {
        let StreamState::Begun(stream) = &*self.state.borrow() else {
            return Err(ClientGone);
        };
        let room = stream.capacity();
        Ok((room > 0 || len == 0).then_some(room))
    }

    /// Sends response bytes.
    pub(crate) fn data(&self, data: Bytes, end: bool) -> Result<(), ClientGone> {
        let mut state = self.state.borrow_mut();
        let StreamState::Begun(stream) = &mut *state else {
            return Err(ClientGone);
        };
        self.unsent.add(data.len());
        stream.send_data(data, end).map_err(|_| ClientGone)?;
        if end {
            *state = StreamState::Done;
        }
        Ok(())
    }

    /// Sends trailers, which end the response.
    pub(crate) fn trailers(&self, mut trailers: HeaderMap) -> Result<(), ClientGone> {
        fit(&mut trailers);
        let mut state = self.state.borrow_mut();
        let StreamState::Begun(stream) = &mut *state else {
            return Err(ClientGone);
        };
        stream.send_trailers(trailers).map_err(|_| ClientGone)?;
        *state = StreamState::Done;
        Ok(())
    }

    /// Runs `future` until it ends or the client disconnects.
    pub(crate) async fn unless_gone<F: Future>(&self, future: F) -> Result<F::Output, ClientGone> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if self.outlives_client.get() => Poll::Pending,
            Poll::Pending => self.poll_gone(cx).map(|()| Err(ClientGone)),
        })
        .await
    }

    /// Sets whether the call itself handles a disconnect, by [`Self::gone`].
    pub(crate) fn outlive_client(&self, outlives: bool) {
        self.outlives_client.set(outlives);
    }

    /// Waits until the client disconnects or cancels the call.
    pub(crate) async fn gone(&self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    /// Gives up the stream of a client that is gone.
    pub(crate) fn abandon(&self) {
        *self.state.borrow_mut() = StreamState::Done;
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.state.borrow_mut() {
            StreamState::Fresh(respond) => respond.poll_reset(cx).map(|_| ()),
            StreamState::Begun(stream) => stream.poll_reset(cx).map(|_| ()),
            StreamState::Done => Poll::Pending,
        }
    }
}

impl Drop for ClientStream {
    /// A call whose task is dropped must not end like a successful one.
    fn drop(&mut self) {
        match self.state.get_mut() {
            StreamState::Fresh(respond) => respond.send_reset(Reason::CANCEL),
            StreamState::Begun(stream) => stream.send_reset(Reason::CANCEL),
            StreamState::Done => {}
        }
    }
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Cuts headers to the size that gRPC clients accept.
pub(crate) fn fit(headers: &mut HeaderMap) {
    if session_proto::trailers::fit(headers) {
        tracing::debug!(status = ?headers.get("grpc-status"), "trailers cut to the limit of gRPC clients");
    }
}
