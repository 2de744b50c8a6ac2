//! A worker: one thread with its own runtime, view of routes and connections to compute. A
//! connection stays with its worker, so a call wakes no other thread.

pub(crate) mod held_calls;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod tokens;

use crate::activity::UsageRegistry;
use crate::call_error::draining;
use crate::config::Config;
use crate::grpc::method::Method;
use crate::jwks::{KeySet, KeySetUnavailable};
use crate::metrics::Metrics;
use crate::overload::{self, OverloadFlag};
use crate::resource_limits::ManagerRequests;
use crate::routes::cache::{ENDED_MARKER_TTL, ResolveError, RouteEvent, Routes};
use crate::upstream::{self, Pools};
use crate::worker::session::{Call, Session};
use crate::worker::tokens::VerifiedTokens;
use foldhash::fast::RandomState;
use service_kit::limiter::{ConcurrencyLimiter, RateLimiter};
use service_kit::tls::{ClientTls, ServerTls};
use session_core::{Clock, Engine, Reason, SessionId};
use session_proto::error::Refused;
use session_token::{Claims, Grace, TokenError, Verifier};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// State shared by all workers. Calls take no lock on it.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) verifier: Verifier,
    pub(crate) keys: Arc<KeySet>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) usages: Arc<UsageRegistry>,
    pub(crate) manager_requests: ManagerRequests,
    /// Rate of invalid tokens by client IP.
    pub(crate) bad_tokens: RateLimiter<IpAddr>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tls: Option<Arc<ServerTls>>,
    pub(crate) backend_tls: Arc<ClientTls>,
    /// Connections by client IP; locked once per connection.
    pub(crate) connections: Arc<ConcurrencyLimiter<IpAddr>>,
    pub(crate) overload: Arc<OverloadFlag>,
    pub(crate) control: tokio::runtime::Handle,
    /// The drain has begun: no new work.
    pub(crate) stopping: CancellationToken,
    /// The drain is over.
    pub(crate) forced: CancellationToken,
}

impl Shared {
    pub(crate) fn is_serving(&self) -> bool {
        !self.stopping.is_cancelled() && !self.keys.ring().is_empty()
    }

    /// Whether new work is rejected because memory is short.
    pub(crate) fn is_overloaded(&self) -> bool {
        self.overload.is_set()
    }

    /// Rejects work during overload. Calls that continue, release or interrupt work are always
    /// admitted, because they free memory.
    pub(crate) fn admit(&self, method: Method) -> Result<(), Refused> {
        if self.is_overloaded() && method.is_work() {
            self.metrics.process.overload_rejections.inc();
            return Err(overload::error());
        }
        Ok(())
    }
}

/// One worker.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tokens: VerifiedTokens,
    pub(crate) pools: Pools,
    /// Connections must close now.
    pub(crate) ending: CancellationToken,
    /// Streams of this worker that calls of other workers may receive.
    pub(crate) resumed: TaskTracker,
    sessions: RefCell<HashMap<SessionId, Rc<Session>, RandomState>>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let connector = upstream::connector(
            &shared.config.backend,
            Arc::clone(&shared.backend_tls),
            Arc::clone(&shared.metrics),
        );
        Self {
            shared,
            tokens: VerifiedTokens::default(),
            pools: Pools::new(connector),
            ending: CancellationToken::new(),
            resumed: TaskTracker::new(),
            sessions: RefCell::default(),
        }
    }

    /// Applies route events, and removes unused entries.
    pub(crate) async fn run_housekeeping(self: Rc<Self>, mut events: mpsc::UnboundedReceiver<RouteEvent>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        let mut key_changes = self.shared.keys.changes();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.apply(event),
                    None => return,
                },
                Ok(()) = key_changes.changed() => self.recheck_keys(),
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    /// Returns this worker's state of the token's session; creates it if necessary.
    pub(crate) fn session(&self, claims: &Claims) -> Rc<Session> {
        let id = &claims.sid;
        if let Some(session) = self.sessions.borrow().get(id) {
            return Rc::clone(session);
        }
        let session = Rc::new(Session::new(id.clone(), self.shared.usages.of(claims)));
        self.sessions.borrow_mut().insert(id.clone(), Rc::clone(&session));
        session
    }

    /// Reads the key set again, on the control runtime.
    pub(crate) async fn refresh_keys(&self) -> Result<(), KeySetUnavailable> {
        let keys = Arc::clone(&self.shared.keys);
        self.shared
            .control
            .spawn(async move { keys.refresh().await })
            .await
            .unwrap_or(Err(KeySetUnavailable))
    }

    fn apply(self: &Rc<Self>, event: RouteEvent) {
        match event {
            RouteEvent::Changed {
                session,
                version,
                token_epoch,
            } => {
                let Some(session) = self.sessions.borrow().get(&session).cloned() else {
                    return;
                };
                session.invalidate(version, token_epoch);
                self.recheck(session);
            }
            RouteEvent::Gone { session, gone } => {
                self.pools.forget(&session);
                if let Some(session) = self.sessions.borrow().get(&session) {
                    session.mark_ended(&gone);
                }
            }
            RouteEvent::Recheck => {
                let sessions: Vec<_> = self.sessions.borrow().values().cloned().collect();
                for session in sessions {
                    self.recheck(session);
                }
            }
        }
    }

    /// Ends the running calls whose tokens have lost their key while they could still be accepted: the
    /// key was withdrawn before its time. A key that is withdrawn by schedule has signed only tokens
    /// that expired long ago, and those do not end running calls. A set that could not be read for too
    /// long, which is empty, does not either.
    fn recheck_keys(self: &Rc<Self>) {
        let worker = Rc::clone(self);
        spawn_local(async move {
            let sessions: Vec<_> = worker.sessions.borrow().values().cloned().collect();
            let shared = &worker.shared;
            for session in sessions {
                for caller in session.callers() {
                    let (ring, now) = (shared.keys.ring(), shared.clock.now());
                    let verified = shared.verifier.verify(&caller.token, ring, now, Grace::Reattach);
                    if let Err(error @ TokenError::UnknownKid) = verified
                        && !ring.is_empty()
                    {
                        let refused = Refused::new(error.reason(), error.client_text());
                        session
                            .end_calls(|call| (call.caller.token == caller.token).then(|| refused.clone()));
                    }
                    // Each check takes some 70 µs.
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    /// Checks whether running calls of the session are still allowed.
    fn recheck(self: &Rc<Self>, session: Rc<Session>) {
        let callers = session.callers();
        if callers.is_empty() {
            return;
        }
        let worker = Rc::clone(self);
        spawn_local(async move {
            for caller in callers {
                let request = session.recheck_request(&caller.token);
                match worker.shared.routes.resolve(request).await {
                    Ok((route, stamp)) => {
                        if let Some(cached) = session.store_route(route, stamp) {
                            session.enforce(&cached.route);
                        }
                        return;
                    }
                    // Expiry does not end running calls, but such a token cannot request routes.
                    Err(ResolveError::Refused(refused)) if refused.reason == Reason::TokenExpired => {}
                    Err(ResolveError::Refused(refused)) => {
                        session
                            .end_calls(|call| (call.caller.token == caller.token).then(|| refused.clone()));
                    }
                    Err(ResolveError::Unreachable | ResolveError::TimedOut) => return,
                }
            }
        });
    }

    /// Ends running calls after the drain, with an error that states whether the client may
    /// continue elsewhere.
    pub(crate) fn end_all(&self) {
        for session in self.sessions.borrow().values() {
            session.end_calls(|call| Some(drain_error(call)));
        }
    }

    fn sweep(&self) {
        self.pools.sweep(self.shared.config.backend.idle_timeout);
        let forget = self.shared.config.routes.forget_after.max(ENDED_MARKER_TTL);
        self.sessions
            .borrow_mut()
            .retain(|_, session| !session.can_be_removed(forget));
    }
}

/// The error of a call that the drain ends. Spark keeps a reattachable operation and its results
/// for the client; other calls are lost.
fn drain_error(call: &Call) -> Refused {
    match call.engine() {
        None => draining(),
        Some(Engine::Spark) if call.is_reattachable() => draining(),
        Some(Engine::Spark | Engine::Sail) => Refused::new(
            Reason::BackendLost,
            "This proxy stopped while the call ran. Whether the operation took effect is not known. Check before you run it again.",
        ),
    }
}
