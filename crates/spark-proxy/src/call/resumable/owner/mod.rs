//! The task that owns the stream of a query on Sail: reads the stream, retains unacknowledged
//! messages, and sends them to the outlet.
//!
//! While a client is attached, the stream is read as fast as the client reads, and sent bytes beyond
//! the limits are removed. While the stream is held, nothing is removed: the stream is read until a
//! limit is reached. When the engine has ended, a separate task retains the rest
//! ([`Owner::retain_result`]), so that the call and its resources at the engine end.

mod steps;
mod turn;

use super::accounting::{HeldStream, RetainedBytes};
use super::outlet::Outlet;
use super::unacknowledged::Unacknowledged;
use crate::activity::BusyGuard;
use crate::activity::sail_operations::{RegisteredStream, StreamEnd};
use crate::call::forward::client_window::MIN_UNREAD_INTERVAL;
use crate::call::forward::{Exchange, first_byte};
use crate::call::sail_keep_alive;
use crate::call_error::CallError;
use crate::config::LimitConfig;
use crate::grpc::encoding::Encoding;
use crate::grpc::reply::ClientStream;
use crate::grpc::request_body::RequestBody;
use crate::metrics::{Metrics, Outcome};
use crate::resource_limits::Reservation;
use crate::routes::RouteState;
use crate::routes::cache::ResolveError;
use crate::upstream::Body;
use crate::worker::Shared;
use crate::worker::session::Session;
use crate::worker::tokens::Caller;
use bytes::Bytes;
use h2::client::ResponseFuture;
use http::HeaderMap;
use session_core::Reason;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Runs the response of a reattachable query on Sail, whose request was sent.
pub(crate) async fn own(
    exchange: &Exchange<'_>,
    registered: RegisteredStream,
    response: ResponseFuture,
    request: &mut RequestBody,
    client: &ClientStream,
) -> Result<Outcome, CallError> {
    client.outlive_client(true);
    let mut owner = Owner::new(exchange, registered, response, request, client);
    loop {
        let turn = owner.next_turn().await;
        match owner.handle(turn).await {
            Next::Continue => {}
            Next::Retain(outcome) => {
                let busy = exchange.open.take_busy();
                tokio::task::spawn_local(owner.retain_result(busy));
                return Ok(outcome);
            }
            Next::End(result) => return result,
        }
    }
}

/// The owner of a stream.
struct Owner<'a> {
    registered: RegisteredStream,
    /// The engine's stream, until it has ended.
    engine: Option<Engine<'a>>,
    headers: Option<HeaderMap>,
    messages: Unacknowledged,
    end: Option<StreamEnd>,
    /// The end was sent to a client.
    is_delivered: bool,
    outlet: Outlet<'a>,
    headers_sent: bool,
    /// The beginning of the unsent bytes, or nothing.
    next: Bytes,
    /// End of the time for which a held stream or a retained result waits for its client.
    until: Option<Instant>,
    held: Option<HeldStream>,
    /// The client released the whole result.
    is_released: bool,
    /// A newer stream of the operation replaced this one in the table.
    is_replaced: bool,
    retained: RetainedBytes,
    /// Counts unread bytes while the client or a limit stops the stream.
    unread: Option<Reservation>,
    interval: Duration,
    /// Running check whether a retained result must end.
    check: Option<Pending<'static, bool>>,
    /// Keeps the session busy while its client has not received the end.
    busy: Option<BusyGuard>,
    context: Context,
}

/// The engine's side of the stream.
struct Engine<'a> {
    exchange: &'a Exchange<'a>,
    request: &'a mut RequestBody,
    /// The response headers, until they arrive.
    headers: Option<Pending<'a, Result<(http::response::Parts, Body), CallError>>>,
    body: Option<Body>,
    /// Bytes read whose flow-control window was not released.
    unreleased: usize,
    keep_alive: Option<Pending<'a, Infallible>>,
}

type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// State of an owner that outlives its call.
struct Context {
    shared: Arc<Shared>,
    session: Rc<Session>,
    caller: Rc<Caller>,
    tracker: TaskTracker,
    /// Generation of the compute.
    generation: u64,
}

/// The next step of the owner.
enum Next {
    Continue,
    /// The engine has ended: retain the rest for the client.
    Retain(Outcome),
    End(Result<Outcome, CallError>),
}

impl<'a> Owner<'a> {
    fn new(
        exchange: &'a Exchange<'_>,
        registered: RegisteredStream,
        response: ResponseFuture,
        request: &'a mut RequestBody,
        client: &'a ClientStream,
    ) -> Self {
        let (worker, open) = (exchange.worker, exchange.open);
        let keep_alive: Option<Pending<'a, Infallible>> = if sail_keep_alive::is_needed(exchange) {
            Some(Box::pin(sail_keep_alive::run(exchange)))
        } else {
            None
        };
        Self {
            registered,
            engine: Some(Engine {
                exchange,
                request,
                headers: Some(Box::pin(first_byte(exchange, response))),
                body: None,
                unreleased: 0,
                keep_alive,
            }),
            headers: None,
            messages: Unacknowledged::new(Encoding::Identity),
            end: None,
            is_delivered: false,
            outlet: Outlet::Local(client),
            headers_sent: false,
            next: Bytes::new(),
            until: None,
            held: None,
            is_released: false,
            is_replaced: false,
            retained: RetainedBytes::new(&worker.shared, open.session()),
            unread: None,
            interval: MIN_UNREAD_INTERVAL,
            check: None,
            busy: None,
            context: Context {
                shared: Arc::clone(&worker.shared),
                session: Rc::clone(open.session()),
                caller: Rc::clone(open.caller()),
                tracker: worker.resumed.clone(),
                generation: exchange.backend.generation,
            },
        }
    }

    fn limits(&self) -> &LimitConfig {
        &self.context.shared.config.limits
    }

    fn metrics(&self) -> &Arc<Metrics> {
        &self.context.shared.metrics
    }
}

impl Owner<'_> {
    /// Retains the rest of a response whose engine has ended, until its client has received it.
    fn retain_result(self, busy: Option<BusyGuard>) -> impl Future<Output = ()> + 'static {
        let mut owner = Owner::<'static> {
            engine: None,
            outlet: Outlet::Detached,
            busy: busy.filter(|_| !self.is_delivered),
            registered: self.registered,
            headers: self.headers,
            messages: self.messages,
            end: self.end,
            is_delivered: self.is_delivered,
            headers_sent: self.headers_sent,
            next: Bytes::new(),
            until: self.until,
            held: self.held,
            is_released: self.is_released,
            is_replaced: self.is_replaced,
            retained: self.retained,
            unread: None,
            interval: self.interval,
            check: None,
            context: self.context,
        };
        async move {
            let mut next = owner.trim();
            while let Next::Continue = next {
                let turn = owner.next_turn().await;
                next = owner.handle(turn).await;
            }
        }
    }
}

impl Engine<'_> {
    /// Releases the flow-control window of the bytes that were read.
    fn release_window(&mut self) {
        let unreleased = std::mem::take(&mut self.unreleased);
        if let Some(body) = &mut self.body {
            // Fails only after the stream has ended.
            let _ = body.flow_control().release_capacity(unreleased);
        }
    }
}

impl Context {
    /// Whether the session has ended, no longer admits the token, or has newer compute. Requests the
    /// route if it may have changed: workers recheck sessions with open calls only.
    fn is_over(&self) -> impl Future<Output = bool> + use<> {
        let (shared, session) = (Arc::clone(&self.shared), Rc::clone(&self.session));
        let (caller, generation) = (Rc::clone(&self.caller), self.generation);
        async move {
            let routes = &shared.routes;
            if session.known_error(routes, &caller.claims).is_some() {
                return true;
            }
            let fresh = match session.fresh_route(routes) {
                Some(fresh) => Some(fresh),
                None => match routes.resolve(session.recheck_request(&caller.token)).await {
                    Ok((route, stamp)) => session.store_route(route, stamp),
                    // As for running calls: an expired token does not end them, but cannot request
                    // routes.
                    Err(ResolveError::Refused(refused)) if refused.reason == Reason::TokenExpired => None,
                    Err(ResolveError::Refused(_)) => return true,
                    Err(ResolveError::Unreachable | ResolveError::TimedOut) => None,
                },
            };
            fresh.is_some_and(|cached| {
                let route = &cached.route;
                matches!(route.state, RouteState::Gone(_))
                    || route.generation != generation
                    || route.admits(&caller.claims).is_err()
            })
        }
    }
}
