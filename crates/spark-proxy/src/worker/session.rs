//! One session in one worker: its route, its open calls, and why they must end. Only one thread
//! uses it, so there are no locks.
//!
//! A call is *open* from its admission until its last byte, including waits. It is listed before
//! its route is requested, so that an announced end always reaches it.

use crate::activity::{BusyGuard, OperationName, SessionUsage};
use crate::call_error::backend_lost;
use crate::grpc::identity::{KnownClients, Operation, SparkSessionId};
use crate::grpc::method::Method;
use crate::resource_limits::CallShares;
use crate::routes::cache::{RouteRequest, Routes, Stamp};
use crate::routes::{Backend, Gone, Route, RouteState, RouteVersion, revoked};
use crate::worker::settings::SettingsChange;
use crate::worker::tokens::{Caller, LastAdmitted};
use session_core::{Engine, Reason, SessionId};
use session_proto::error::Refused;
use session_token::Claims;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// One session in one worker.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    route: RefCell<Option<Rc<CachedRoute>>>,
    gone: RefCell<Option<Arc<Gone>>>,
    min_version: Cell<RouteVersion>,
    calls: RefCell<Vec<Rc<Call>>>,
    pub(crate) usage: Arc<SessionUsage>,
    /// Its calls at the shared server that it uses.
    pub(crate) shares: RefCell<Option<CallShares>>,
    spark_sessions: RefCell<Option<Box<SparkSessions>>>,
    /// The Spark sessions whose clients are known.
    pub(crate) known_clients: Cell<KnownClients>,
    /// Locked while a bind request is open.
    pub(crate) binding: tokio::sync::Mutex<()>,
    /// Calls ended since `last_used` was set.
    was_used: Cell<bool>,
    last_used: Cell<Instant>,
}

/// What one worker records of Spark sessions, for sessions on shared compute and those that change
/// settings. Most have one Spark session, which a list keeps in a third of the memory of a map.
#[derive(Default)]
struct SparkSessions {
    bound: BoundSparkSessions,
    /// Last keep-alive of Spark sessions on shared Sail servers.
    keep_alives: Vec<(SparkSessionId, Instant)>,
    /// The last stored settings change, and its time.
    stored_change: Option<Box<(Instant, StoredChange)>>,
}

/// Bound Spark sessions, and the version of the route at that time: a newer route may have released
/// them.
#[derive(Default)]
struct BoundSparkSessions {
    version: RouteVersion,
    /// In order, for binary searches.
    ids: Vec<SparkSessionId>,
}

impl BoundSparkSessions {
    fn contains(&self, version: RouteVersion, spark_session: &SparkSessionId) -> bool {
        self.version == version && self.ids.binary_search(spark_session).is_ok()
    }

    fn insert(&mut self, version: RouteVersion, spark_session: SparkSessionId) {
        if version < self.version {
            return;
        }
        if self.version != version || self.ids.len() >= MAX_BOUND {
            self.version = version;
            self.ids.clear();
        }
        if let Err(place) = self.ids.binary_search(&spark_session) {
            if self.ids.is_empty() {
                self.ids.reserve_exact(1);
            }
            self.ids.insert(place, spark_session);
        }
    }
}

/// A route as one worker holds it. Counted without atomics, because every call holds it.
pub(crate) struct CachedRoute {
    pub(crate) route: Arc<Route>,
    /// The compute of an active route.
    pub(crate) backend: Option<Rc<WorkerBackend>>,
    pub(crate) stamp: Stamp,
}

/// A backend that the calls of one worker hold, counted without atomics.
pub(crate) struct WorkerBackend(Arc<Backend>);

impl Deref for WorkerBackend {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.0
    }
}

impl CachedRoute {
    fn new(route: Arc<Route>, stamp: Stamp) -> Rc<Self> {
        let backend = match &route.state {
            RouteState::Active(backend) => Some(Rc::new(WorkerBackend(Arc::clone(backend)))),
            RouteState::Pending(_) | RouteState::Idle(_) | RouteState::Gone(_) => None,
        };
        Rc::new(Self {
            route,
            backend,
            stamp,
        })
    }
}

/// One open call.
pub(crate) struct Call {
    pub(crate) caller: Rc<Caller>,
    pub(crate) method: Method,
    /// Index in the list of the session.
    index: Cell<usize>,
    end: RefCell<Option<Refused>>,
    waker: RefCell<Option<Waker>>,
    /// Engine of the compute, once forwarded.
    engine: Cell<Option<Engine>>,
    /// Generation of the dedicated compute, once forwarded.
    dedicated_generation: Cell<Option<u64>>,
    /// The client can receive the results on another connection.
    reattachable: Cell<bool>,
}

/// Keeps a call in the list of its session.
pub(crate) struct OpenCall {
    session: Rc<Session>,
    call: Rc<Call>,
    /// Set once the call is known to be work.
    busy: RefCell<Option<BusyGuard>>,
    /// The operation of the call, until the call is known to be work.
    operation: RefCell<Option<OperationName>>,
    /// Counted in the rate of the organization.
    rated: Cell<bool>,
    last_admitted: Rc<LastAdmitted>,
    opened_at: Instant,
}

/// Time limit for a route request about running calls.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Retry delay when calls of the session must end first, or their rate is exceeded.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time for which an unchanged settings change is not stored again; later, another worker or proxy
/// may have stored another one.
const STORED_CHANGE_TTL: Duration = Duration::from_secs(1);
/// A change of settings of a Spark session on one generation of compute.
type StoredChange = (u64, SparkSessionId, SettingsChange);
/// Maximum number of recorded bindings; others are requested again.
const MAX_BOUND: usize = 256;

impl Session {
    pub(crate) fn new(id: SessionId, usage: Arc<SessionUsage>) -> Self {
        Self {
            id,
            usage,
            shares: RefCell::default(),
            spark_sessions: RefCell::default(),
            known_clients: Cell::default(),
            binding: tokio::sync::Mutex::default(),
            route: RefCell::default(),
            gone: RefCell::default(),
            min_version: Cell::default(),
            calls: RefCell::default(),
            was_used: Cell::default(),
            last_used: Cell::new(Instant::now()),
        }
    }

    /// Opens a call, unless the session ended or has `max` open calls.
    pub(crate) fn open(
        self: &Rc<Self>,
        caller: &Rc<Caller>,
        method: Method,
        max: u32,
        last_admitted: &Rc<LastAdmitted>,
        now: Instant,
    ) -> Result<OpenCall, Refused> {
        if let Some(gone) = &*self.gone.borrow() {
            return Err(gone.refused());
        }
        // Ending work must always be possible, and starts nothing.
        let max = if method.ends_work() { u32::MAX } else { max };
        if !self.usage.try_open_call(max) {
            return Err(Refused::new(
                Reason::QuotaExceeded,
                format!(
                    "The session has {max} calls open, which is the limit (limits.calls_per_session). Wait until one of them ends."
                ),
            )
            .with("limit", "limits.calls_per_session")
            .retry_after(RETRY_DELAY));
        }
        let mut calls = self.calls.borrow_mut();
        let call = Rc::new(Call {
            caller: Rc::clone(caller),
            method,
            index: Cell::new(calls.len()),
            end: RefCell::default(),
            waker: RefCell::default(),
            engine: Cell::default(),
            dedicated_generation: Cell::default(),
            reattachable: Cell::default(),
        });
        calls.push(Rc::clone(&call));
        Ok(OpenCall {
            session: Rc::clone(self),
            call,
            busy: RefCell::default(),
            operation: RefCell::default(),
            rated: Cell::default(),
            last_admitted: Rc::clone(last_admitted),
            opened_at: now,
        })
    }

    /// Whether the Spark session was bound under a route of exactly this version.
    pub(crate) fn is_bound(&self, version: RouteVersion, spark_session: &SparkSessionId) -> bool {
        let spark_sessions = self.spark_sessions.borrow();
        spark_sessions
            .as_ref()
            .is_some_and(|known| known.bound.contains(version, spark_session))
    }

    /// Records that the Spark session was bound under a route of this version.
    pub(crate) fn bind(&self, version: RouteVersion, spark_session: SparkSessionId) {
        let mut spark_sessions = self.spark_sessions.borrow_mut();
        let known = spark_sessions.get_or_insert_default();
        known.bound.insert(version, spark_session);
    }

    /// Whether a newer version of the session is known than `version`.
    pub(crate) fn is_outdated(&self, version: RouteVersion) -> bool {
        self.min_version.get() > version
    }

    /// Whether a Spark session that was bound under a route of this version is still bound.
    pub(crate) fn still_binds(&self, version: RouteVersion, spark_session: &SparkSessionId) -> bool {
        let binds = |cached: &Rc<CachedRoute>| {
            let route = &cached.route;
            route.binds(spark_session) || self.is_bound(route.version, spark_session)
        };
        !self.is_outdated(version) || self.route.borrow().as_ref().is_some_and(binds)
    }

    /// Whether the Spark session is due for a keep-alive: not if there was one within `recently`.
    /// If due, records one.
    pub(crate) fn take_keep_alive(&self, spark_session: &SparkSessionId, recently: Duration) -> bool {
        let mut spark_sessions = self.spark_sessions.borrow_mut();
        let kept = &mut spark_sessions.get_or_insert_default().keep_alives;
        kept.retain(|(_, at)| at.elapsed() < recently);
        if kept.iter().any(|(kept, _)| kept == spark_session) {
            return false;
        }
        kept.push((*spark_session, Instant::now()));
        true
    }

    /// Whether exactly this change was the last one stored, within [`STORED_CHANGE_TTL`].
    pub(crate) fn was_just_stored(&self, change: &StoredChange) -> bool {
        let spark_sessions = self.spark_sessions.borrow();
        let stored = spark_sessions
            .as_ref()
            .and_then(|known| known.stored_change.as_deref());
        stored.is_some_and(|(at, last)| at.elapsed() < STORED_CHANGE_TTL && last == change)
    }

    /// Records a stored settings change.
    pub(crate) fn record_stored(&self, change: StoredChange) {
        let mut spark_sessions = self.spark_sessions.borrow_mut();
        spark_sessions.get_or_insert_default().stored_change = Some(Box::new((Instant::now(), change)));
    }

    /// A request for the present route, to check what runs with this token.
    pub(crate) fn recheck_request(&self, token: &Arc<str>) -> RouteRequest {
        RouteRequest {
            session: self.id.clone(),
            token: Arc::clone(token),
            wake: false,
            until: Instant::now() + RECHECK_TIMEOUT,
            not_before: None,
        }
    }

    /// The route, if it may be used without a new request.
    pub(crate) fn fresh_route(&self, routes: &Routes) -> Option<Rc<CachedRoute>> {
        let route = self.route.borrow();
        route
            .as_ref()
            .filter(|cached| routes.is_fresh(cached.stamp))
            .cloned()
    }

    /// Whether there is a route that may be used without a new request.
    pub(crate) fn has_fresh_route(&self, routes: &Routes) -> bool {
        let route = self.route.borrow();
        route.as_ref().is_some_and(|cached| routes.is_fresh(cached.stamp))
    }

    /// The error for a token, if it is known without a new request.
    pub(crate) fn known_error(&self, routes: &Routes, claims: &Claims) -> Option<Refused> {
        if let Some(gone) = &*self.gone.borrow() {
            return Some(gone.refused());
        }
        self.fresh_route(routes)?.route.admits(claims).err()
    }

    /// The route, if it may be used while session-manager is unreachable.
    pub(crate) fn stale_route(&self, routes: &Routes) -> Option<Rc<CachedRoute>> {
        let route = self.route.borrow();
        route
            .as_ref()
            .filter(|cached| routes.is_usable_stale(cached.stamp))
            .cloned()
    }

    /// Stores a route and returns it, unless a newer one is known here.
    pub(crate) fn store_route(&self, route: Arc<Route>, stamp: Stamp) -> Option<Rc<CachedRoute>> {
        if route.version < self.min_version.get() {
            return None;
        }
        self.min_version.set(route.version);
        let cached = CachedRoute::new(route, stamp);
        *self.route.borrow_mut() = Some(Rc::clone(&cached));
        Some(cached)
    }

    /// Invalidates versions below `version`.
    pub(crate) fn invalidate(&self, version: RouteVersion, token_epoch: u64) {
        self.min_version.set(self.min_version.get().max(version));
        if self
            .route
            .borrow()
            .as_ref()
            .is_some_and(|cached| cached.route.version < version)
        {
            *self.route.borrow_mut() = None;
        }
        self.end_calls(|call| (call.caller.claims.epoch < token_epoch).then(|| revoked(&self.id)));
    }

    /// Records the end of the session, and ends all its calls.
    pub(crate) fn mark_ended(&self, gone: &Arc<Gone>) {
        *self.route.borrow_mut() = None;
        *self.gone.borrow_mut() = Some(Arc::clone(gone));
        self.end_calls(|_| Some(gone.refused()));
    }

    /// Ends the calls that `route` no longer admits.
    pub(crate) fn enforce(&self, route: &Route) {
        if let RouteState::Gone(gone) = &route.state {
            self.end_calls(|_| Some(gone.refused()));
        }
        self.end_calls(|call| route.admits(&call.caller.claims).err());
        self.end_calls(|call| {
            call.dedicated_generation
                .get()
                .filter(|generation| *generation < route.generation)
                .map(|_| backend_lost("The session's compute was replaced while the call ran."))
        });
    }

    /// Ends each call for which `why` returns an error.
    pub(crate) fn end_calls(&self, why: impl Fn(&Call) -> Option<Refused>) {
        for call in &*self.calls.borrow() {
            if let Some(refused) = why(call) {
                call.end(refused);
            }
        }
    }

    /// The distinct callers with open calls.
    pub(crate) fn callers(&self) -> Vec<Rc<Caller>> {
        let mut callers: Vec<Rc<Caller>> = Vec::new();
        for call in &*self.calls.borrow() {
            if !callers.iter().any(|known| known.token == call.caller.token) {
                callers.push(Rc::clone(&call.caller));
            }
        }
        callers
    }

    pub(crate) fn open_calls(&self) -> usize {
        self.calls.borrow().len()
    }

    /// Whether nothing of the session is needed, after no calls for `time`.
    pub(crate) fn can_be_removed(&self, time: Duration) -> bool {
        self.open_calls() == 0
            && self.is_unused_for(time)
            && (self.gone.borrow().is_some() || !self.usage.sail_operations.is_needed())
    }

    /// Whether the session has had no calls for `time`. Calls do not read the clock for this, so
    /// that the time is exact to the interval between two questions.
    fn is_unused_for(&self, time: Duration) -> bool {
        if self.was_used.take() || self.open_calls() > 0 {
            self.last_used.set(Instant::now());
        }
        self.last_used.get().elapsed() >= time
    }
}

impl Call {
    pub(crate) fn engine(&self) -> Option<Engine> {
        self.engine.get()
    }

    /// Whether Spark keeps the operation and results for a returning client.
    pub(crate) fn is_reattachable(&self) -> bool {
        self.method == Method::ReattachExecute || self.reattachable.get()
    }

    fn end(&self, refused: Refused) {
        self.end.borrow_mut().get_or_insert(refused);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl OpenCall {
    /// The `user_id` for the backend; Sail returns it as `current_user()`. It is the token's
    /// subject, except on a shared Spark server: there it is the user id of the session. Spark
    /// separates the Spark sessions of two users even under one id, and two sessions of one person
    /// must be separate too. Sail separates by Spark session id only.
    pub(crate) fn user_id<'a>(&'a self, backend: &'a Backend) -> &'a str {
        if backend.dedicated || backend.engine == Engine::Sail {
            self.caller().claims.sub.as_str()
        } else {
            &backend.user_id
        }
    }

    pub(crate) fn session(&self) -> &Rc<Session> {
        &self.session
    }

    pub(crate) fn caller(&self) -> &Rc<Caller> {
        &self.call.caller
    }

    pub(crate) fn opened_at(&self) -> Instant {
        self.opened_at
    }

    pub(crate) fn method(&self) -> Method {
        self.call.method
    }

    /// Whether the call starts work or wakes compute.
    pub(crate) fn is_work(&self) -> bool {
        self.call.method.is_work() && self.call.caller.expired_in_grace.is_none()
    }

    pub(crate) fn usage(&self) -> &Arc<SessionUsage> {
        &self.session.usage
    }

    /// Counts the call in the rate of its organization, once its token is admitted. Clients send
    /// one `ReleaseExecute` per part of a result; these are not counted.
    pub(crate) fn take_rate(&self) -> Result<(), Refused> {
        if self.rated.replace(true) || self.method() == Method::ReleaseExecute {
            return Ok(());
        }
        if self.session.usage.try_take_call() {
            return Ok(());
        }
        Err(Refused::new(
            Reason::RateLimited,
            "The organization makes too many calls at the moment (limits.calls_per_second_per_org). Try again in a little while.",
        )
        .with("limit", "limits.calls_per_second_per_org")
        .retry_after(RETRY_DELAY))
    }

    /// Records that the session admitted the token of this caller.
    pub(crate) fn mark_connection_admitted(&self, caller: &Rc<Caller>) {
        self.last_admitted.set(caller);
    }

    /// Records that the call is forwarded to compute.
    pub(crate) fn mark_forwarded(&self, backend: &Backend) {
        self.call.engine.set(Some(backend.engine));
        self.call
            .dedicated_generation
            .set(backend.dedicated.then_some(backend.generation));
        self.session.usage.count_call();
    }

    /// Marks the call as work: the session is busy until the call ends.
    pub(crate) fn begin_work(&self) {
        let mut busy = self.busy.borrow_mut();
        if busy.is_none() {
            let mut begun = self.session.usage.begin_work();
            if let Some(operation) = self.operation.take() {
                begun.on_operation(operation, self.method());
            }
            *busy = Some(begun);
        }
    }

    /// Takes what keeps the session busy, for a task that outlives the call.
    pub(crate) fn take_busy(&self) -> Option<BusyGuard> {
        self.busy.take()
    }

    /// Stores the operation of the request, once all of it was read.
    pub(crate) fn set_request_operation(
        &self,
        spark_session: &SparkSessionId,
        user_id: &str,
        operation: &Operation,
    ) {
        self.call.reattachable.set(operation.is_reattachable());
        if let Some(id) = operation.id() {
            self.set_operation(spark_session, user_id, id);
        }
    }

    /// Sets the operation, and its `user_id` at the engine. A call that becomes work later, such as
    /// a reattach, reports it from then on.
    pub(crate) fn set_operation(&self, spark_session: &SparkSessionId, user_id: &str, operation: &str) {
        let operation = OperationName {
            spark_session: *spark_session,
            user_id: user_id.to_owned(),
            operation: operation.to_owned(),
        };
        match &mut *self.busy.borrow_mut() {
            Some(busy) => busy.on_operation(operation, self.method()),
            None => *self.operation.borrow_mut() = Some(operation),
        }
    }

    /// Waits until the call must end, and returns the error. Supports one waiter at a time.
    pub(crate) async fn ended(&self) -> Refused {
        poll_fn(|cx| {
            if let Some(refused) = &*self.call.end.borrow() {
                return Poll::Ready(refused.clone());
            }
            let mut waker = self.call.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut calls = self.session.calls.borrow_mut();
        let index = self.call.index.get();
        calls.swap_remove(index);
        if let Some(moved) = calls.get(index) {
            moved.index.set(index);
        }
        self.session.was_used.set(true);
        self.session.usage.close_call();
    }
}

#[cfg(test)]
mod tests;
