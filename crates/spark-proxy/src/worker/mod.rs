//! A worker: one thread with a runtime of its own, its own view of routes and
//! its own connections to compute. A connection stays with its worker, so a
//! call wakes no other thread on its way.

pub(crate) mod held_calls;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod tokens;

use crate::activity::Ledger;
use crate::config::Config;
use crate::grpc::method::Method;
use crate::jwks::{Keys, Unreadable};
use crate::metrics::Metrics;
use crate::overload::{self, Shed};
use crate::per_ip_limit::Addresses;
use crate::routes::cache::{Ask, MARKER_LIFE, Miss, RouteEvent, Routes};
use crate::shares::Questions;
use crate::stop::draining;
use crate::upstream::{self, Pools};
use crate::worker::session::{Call, Session};
use crate::worker::tokens::Tokens;
use foldhash::fast::RandomState;
use service_kit::limits::Rates;
use service_kit::tls::{ClientTls, ServerTls};
use session_core::{Clock, Engine, Reason, SessionId};
use session_proto::error::Refused;
use session_token::{Claims, Verifier};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const SWEEP: Duration = Duration::from_secs(60);
/// How long a question about running calls may take.
const RECHECK_TIME: Duration = Duration::from_secs(5);

/// What all workers share. Nothing here is locked on the way of a call.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) verifier: Verifier,
    pub(crate) keys: Arc<Keys>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) questions: Questions,
    /// Tokens that were not valid, by the address they came from.
    pub(crate) bad_tokens: Rates<IpAddr>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tls: Option<Arc<ServerTls>>,
    pub(crate) backend_tls: Arc<ClientTls>,
    /// Locked once per connection.
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) shed: Arc<Shed>,
    pub(crate) control: tokio::runtime::Handle,
    /// No new work; what runs may go on.
    pub(crate) stopping: CancellationToken,
    /// The drain is over.
    pub(crate) forced: CancellationToken,
}

impl Shared {
    pub(crate) fn is_serving(&self) -> bool {
        !self.stopping.is_cancelled() && !self.keys.ring().is_empty()
    }

    /// Is memory so short that new work is refused?
    pub(crate) fn is_shedding(&self) -> bool {
        self.shed.is_on()
    }

    /// May a call begin, as far as memory goes? What reattaches to running
    /// work, releases or interrupts it always may: it ends what takes memory.
    pub(crate) fn admit(&self, method: Method) -> Result<(), Refused> {
        if self.is_shedding() && method.is_work() {
            self.metrics.shed.inc();
            return Err(overload::refused());
        }
        Ok(())
    }
}

/// One worker.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tokens: Tokens,
    pub(crate) pools: Pools,
    /// Its connections must close now.
    pub(crate) ending: CancellationToken,
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
            tokens: Tokens::default(),
            pools: Pools::new(connector),
            ending: CancellationToken::new(),
            sessions: RefCell::default(),
        }
    }

    /// Applies what is announced of routes, and forgets what was long unused.
    pub(crate) async fn keep_house(self: Rc<Self>, mut events: mpsc::UnboundedReceiver<RouteEvent>) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.apply(event),
                    None => return,
                },
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    /// What this worker knows of a token's session, from now on something.
    pub(crate) fn session(&self, claims: &Claims) -> Rc<Session> {
        let id = &claims.sid;
        if let Some(session) = self.sessions.borrow().get(id) {
            return Rc::clone(session);
        }
        let session = Rc::new(Session::new(id.clone(), self.shared.ledger.of(claims)));
        self.sessions.borrow_mut().insert(id.clone(), Rc::clone(&session));
        session
    }

    /// Has the key set read again, on the control runtime.
    pub(crate) async fn look_for_keys(&self) -> Result<(), Unreadable> {
        let keys = Arc::clone(&self.shared.keys);
        self.shared
            .control
            .spawn(async move { keys.look_again().await })
            .await
            .unwrap_or(Err(Unreadable))
    }

    fn apply(self: &Rc<Self>, event: RouteEvent) {
        match event {
            RouteEvent::Changed {
                session,
                order,
                token_epoch,
            } => {
                let Some(session) = self.sessions.borrow().get(&session).cloned() else {
                    return;
                };
                session.outdate(order, token_epoch);
                self.recheck(session);
            }
            RouteEvent::Gone { session, gone } => {
                self.pools.forget(&session);
                if let Some(session) = self.sessions.borrow().get(&session) {
                    session.bury(&gone);
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

    /// If calls of the session are running: are they still allowed?
    fn recheck(self: &Rc<Self>, session: Rc<Session>) {
        let callers = session.callers();
        if callers.is_empty() {
            return;
        }
        let worker = Rc::clone(self);
        spawn_local(async move {
            for caller in callers {
                let ask = Ask {
                    session: session.id.clone(),
                    token: Arc::clone(&caller.token),
                    wake: false,
                    until: Instant::now() + RECHECK_TIME,
                    not_before: None,
                };
                match worker.shared.routes.resolve(ask).await {
                    Ok((route, stamp)) => {
                        if session.learn(&route, stamp) {
                            session.enforce(&route);
                        }
                        return;
                    }
                    // Expiry never ends what is running, but it cannot ask either.
                    Err(Miss::Refused(refused)) if refused.reason == Reason::TokenExpired => {}
                    Err(Miss::Refused(refused)) => {
                        session
                            .end_calls(|call| (call.caller.token == caller.token).then(|| refused.clone()));
                    }
                    Err(Miss::Unreachable | Miss::Waited) => return,
                }
            }
        });
    }

    /// The drain is over: what still runs is ended with an error that tells
    /// the client whether it may go on elsewhere.
    pub(crate) fn end_all(&self) {
        for session in self.sessions.borrow().values() {
            session.end_calls(|call| Some(last_words(call)));
        }
    }

    fn sweep(&self) {
        self.pools.sweep(self.shared.config.backend.idle_timeout);
        let forget = self.shared.config.routes.forget_after.max(MARKER_LIFE);
        self.sessions
            .borrow_mut()
            .retain(|_, session| session.open_calls() > 0 || session.last_used.get().elapsed() < forget);
    }
}

/// Spark keeps a reattachable operation and its results for the client that
/// comes back; whatever else is cut is lost.
fn last_words(call: &Call) -> Refused {
    match call.engine() {
        None => draining(),
        Some(Engine::Spark) if call.is_reattachable() => draining(),
        Some(Engine::Spark | Engine::Sail) => Refused::new(
            Reason::BackendLost,
            "This proxy had to stop while the call ran. Whether the operation took effect is not known. Check before you run it again.",
        ),
    }
}
