//! One attempt to send a call: route, binding and reattach checks, then a connection.

use crate::activity::sail_operations::{
    Found, NotRetained, Received, StreamEvent, StreamHandle, StreamRequest,
};
use crate::call::bind::{self, BindingStatus};
use crate::call::engine_errors::{self, Translator};
use crate::call::first_message::FirstMessage;
use crate::call::forward::{Exchange, forward};
use crate::call::route::{self, ActiveRoute, Destination};
use crate::call_error::CallError;
use crate::grpc::method::Method;
use crate::grpc::reply::ClientStream;
use crate::grpc::request_body::RequestBody;
use crate::grpc::response_scanner::ResponseId;
use crate::metrics::{Outcome, ReattachRefused, Stage};
use crate::resource_limits::SharedPermit;
use crate::upstream::headers::toward_backend;
use crate::upstream::{Lease, Unreachable, Upstream};
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use bytes::Bytes;
use http::Request;
use service_kit::{child_span, telemetry};
use session_core::Engine;
use session_proto::spark::release_execute_request::Release;
use session_proto::spark::{ReattachExecuteRequest, ReleaseExecuteRequest};
use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use tracing::{Instrument as _, Span};

/// Maximum age of a route for a new connection to compute: addresses are reused.
const MAX_ROUTE_AGE_TO_CONNECT: Duration = Duration::from_secs(5);

/// The attempts to send one call.
pub(crate) struct Attempts<'a> {
    worker: &'a Rc<Worker>,
    open: &'a OpenCall,
    deadline: Option<Instant>,
    /// The first message of the request, once read.
    first: Option<FirstMessage>,
    /// Routes requested before this time are not used.
    not_before: Option<Instant>,
    /// Start of the first attempt, until it begins.
    began: Option<Instant>,
}

/// Result of preparing an attempt.
pub(crate) enum Prepared {
    /// Local reply.
    Reply(Bytes),
    /// The route was outdated; try again.
    Retry,
    /// A stream of this proxy continues.
    Resume(mpsc::Receiver<StreamEvent>),
    /// Ready to be sent.
    Send(Box<PreparedCall>),
}

/// A call with a place on a connection to compute.
pub(crate) struct PreparedCall {
    active: ActiveRoute,
    translator: Option<Translator>,
    lease: Lease,
    leased_at: Instant,
    _permit: Option<SharedPermit>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(worker: &'a Rc<Worker>, open: &'a OpenCall, deadline: Option<Instant>) -> Self {
        Self {
            worker,
            open,
            deadline,
            first: None,
            not_before: None,
            // With an expired token the call has waited for its first message.
            began: open.caller().expired_in_grace.is_none().then(|| open.opened_at()),
        }
    }

    /// Makes the next attempt request a new route.
    pub(crate) fn require_new_route(&mut self) {
        self.not_before = Some(Instant::now());
    }

    /// Finds compute, checks the call, and takes a place on a connection.
    pub(crate) async fn prepare(&mut self, request: &mut RequestBody) -> Result<Prepared, CallError> {
        let (worker, open) = (self.worker, self.open);
        let began = self.began.take().unwrap_or_else(Instant::now);
        let unread = self.first.is_none();
        let destination = route::destination(
            worker,
            open,
            request,
            unread,
            self.deadline,
            self.not_before,
            began,
        );
        let active = match destination.await? {
            Destination::Compute(active) => active,
            Destination::Local(answer) => return Ok(Prepared::Reply(answer)),
        };
        let waited = &worker.shared.metrics.calls.waited;
        waited.at(Stage::Resolve).observe(began.elapsed());
        if open.is_work() {
            open.begin_work();
        }
        open.usage().on_generation(active.backend.generation);
        if unread {
            self.first = Some(FirstMessage::read(open, &active.backend, request).await?);
        }
        let Some(first) = &self.first else {
            return Ok(Prepared::Retry);
        };
        check_expired(open, &active, first)?;
        match self.check_binding(&active, first).await? {
            BindingDecision::Forward => {}
            BindingDecision::ResolveAgain => {
                self.require_new_route();
                return Ok(Prepared::Retry);
            }
            BindingDecision::Unused => {
                return bind::unused(open.method(), &first.peeked).map(Prepared::Reply);
            }
        }
        if let Some(release) = &first.release {
            self.release(&active, first, release).await;
        }
        let translator = match self.check_reattach(&active, first).await? {
            Reattach::Forward(translator) => translator,
            Reattach::Resume(events) => {
                open.mark_forwarded(&active.backend);
                return Ok(Prepared::Resume(events));
            }
        };
        let connected = self.connect(active, translator).await?;
        Ok(match connected {
            Some(prepared) => Prepared::Send(Box::new(prepared)),
            None => {
                self.require_new_route();
                Prepared::Retry
            }
        })
    }

    /// Checks the binding of the Spark session on shared compute, or its preparation on replaced
    /// compute.
    async fn check_binding(
        &self,
        active: &ActiveRoute,
        first: &FirstMessage,
    ) -> Result<BindingDecision, CallError> {
        let (worker, open) = (self.worker, self.open);
        let (method, backend) = (open.method(), &active.backend);
        match bind::check(worker, open, &active.cached.route, backend, first.spark_session).await? {
            BindingStatus::Bound => {}
            BindingStatus::Outdated => return Ok(BindingDecision::ResolveAgain),
            BindingStatus::Replaced => {
                let replaced = engine_errors::session_replaced(&first.spark_session, &active.cached.route);
                return Err(CallError::Engine(Box::new(replaced)));
            }
            // Another worker or proxy may have bound it after this route was requested.
            // ReleaseExecute is exempt from the rate of calls, which must limit bind requests.
            BindingStatus::Unknown
                if self.not_before.is_none()
                    && (method != Method::ReleaseExecute || open.usage().try_take_call()) =>
            {
                return Ok(BindingDecision::ResolveAgain);
            }
            // The new route is also without the binding. Only a reattach should be retried.
            BindingStatus::Unknown
                if self
                    .not_before
                    .is_some_and(|moment| active.cached.stamp.at < moment)
                    && (method == Method::ReattachExecute || backend.engine == Engine::Spark) =>
            {
                bind::allow_unconfirmed(backend.engine, None)?;
            }
            BindingStatus::Unknown => return Ok(BindingDecision::Unused),
        }
        if method == Method::CloneSession && !backend.dedicated {
            Box::pin(bind::check_clone(
                worker,
                open,
                &active.cached.route,
                backend,
                &first.peeked,
            ))
            .await?;
        }
        Ok(BindingDecision::Forward)
    }

    /// Checks a reattach.
    async fn check_reattach(
        &self,
        active: &ActiveRoute,
        first: &FirstMessage,
    ) -> Result<Reattach, CallError> {
        let backend = &active.backend;
        let lost = active
            .cached
            .route
            .lost_compute_recently(&*self.worker.shared.clock);
        if let Some(request) = &first.reattach
            && backend.engine == Engine::Sail
            && let Some(events) = Box::pin(self.resume(active, first, request, lost)).await?
        {
            return Ok(Reattach::Resume(events));
        }
        let reattach = first.reattach.as_ref();
        Ok(Reattach::Forward(Translator::new(
            backend.engine,
            first.spark_session,
            reattach,
            lost,
        )))
    }

    /// Continues a query on Sail with the stream that this proxy has. `None` if nothing is known of
    /// the operation: then Sail reports whether it exists.
    async fn resume(
        &self,
        active: &ActiveRoute,
        first: &FirstMessage,
        request: &ReattachExecuteRequest,
        lost: bool,
    ) -> Result<Option<mpsc::Receiver<StreamEvent>>, CallError> {
        let refused = &self.worker.shared.metrics.held_streams.refused;
        let operations = &self.open.usage().sail_operations;
        let found = operations.find(
            active.backend.generation,
            &first.spark_session,
            &request.operation_id,
        );
        let not_found = || engine_errors::operation_not_found(&request.operation_id);
        let mut was_sent = true;
        let why = match found {
            Found::Open(stream) if !stream.is_of(&self.open.caller().claims.sub) => {
                refused.at(ReattachRefused::OtherSubject).inc();
                return Err(CallError::Engine(Box::new(not_found())));
            }
            Found::Open(stream) => match attach(&stream, request).await {
                Some(Ok(events)) => return Ok(Some(events)),
                Some(Err(NotRetained)) => ReattachRefused::NotRetained,
                None => ReattachRefused::NotHeld,
            },
            Found::Ended { interrupted: true } => {
                refused.at(ReattachRefused::Interrupted).inc();
                return Err(CallError::Engine(Box::new(engine_errors::operation_canceled())));
            }
            Found::Ended { interrupted: false } => ReattachRefused::NotHeld,
            Found::Unknown => {
                was_sent = false;
                ReattachRefused::NotHeld
            }
        };
        engine_errors::check_not_held(request, was_sent, lost).inspect_err(|_| refused.at(why).inc())?;
        Ok(None)
    }

    /// Forwards a release of the client to the stream of a query on Sail. The engine also receives it.
    async fn release(&self, active: &ActiveRoute, first: &FirstMessage, request: &ReleaseExecuteRequest) {
        let release = match &request.release {
            Some(Release::ReleaseAll(_)) => Some(StreamRequest::ReleaseAll),
            Some(Release::ReleaseUntil(until)) => {
                ResponseId::parse(&until.response_id).map(StreamRequest::ReleaseUntil)
            }
            None => None,
        };
        let Some(release) = release else { return };
        let found = self.open.usage().sail_operations.find(
            active.backend.generation,
            &first.spark_session,
            &request.operation_id,
        );
        if let Found::Open(stream) = found
            && stream.is_of(&self.open.caller().claims.sub)
        {
            stream.release(release).await;
        }
    }

    /// Takes a place on a connection; `None` if a new route is needed.
    async fn connect(
        &self,
        active: ActiveRoute,
        translator: Option<Translator>,
    ) -> Result<Option<PreparedCall>, CallError> {
        let (pools, method) = (&self.worker.pools, self.open.method());
        let began = Instant::now();
        let pool = pools.pool(&self.open.session().id, &active.backend);
        let is_stale = began.duration_since(active.cached.stamp.at) > MAX_ROUTE_AGE_TO_CONNECT;
        if is_stale && !pools.is_connected(&pool, method) {
            return Ok(None);
        }
        let permit = pools.enter(
            &pool,
            &active.backend,
            method,
            &self.open.session().shares,
            &self.open.caller().claims,
        )?;
        let leased = pools.lease(pool, &active.backend, method);
        let lease = match leased.instrument(child_span!("connect")).await {
            Ok(lease) => lease,
            // The address may be outdated.
            Err(Unreachable) => return Ok(None),
        };
        let waited = &self.worker.shared.metrics.calls.waited;
        let leased_at = Instant::now();
        waited.at(Stage::Connect).observe(leased_at.duration_since(began));
        Ok(Some(PreparedCall {
            active,
            translator,
            lease,
            leased_at,
            _permit: permit,
        }))
    }

    /// Sends the call and forwards the response.
    ///
    /// # Errors
    /// [`CallError::NotProcessed`] if the compute provably did not process the call.
    pub(crate) async fn send(
        &self,
        prepared: Box<PreparedCall>,
        head: &http::request::Parts,
        request: &mut RequestBody,
        client: &ClientStream,
    ) -> Result<Outcome, CallError> {
        let PreparedCall {
            active: ActiveRoute { cached, backend },
            translator,
            mut lease,
            leased_at,
            _permit,
        } = *prepared;
        let (worker, open) = (self.worker, self.open);
        let Some(first) = &self.first else {
            return Err(CallError::NotProcessed);
        };
        let method = open.method();
        open.mark_forwarded(&backend);
        if let Some(reattach) = &first.reattach {
            open.set_operation(
                &first.spark_session,
                open.user_id(&backend),
                &reattach.operation_id,
            );
        }
        let mut head = head.clone();
        toward_backend(&mut head, &backend, method);
        telemetry::inject(&Span::current(), &mut head.headers);
        let sent = lease.send(Request::from_parts(head, ()));
        let upstream: Upstream = sent.map_err(|Unreachable| CallError::NotProcessed)?;
        let exchange = Exchange {
            worker,
            open,
            backend: &backend,
            spark_session: first.spark_session,
            translator,
            clones: method == Method::CloneSession && !backend.dedicated,
            sail_stream: Cell::default(),
            running: OnceCell::new(),
            settings: first.settings.as_ref(),
            route: &cached.route,
            advice: Cell::default(),
            sent_at: leased_at,
        };
        let forwarded = forward(&exchange, upstream, request, client);
        if method != Method::Interrupt {
            return forwarded.await;
        }
        let limit = worker.shared.config.backend.interrupt_timeout;
        Box::pin(tokio::time::timeout(limit, forwarded))
            .await
            .unwrap_or_else(|_| Err(interrupt_timed_out(limit)))
    }
}

/// How a call continues after the check of a reattach.
enum Reattach {
    /// With the engine, whose errors are translated.
    Forward(Option<Translator>),
    /// With a stream of this proxy.
    Resume(mpsc::Receiver<StreamEvent>),
}

/// Asks a stream for what the client does not have; `None` if it has ended.
async fn attach(
    stream: &StreamHandle,
    request: &ReattachExecuteRequest,
) -> Option<Result<mpsc::Receiver<StreamEvent>, NotRetained>> {
    let received = match request.last_response_id.as_deref() {
        None | Some("") => Received::Nothing,
        Some(id) => match ResponseId::parse(id) {
            Some(id) => Received::UpTo(id),
            // No message has such an id.
            None => return Some(Err(NotRetained)),
        },
    };
    stream.attach(received).await
}

/// Binding of the Spark session of a call.
enum BindingDecision {
    /// Bound to the session.
    Forward,
    /// Unknown from a route that may be outdated.
    ResolveAgain,
    /// Unbound; the call would create the Spark session.
    Unused,
}

/// With an expired token a call may only continue running operations: the engine would create a
/// Spark session that does not exist.
fn check_expired(open: &OpenCall, active: &ActiveRoute, first: &FirstMessage) -> Result<(), CallError> {
    let running = open.usage().running();
    match &open.caller().expired_in_grace {
        Some(expired)
            if open.method() != Method::ReattachExecute
                && !running.is_running(active.backend.generation, first.spark_session) =>
        {
            Err(expired.clone().into())
        }
        Some(_) | None => Ok(()),
    }
}

fn interrupt_timed_out(limit: Duration) -> CallError {
    CallError::Engine(Box::new(Status::deadline_exceeded(format!(
        "The session's compute did not answer the interrupt within {} s. The operation may be unknown to it; running operations continue.",
        limit.as_secs()
    ))))
}
