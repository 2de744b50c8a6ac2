//! One attempt to send a call: route, binding and reattach checks, then a connection.

use crate::call::bind::{self, Bound};
use crate::call::engine_errors::{self, Translator};
use crate::call::first_message::First;
use crate::call::forward::{Exchange, forward};
use crate::call::route::{self, Found, Place};
use crate::grpc::method::Method;
use crate::grpc::reply::Client;
use crate::grpc::request_body::Messages;
use crate::metrics::{Outcome, Stage};
use crate::stop::Stop;
use crate::upstream::headers::toward_backend;
use crate::upstream::{Lease, Share, Unreachable, Upstream};
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use bytes::Bytes;
use http::Request;
use service_kit::{child_span, telemetry};
use session_core::Engine;
use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;
use tracing::{Instrument as _, Span};

/// Maximum age of a route for a new connection to compute: addresses are reused.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The attempts to send one call.
pub(crate) struct Attempts<'a> {
    worker: &'a Rc<Worker>,
    open: &'a OpenCall,
    deadline: Option<Instant>,
    /// The first message of the request, once read.
    first: Option<First>,
    /// Routes requested before this time are not used.
    not_before: Option<Instant>,
}

/// Result of preparing an attempt.
pub(crate) enum Next {
    /// Local reply.
    Reply(Bytes),
    /// The route was outdated; try again.
    Again,
    /// Ready to be sent.
    Send(Box<Ready>),
}

/// A call with a place on a connection to compute.
pub(crate) struct Ready {
    found: Found,
    translator: Option<Translator>,
    lease: Lease,
    _share: Option<Share>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(worker: &'a Rc<Worker>, open: &'a OpenCall, deadline: Option<Instant>) -> Self {
        Self {
            worker,
            open,
            deadline,
            first: None,
            not_before: None,
        }
    }

    /// Makes the next attempt request a new route.
    pub(crate) fn require_new_route(&mut self) {
        self.not_before = Some(Instant::now());
    }

    /// Finds compute, checks the call, and takes a place on a connection.
    pub(crate) async fn prepare(&mut self, request: &mut Messages) -> Result<Next, Stop> {
        let (worker, open) = (self.worker, self.open);
        let began = Instant::now();
        let unread = self.first.is_none();
        let place = route::place(worker, open, request, unread, self.deadline, self.not_before);
        let found = match place.await? {
            Place::Compute(found) => found,
            Place::Nowhere(answer) => return Ok(Next::Reply(answer)),
        };
        let waited = &worker.shared.metrics.waited;
        waited.at(Stage::Resolve).observe(began.elapsed());
        if open.is_work() {
            open.work();
        }
        open.tally().on_generation(found.backend.generation);
        if unread {
            self.first = Some(First::read(open, &found.backend, request).await?);
        }
        let Some(first) = &self.first else {
            return Ok(Next::Again);
        };
        check_late(open, &found, first)?;
        match self.check_binding(&found, first).await? {
            Binding::Ours => {}
            Binding::Ask => {
                self.require_new_route();
                return Ok(Next::Again);
            }
            Binding::Unused => return bind::unused(open.method(), &first.peeked).map(Next::Reply),
        }
        let translator = self.check_reattach(&found, first).await?;
        let connected = self.connect(found, translator).await?;
        Ok(match connected {
            Some(ready) => Next::Send(Box::new(ready)),
            None => {
                self.require_new_route();
                Next::Again
            }
        })
    }

    /// Checks the binding of the Spark session on shared compute, or its preparation on replaced
    /// compute.
    async fn check_binding(&self, found: &Found, first: &First) -> Result<Binding, Stop> {
        let (worker, open) = (self.worker, self.open);
        let (method, backend) = (open.method(), &found.backend);
        match bind::check(worker, open, &found.route, backend, first.spark_session).await? {
            Bound::Ours => {}
            Bound::Outdated => return Ok(Binding::Ask),
            Bound::Replaced => {
                let replaced = engine_errors::session_replaced(&first.spark_session, &found.route);
                return Err(Stop::Engine(Box::new(replaced)));
            }
            // Another worker or proxy may have bound it after this route was requested.
            // ReleaseExecute is exempt from the rate of calls, which must limit bind requests.
            Bound::Unknown
                if self.not_before.is_none()
                    && (method != Method::ReleaseExecute || open.tally().is_within_rate()) =>
            {
                return Ok(Binding::Ask);
            }
            // The new route is also without the binding. Only a reattach should be retried.
            Bound::Unknown
                if self.not_before.is_some_and(|moment| found.stamp.at < moment)
                    && (method == Method::ReattachExecute || backend.engine == Engine::Spark) =>
            {
                bind::nobody_can_tell(backend.engine)?;
            }
            Bound::Unknown => return Ok(Binding::Unused),
        }
        if method == Method::CloneSession && !backend.dedicated {
            Box::pin(bind::check_clone(
                worker,
                open,
                &found.route,
                backend,
                &first.peeked,
            ))
            .await?;
        }
        Ok(Binding::Ours)
    }

    /// Checks a reattach; returns the translator for errors of the engine.
    async fn check_reattach(&self, found: &Found, first: &First) -> Result<Option<Translator>, Stop> {
        let backend = &found.backend;
        let lost = found.route.lost_compute(self.worker.shared.clock.now());
        if let Some(request) = &first.reattach
            && backend.engine == Engine::Sail
        {
            let on_sail = &self.open.tally().on_sail;
            let may = on_sail.reattach(backend.generation, &first.spark_session, &request.operation_id);
            engine_errors::admit_reattach(request, Box::pin(may).await, lost)?;
        }
        let reattach = first.reattach.as_ref();
        Ok(Translator::new(
            backend.engine,
            first.spark_session,
            reattach,
            lost,
        ))
    }

    /// Takes a place on a connection; `None` if a new route is needed.
    async fn connect(&self, found: Found, translator: Option<Translator>) -> Result<Option<Ready>, Stop> {
        let (pools, method) = (&self.worker.pools, self.open.method());
        let began = Instant::now();
        let is_old = began.duration_since(found.stamp.at) > CONNECT_WITHIN;
        if is_old && !pools.is_connected(&found.backend, method) {
            return Ok(None);
        }
        let share = pools.enter(&found.backend, method, &self.open.caller().claims)?;
        let leased = pools.lease(&found.backend, method);
        let lease = match leased.instrument(child_span!("connect")).await {
            Ok(lease) => lease,
            // The address may be outdated.
            Err(Unreachable) => return Ok(None),
        };
        let waited = &self.worker.shared.metrics.waited;
        waited.at(Stage::Connect).observe(began.elapsed());
        Ok(Some(Ready {
            found,
            translator,
            lease,
            _share: share,
        }))
    }

    /// Sends the call and forwards the response.
    ///
    /// # Errors
    /// [`Stop::Untouched`] if the compute provably did not process the call.
    pub(crate) async fn send(
        &self,
        ready: Box<Ready>,
        head: &http::request::Parts,
        request: &mut Messages,
        client: &Client,
    ) -> Result<Outcome, Stop> {
        let Ready {
            found: Found { route, backend, .. },
            translator,
            mut lease,
            _share,
        } = *ready;
        let (worker, open) = (self.worker, self.open);
        let Some(first) = &self.first else {
            return Err(Stop::Untouched);
        };
        let method = open.method();
        open.forwarded(&backend);
        if let Some(reattach) = &first.reattach {
            open.runs(
                &first.spark_session,
                open.user_id(&backend),
                &reattach.operation_id,
            );
        }
        let mut head = head.clone();
        toward_backend(&mut head, &backend, method);
        telemetry::inject(&Span::current(), &mut head.headers);
        let sent = lease.send(Request::from_parts(head, ()));
        let upstream: Upstream = sent.map_err(|Unreachable| Stop::Untouched)?;
        let exchange = Exchange {
            worker,
            open,
            backend: &backend,
            spark_session: first.spark_session,
            translator,
            clones: method == Method::CloneSession && !backend.dedicated,
            on_sail: OnceCell::new(),
            running: OnceCell::new(),
            settings: first.settings.as_ref(),
            route: &route,
        };
        if let Some(reattach) = &first.reattach {
            exchange.begin_on_sail(&reattach.operation_id);
        }
        let forwarded = forward(&exchange, upstream, request, client);
        if method != Method::Interrupt {
            return forwarded.await;
        }
        let limit = worker.shared.config.backend.interrupt_timeout;
        Box::pin(tokio::time::timeout(limit, forwarded))
            .await
            .unwrap_or_else(|_| Err(interrupt_unanswered(limit)))
    }
}

/// Binding of the Spark session of a call.
enum Binding {
    /// Bound to the session.
    Ours,
    /// Unknown from a route that may be outdated.
    Ask,
    /// Unbound; the call would create the Spark session.
    Unused,
}

/// With an expired token a call may only continue running operations: the engine would create a
/// Spark session that does not exist.
fn check_late(open: &OpenCall, found: &Found, first: &First) -> Result<(), Stop> {
    let running = &open.tally().running;
    match &open.caller().late {
        Some(late)
            if open.method() != Method::ReattachExecute
                && !running.is_running(found.backend.generation, first.spark_session) =>
        {
            Err(late.clone().into())
        }
        Some(_) | None => Ok(()),
    }
}

fn interrupt_unanswered(limit: Duration) -> Stop {
    Stop::Engine(Box::new(Status::deadline_exceeded(format!(
        "The session's compute did not answer the interrupt within {} s. The operation may be unknown to it; running operations continue.",
        limit.as_secs()
    ))))
}
