//! The steps of the owner of a stream.

use super::turn::Turn;
use super::{Next, Owner};
use crate::activity::sail_operations::{NotRetained, Received, StreamEnd, StreamEvent, StreamRequest};
use crate::call::engine_errors;
use crate::call::forward::client_window::{
    MIN_UNREAD_INTERVAL, Unread, next_unread_interval, too_much_unread,
};
use crate::call::forward::response_body::{Joined, read_trailers};
use crate::call::forward::{ended, outcome};
use crate::call::resumable::accounting::HeldStream;
use crate::call::resumable::outlet::Outlet;
use crate::call::resumable::unacknowledged::Unacknowledged;
use crate::call_error::{CallError, backend_unavailable};
use crate::grpc::encoding::Encoding;
use crate::grpc::reply::{ClientGone, fit};
use crate::metrics::{Abandoned, Direction, Outcome};
use crate::upstream::Body;
use bytes::Bytes;
use session_proto::trailers::list_size;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Memory of a detached stream beyond its bytes.
const STREAM_OVERHEAD: usize = 16 * 1024;

impl Owner<'_> {
    pub(super) async fn handle(&mut self, turn: Turn) -> Next {
        let next = match turn {
            Turn::Request(Some(StreamRequest::Attach { received, reply })) => self.attach(received, reply),
            Turn::Request(Some(StreamRequest::ReleaseUntil(id))) => {
                self.messages.release_until(id);
                self.renew();
                self.trim()
            }
            Turn::Request(Some(StreamRequest::ReleaseAll)) => {
                self.is_released = true;
                if self.outlet.is_attached() {
                    self.trim()
                } else {
                    self.abandon(Abandoned::Released)
                }
            }
            Turn::Request(None) => {
                self.is_replaced = true;
                if self.outlet.is_attached() {
                    Next::Continue
                } else {
                    self.abandon(Abandoned::Replaced)
                }
            }
            Turn::Gone | Turn::Room(Err(ClientGone)) => self.hold(),
            Turn::Room(Ok(room)) => self.send(room),
            Turn::Headers(Ok((head, body))) => self.begin(head, body),
            Turn::Read(Ok(joined)) => self.read(joined).await,
            Turn::Headers(Err(error)) | Turn::Read(Err(error)) => self.fail(error),
            Turn::Draining => self.abandon(Abandoned::Draining),
            Turn::Checked(is_over) => {
                self.check = None;
                if is_over && !self.outlet.is_attached() {
                    self.abandon(Abandoned::Ended)
                } else {
                    Next::Continue
                }
            }
            Turn::Tick => self.tick(),
        };
        match next {
            Next::Continue if self.engine.is_some() && self.end.is_some() && !self.outlet.is_attached() => {
                Next::Retain(Outcome::ClientGone)
            }
            next => next,
        }
    }

    /// Takes the response headers.
    fn begin(&mut self, head: http::response::Parts, body: Body) -> Next {
        let Some(engine) = &mut self.engine else {
            return Next::Continue;
        };
        engine.headers = None;
        let exchange = engine.exchange;
        let mut headers = head.headers;
        if body.is_end_stream() {
            if let Err(error) = exchange.translated(&headers) {
                return self.fail(error);
            }
            engine_errors::explain_replacement(&mut headers, exchange.route);
            fit(&mut headers);
            let outcome = outcome(&headers).unwrap_or(Outcome::BackendError);
            self.end = Some(StreamEnd::HeadersOnly(headers, outcome));
            return Next::Continue;
        }
        engine.body = Some(body);
        exchange.note_running();
        self.messages = Unacknowledged::new(Encoding::of(&headers));
        self.headers = Some(headers);
        self.send_headers()
    }

    fn send_headers(&mut self) -> Next {
        if let Some(headers) = &self.headers
            && self.outlet.is_attached()
            && !self.headers_sent
        {
            if let Err(ClientGone) = self.outlet.headers(headers) {
                return self.hold();
            }
            self.headers_sent = true;
        }
        Next::Continue
    }

    /// Takes bytes of the response.
    async fn read(&mut self, (data, taken, is_last): Joined) -> Next {
        self.messages.push(data).await;
        let Some(engine) = &mut self.engine else {
            return Next::Continue;
        };
        engine.unreleased += taken;
        if is_last && let Some(mut body) = engine.body.take() {
            let exchange = engine.exchange;
            let trailers = read_trailers(&mut body).await;
            match trailers.and_then(|trailers| ended(exchange, trailers)) {
                Ok((_, Outcome::Ok)) if !self.messages.is_complete() => {
                    // With OK the client would regard the result as complete.
                    self.registered.interrupted();
                    return self.fail(CallError::Engine(Box::new(engine_errors::operation_canceled())));
                }
                Ok((trailers, outcome)) => self.end = Some(StreamEnd::Trailers(trailers, outcome)),
                Err(error) => return self.fail(error),
            }
        } else if !self.outlet.is_attached() {
            engine.release_window();
            self.unread = None;
        }
        if self.outlet.is_attached() {
            return Next::Continue;
        }
        self.trim()
    }

    /// Handles the failure of the engine's stream.
    fn fail(&mut self, error: CallError) -> Next {
        if let Some(engine) = &mut self.engine {
            (engine.headers, engine.body) = (None, None);
        }
        self.end = Some(match error {
            CallError::Refused(refused) => StreamEnd::Refused(refused),
            CallError::Engine(status) => StreamEnd::Engine(status),
            CallError::NotProcessed => {
                self.registered.not_processed();
                return match &self.outlet {
                    Outlet::Local(client) => {
                        // The request is sent again.
                        client.outlive_client(false);
                        Next::End(Err(CallError::NotProcessed))
                    }
                    Outlet::Remote(..) => {
                        Next::End(self.outlet.end(StreamEnd::Refused(backend_unavailable())))
                    }
                    Outlet::Detached => self.abandon(Abandoned::Ended),
                };
            }
            CallError::Deadline | CallError::ClientGone => return Next::End(Err(error)),
        });
        Next::Continue
    }

    /// Sends bytes, or the end.
    fn send(&mut self, room: usize) -> Next {
        if self.next.is_empty() {
            return self.send_end();
        }
        let data = self.next.split_to(room.min(self.next.len()));
        let len = data.len();
        if let Err(ClientGone) = self.outlet.data(data) {
            return self.hold();
        }
        self.messages.mark_sent(len);
        if let Outlet::Local(_) = self.outlet {
            let bytes = &self.metrics().calls.bytes;
            bytes.at(Direction::ToClient).add(len as u64);
            self.context.session.usage.count_out(len);
        }
        self.interval = MIN_UNREAD_INTERVAL;
        if !self.has_unsent() {
            self.unread = None;
            if let Some(engine) = &mut self.engine {
                engine.release_window();
            }
        }
        self.trim()
    }

    fn send_end(&mut self) -> Next {
        let Some(end) = self.end.clone() else {
            return Next::Continue;
        };
        let result = self.outlet.end(end);
        if let Err(CallError::ClientGone) = result {
            return self.hold();
        }
        self.is_delivered = true;
        let timeout = self.detached_timeout();
        self.outlet = Outlet::Detached;
        self.until = Some(Instant::now() + timeout);
        self.busy = None;
        match result {
            Ok(_) if self.is_released || self.is_replaced || timeout.is_zero() => Next::End(result),
            Ok(outcome) if self.engine.is_some() => Next::Retain(outcome),
            Ok(_) => Next::Continue,
            Err(_) => Next::End(result),
        }
    }

    /// Attaches the call of a returning client.
    fn attach(
        &mut self,
        received: Received,
        reply: oneshot::Sender<Result<mpsc::Receiver<StreamEvent>, NotRetained>>,
    ) -> Next {
        if reply.is_closed() {
            return Next::Continue;
        }
        if let Err(NotRetained) = self.messages.rewind(received) {
            // Fails only if the call has ended.
            let _ = reply.send(Err(NotRetained));
            return Next::Continue;
        }
        self.next = Bytes::new();
        self.outlet.supersede();
        let (outlet, events) = Outlet::remote(self.context.tracker.token());
        (self.outlet, self.headers_sent) = (outlet, false);
        (self.until, self.unread) = (None, None);
        if let Some(held) = self.held.take() {
            held.not_abandoned();
        }
        self.metrics().held_streams.resumed.inc();
        // Fails only if the call has ended; then the outlet is closed.
        let _ = reply.send(Ok(events));
        self.forget_request();
        self.send_headers()
    }

    /// Holds the stream after its client disconnected, if the limits allow it.
    fn hold(&mut self) -> Next {
        if let Outlet::Local(client) = &self.outlet {
            client.abandon();
        }
        self.forget_request();
        self.outlet = Outlet::Detached;
        self.unread = None;
        self.interval = MIN_UNREAD_INTERVAL;
        let timeout = self.detached_timeout();
        if timeout.is_zero() {
            return Next::End(Err(CallError::ClientGone));
        }
        self.until = Some(Instant::now() + timeout);
        self.held = Some(HeldStream::new(self.metrics()));
        let shared = &self.context.shared;
        if self.is_released {
            self.abandon(Abandoned::Released)
        } else if self.is_replaced {
            self.abandon(Abandoned::Replaced)
        } else if shared.stopping.is_cancelled() {
            self.abandon(Abandoned::Draining)
        } else if shared.is_overloaded()
            || !self.messages.is_resumable()
            || !self.retained.set(self.retained_bytes())
        {
            self.abandon(Abandoned::LimitExceeded)
        } else {
            Next::Continue
        }
    }

    /// Time for which a detached stream waits for its client.
    fn detached_timeout(&self) -> Duration {
        self.limits().held_stream_timeout
    }

    /// Restarts the timeout of a detached stream and counts as activity of the session, because the
    /// client acknowledged a response. It still reads what it received: the deadline of PySpark 4.3 can
    /// end a stream that is delivered but not read.
    fn renew(&mut self) {
        if self.until.is_some() {
            self.until = Some(Instant::now() + self.detached_timeout());
            self.context.session.usage.touch();
        }
    }

    /// Frees the request, which cannot be sent again once its client is gone.
    fn forget_request(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.request.forget();
        }
    }

    /// Ends a stream without a client.
    fn abandon(&mut self, why: Abandoned) -> Next {
        if let Some(held) = self.held.take() {
            if why == Abandoned::Released && self.messages.is_complete() {
                // PySpark cancels the stream once it has the whole result.
                held.not_abandoned();
            } else {
                held.abandoned(why);
            }
        }
        Next::End(Err(CallError::ClientGone))
    }

    /// Memory of the retained response. Headers are counted once the engine or the client is gone.
    fn retained_bytes(&self) -> usize {
        let bytes = self.messages.bytes();
        if self.engine.is_some() && self.outlet.is_attached() {
            return bytes;
        }
        let headers = self.headers.as_ref().map_or(0, list_size);
        let end = match &self.end {
            Some(StreamEnd::Trailers(list, _) | StreamEnd::HeadersOnly(list, _)) => list_size(list),
            // Error texts are short.
            Some(StreamEnd::Refused(_) | StreamEnd::Engine(_)) | None => 0,
        };
        bytes + headers + end + STREAM_OVERHEAD
    }

    /// Counts the retained bytes, and removes bytes that were sent if the limits require it.
    pub(super) fn trim(&mut self) -> Next {
        if self.outlet.is_attached() {
            self.drop_sent();
            Next::Continue
        } else {
            self.count_retained()
        }
    }

    /// Counts the retained bytes of a detached stream. Ends a delivered result when a limit is near.
    fn count_retained(&mut self) -> Next {
        let fits = self.retained.set(self.retained_bytes());
        let is_short = !fits || self.retained.is_scarce() || self.context.shared.is_overloaded();
        if self.is_delivered && is_short {
            self.abandon(Abandoned::LimitExceeded)
        } else {
            Next::Continue
        }
    }

    /// Removes sent bytes beyond the limits; of a retained result, when a limit is near.
    fn drop_sent(&mut self) {
        let limits = self.limits();
        let max = if limits.held_stream_timeout.is_zero()
            || self.is_released
            || self.is_replaced
            || self.context.shared.is_overloaded()
        {
            0
        } else {
            limits.unacknowledged_bytes_per_stream
        };
        loop {
            let bytes = self.retained_bytes();
            let fits = self.retained.set(bytes)
                && bytes <= max
                && (self.engine.is_some() || !self.retained.is_scarce());
            if fits || !self.messages.remove_oldest_sent() {
                return;
            }
        }
    }

    /// Checks the time limits, and counts retained and unread bytes.
    fn tick(&mut self) -> Next {
        let now = Instant::now();
        if self.until.is_some_and(|until| now >= until) {
            return self.abandon(Abandoned::Timeout);
        }
        // The call of a client is checked by its session.
        if self.engine.is_none() && !self.outlet.is_attached() && self.check.is_none() {
            self.check = Some(Box::pin(self.context.is_over()));
        }
        match self.trim() {
            Next::Continue => {}
            end => return end,
        }
        if self.is_stalled() {
            self.count_unread()
        } else {
            Next::Continue
        }
    }

    fn count_unread(&mut self) -> Next {
        self.interval = next_unread_interval(self.interval);
        let buffered = self.engine.as_mut().and_then(|engine| engine.body.as_mut());
        let buffered = buffered.map_or(0, |body| body.flow_control().used_capacity());
        let amount = match &self.outlet {
            Outlet::Local(_) => buffered.max(self.next.len()),
            // The call of the client counts its own bytes.
            Outlet::Remote(..) | Outlet::Detached => buffered,
        };
        let limits = &self.context.shared.config.limits;
        let usage = &self.context.session.usage;
        let unread = self
            .unread
            .get_or_insert_with(|| Unread::new(limits, usage).reserve());
        match unread.set(amount) {
            Ok(()) => Next::Continue,
            Err(_) if !self.outlet.is_attached() => self.abandon(Abandoned::LimitExceeded),
            Err(exceeded) => Next::End(self.outlet.end(StreamEnd::Refused(too_much_unread(exceeded)))),
        }
    }
}
