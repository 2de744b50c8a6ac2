//! Waits for the next event of the owner of a stream.

use super::Owner;
use crate::activity::sail_operations::StreamRequest;
use crate::call::forward::response_body::{Joined, poll_joined};
use crate::call_error::CallError;
use crate::grpc::reply::ClientGone;
use crate::upstream::Body;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// Interval of the checks whether a retained result must end with its session, token or compute.
const CHECK_INTERVAL: Duration = Duration::from_secs(4);

/// An event for the owner.
pub(super) enum Turn {
    Request(Option<StreamRequest>),
    Gone,
    /// The outlet has capacity for this many bytes, or for the end.
    Room(Result<usize, ClientGone>),
    Headers(Result<(http::response::Parts, Body), CallError>),
    Read(Result<Joined, CallError>),
    Draining,
    /// Result of a check: whether a retained result must end.
    Checked(bool),
    Tick,
}

impl Owner<'_> {
    /// Waits for the next event.
    pub(super) async fn next_turn(&mut self) -> Turn {
        let (until, interval) = (self.until, self.interval);
        let is_stalled = self.is_stalled();
        let is_retained = self.engine.is_none();
        let mut turn = pin!(self.turn());
        // Usually an event is ready, so that no timer is needed.
        let now = poll_fn(|cx| match turn.as_mut().poll(cx) {
            Poll::Ready(turn) => Poll::Ready(Some(turn)),
            Poll::Pending => Poll::Ready(None),
        });
        if let Some(turn) = now.await {
            return turn;
        }
        let now = Instant::now();
        let stalled = is_stalled.then(|| now + interval);
        let check = is_retained.then(|| now + CHECK_INTERVAL);
        match [until, stalled, check].into_iter().flatten().min() {
            Some(at) => tokio::time::timeout_at(at, turn).await.unwrap_or(Turn::Tick),
            None => turn.await,
        }
    }

    async fn turn(&mut self) -> Turn {
        if self.next.is_empty() && self.headers_sent {
            self.next = self.messages.unsent();
        }
        let may_read = self.may_read();
        let to_send = self.to_send();
        let (is_attached, is_replaced) = (self.outlet.is_attached(), self.is_replaced);
        let (headers, body, keep_alive) = match &mut self.engine {
            Some(engine) => (
                engine.headers.as_mut(),
                engine.body.as_mut().filter(|_| may_read),
                engine.keep_alive.as_mut(),
            ),
            None => (None, None, None),
        };
        let outlet = &self.outlet;
        tokio::select! {
            biased;
            request = self.registered.request(), if !is_replaced => Turn::Request(request),
            () = outlet.gone(), if is_attached => Turn::Gone,
            room = outlet.capacity(to_send.unwrap_or_default()), if to_send.is_some() => Turn::Room(room),
            headers = optional(headers) => Turn::Headers(headers),
            read = read(body) => Turn::Read(read),
            is_over = optional(self.check.as_mut()) => Turn::Checked(is_over),
            () = self.context.shared.stopping.cancelled(), if !is_attached => Turn::Draining,
            never = optional(keep_alive) => match never {},
        }
    }

    /// Number of bytes to be sent; zero if only the end is left.
    pub(super) fn to_send(&self) -> Option<usize> {
        if !self.outlet.is_attached() {
            None
        } else if !self.next.is_empty() {
            Some(self.next.len())
        } else {
            self.end.is_some().then_some(0)
        }
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.next.is_empty() || self.messages.has_unsent()
    }

    /// Whether the stream may be read: all bytes were sent, or a held stream is within its limits.
    pub(super) fn may_read(&self) -> bool {
        if self.outlet.is_attached() {
            return !self.has_unsent();
        }
        let frame = self.context.shared.config.backend.frame_bytes as usize;
        self.messages.bytes() + frame <= self.limits().unacknowledged_bytes_per_stream
            && self.retained.has_room(frame)
            && !self.context.shared.is_overloaded()
    }

    /// Whether the client or a limit stops the stream.
    pub(super) fn is_stalled(&self) -> bool {
        if self.outlet.is_attached() {
            self.has_unsent()
        } else {
            self.engine.is_some() && !self.may_read()
        }
    }
}

/// Waits for a future, if there is one.
async fn optional<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Reads from a stream, if there is one to be read.
async fn read(body: Option<&mut Body>) -> Result<Joined, CallError> {
    match body {
        Some(body) => poll_fn(|cx| poll_joined(body, cx)).await,
        None => std::future::pending().await,
    }
}
