//! The receiver of a response: the client of the call itself, the call of a client that returned, or
//! none while the stream is held.

use crate::activity::sail_operations::{StreamEnd, StreamEvent};
use crate::call::engine_errors::superseded;
use crate::call_error::CallError;
use crate::grpc::reply::{ClientGone, ClientStream};
use crate::metrics::Outcome;
use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::sync::mpsc;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Maximum number of queued events for the call of a returning client, without the end.
const MAX_EVENTS: usize = 2;

/// The receiver of a response.
pub(super) enum Outlet<'a> {
    /// The client of this call.
    Local(&'a ClientStream),
    /// The call of a client that returned.
    Remote(RemoteCall),
    /// No client is connected: the stream is held.
    Detached,
}

/// The call of a client that returned. Its token delays the end of the worker's thread.
pub(super) struct RemoteCall {
    events: mpsc::Sender<StreamEvent>,
    /// Reserved place in the channel for the end, so that a slow client receives its reason too.
    end: Option<mpsc::OwnedPermit<StreamEvent>>,
    _token: TaskTrackerToken,
}

impl RemoteCall {
    fn send(&self, event: StreamEvent) -> Result<(), ClientGone> {
        self.events.try_send(event).map_err(|_| ClientGone)
    }

    fn end(&mut self, end: StreamEnd) -> Result<(), ClientGone> {
        if self.events.is_closed() {
            return Err(ClientGone);
        }
        self.end.take().ok_or(ClientGone)?.send(StreamEvent::End(end));
        Ok(())
    }
}

impl Outlet<'_> {
    /// Creates an outlet, and the receiver for the call of the client.
    pub(super) fn remote(token: TaskTrackerToken) -> (Self, mpsc::Receiver<StreamEvent>) {
        let (events, receiver) = mpsc::channel(MAX_EVENTS + 1);
        let call = RemoteCall {
            end: events.clone().try_reserve_owned().ok(),
            events,
            _token: token,
        };
        (Self::Remote(call), receiver)
    }

    pub(super) fn is_attached(&self) -> bool {
        !matches!(self, Self::Detached)
    }

    /// Waits until the client disconnects.
    pub(super) async fn gone(&self) {
        match self {
            Self::Local(client) => client.gone().await,
            Self::Remote(call) => call.events.closed().await,
            Self::Detached => std::future::pending().await,
        }
    }

    /// Waits until some of `len` bytes can be sent, or the end if `len` is zero; returns how many.
    pub(super) async fn capacity(&self, len: usize) -> Result<usize, ClientGone> {
        match self {
            Self::Local(_) | Self::Remote(_) if len == 0 => Ok(0),
            Self::Local(client) => client.capacity(len).await,
            Self::Remote(call) => {
                let place = call.events.reserve().await;
                place.map(|_| len).map_err(|_| ClientGone)
            }
            Self::Detached => std::future::pending().await,
        }
    }

    /// Sends the response headers.
    pub(super) fn headers(&self, headers: &HeaderMap) -> Result<(), ClientGone> {
        match self {
            Self::Local(client) => client.begin(response(headers.clone()), false),
            Self::Remote(call) => call.send(StreamEvent::Headers(headers.clone())),
            Self::Detached => Ok(()),
        }
    }

    /// Sends bytes for which there is capacity.
    pub(super) fn data(&self, data: Bytes) -> Result<(), ClientGone> {
        match self {
            Self::Local(client) => client.data(data, false),
            Self::Remote(call) => call.send(StreamEvent::Data(data)),
            Self::Detached => Ok(()),
        }
    }

    /// Ends the response. Returns the error if the client of this call must receive one.
    pub(super) fn end(&mut self, end: StreamEnd) -> Result<Outcome, CallError> {
        match self {
            Self::Local(client) => deliver(end, client),
            Self::Remote(call) => {
                let outcome = outcome_of(&end);
                call.end(end)?;
                Ok(outcome)
            }
            Self::Detached => Err(CallError::ClientGone),
        }
    }

    /// Ends the response with the error that a newer call of the client receives it.
    pub(super) fn supersede(&mut self) {
        match self {
            Self::Local(client) => client.fail(&superseded()),
            Self::Remote(call) => {
                // Fails only if its client is gone.
                let _ = call.end(StreamEnd::Engine(Box::new(superseded())));
            }
            Self::Detached => {}
        }
    }
}

fn response(headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

/// Begins a response.
pub(super) fn begin(headers: HeaderMap, client: &ClientStream) -> Result<(), ClientGone> {
    client.begin(response(headers), false)
}

/// Ends a response. Returns the error if the response ends with one.
pub(super) fn deliver(end: StreamEnd, client: &ClientStream) -> Result<Outcome, CallError> {
    match end {
        StreamEnd::Trailers(trailers, outcome) => {
            client.trailers(trailers)?;
            Ok(outcome)
        }
        StreamEnd::HeadersOnly(headers, outcome) => {
            client.begin(response(headers), true)?;
            Ok(outcome)
        }
        StreamEnd::Refused(refused) => Err(CallError::Refused(refused)),
        StreamEnd::Engine(status) => Err(CallError::Engine(status)),
    }
}

fn outcome_of(end: &StreamEnd) -> Outcome {
    match end {
        StreamEnd::Trailers(_, outcome) | StreamEnd::HeadersOnly(_, outcome) => *outcome,
        StreamEnd::Refused(refused) => Outcome::of(refused.reason),
        StreamEnd::Engine(_) => Outcome::BackendError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::task::TaskTracker;

    /// The call of a slow client has received nothing from its channel yet.
    #[test]
    fn the_reason_of_an_end_has_a_place_in_a_full_channel() {
        let (mut outlet, mut events) = Outlet::remote(TaskTracker::new().token());
        outlet.headers(&HeaderMap::new()).unwrap();
        outlet.data(Bytes::from_static(b"rows")).unwrap();
        assert_eq!(outlet.data(Bytes::new()), Err(ClientGone), "the channel is full");
        outlet.supersede();
        drop(outlet);
        assert!(matches!(events.try_recv(), Ok(StreamEvent::Headers(_))));
        assert!(matches!(events.try_recv(), Ok(StreamEvent::Data(_))));
        let Ok(StreamEvent::End(StreamEnd::Engine(status))) = events.try_recv() else {
            panic!("no end")
        };
        assert_eq!(status.code(), tonic::Code::Aborted);

        let (mut outlet, events) = Outlet::remote(TaskTracker::new().token());
        drop(events);
        let end = StreamEnd::Engine(Box::new(superseded()));
        assert!(matches!(outlet.end(end), Err(CallError::ClientGone)));
    }
}
