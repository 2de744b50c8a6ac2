//! A worker: one thread with a runtime of its own, its own view of routes and
//! its own connections to compute. A connection stays with its worker, so a
//! call wakes no other thread on its way.

use crate::activity::Ledger;
use crate::addresses::Addresses;
use crate::auth::Tokens;
use crate::backend::{self, Pools};
use crate::call::draining;
use crate::config::Config;
use crate::connection;
use crate::keys::{Keys, Unreadable};
use crate::method::Method;
use crate::metrics::Metrics;
use crate::routes::book::{Ask, MARKER_LIFE, Miss, RouteEvent, Routes};
use crate::session::{Call, Session};
use crate::shares::Questions;
use crate::shed::{self, Shed};
use foldhash::fast::RandomState;
use service_kit::limits::Rates;
use service_kit::tls::{ClientTls, ServerTls};
use session_core::{Clock, Engine, Reason, SessionId};
use session_proto::error::Refused;
use session_token::{Claims, Verifier};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const SWEEP: Duration = Duration::from_secs(60);
/// How long a question about running calls may take.
const RECHECK_TIME: Duration = Duration::from_secs(5);
/// How long after the drain the last errors may take to reach their clients.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
            return Err(shed::refused());
        }
        Ok(())
    }
}

/// A connection on its way to a worker.
pub(crate) struct Accepted {
    pub(crate) tcp: std::net::TcpStream,
    pub(crate) remote: SocketAddr,
    /// Its places among all connections and among the worker's.
    pub(crate) permit: [OwnedSemaphorePermit; 2],
}

/// What a worker is fed with. The end of `accepted` is the end of accepting.
pub(crate) struct Feed {
    pub(crate) accepted: mpsc::UnboundedReceiver<Accepted>,
    pub(crate) events: mpsc::UnboundedReceiver<RouteEvent>,
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

/// Runs a worker on this thread until its last connection is closed.
pub(crate) fn run(shared: Arc<Shared>, feed: Feed) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let connector = backend::connector(
            &shared.config.backend,
            Arc::clone(&shared.backend_tls),
            Arc::clone(&shared.metrics),
        );
        let worker = Rc::new(Worker {
            shared,
            tokens: Tokens::default(),
            pools: Pools::new(connector),
            ending: CancellationToken::new(),
            sessions: RefCell::default(),
        });
        worker.serve(feed).await;
    });
    Ok(())
}

impl Worker {
    async fn serve(self: Rc<Self>, feed: Feed) {
        let Feed { mut accepted, events } = feed;
        let housekeeping = spawn_local(Rc::clone(&self).keep_house(events));
        let connections = TaskTracker::new();
        while let Some(Accepted { tcp, remote, permit }) = accepted.recv().await {
            let worker = Rc::clone(&self);
            connections.spawn_local(async move {
                let metrics = Arc::clone(&worker.shared.metrics);
                metrics.connections.add(1);
                connection::serve(worker, tcp, remote).await;
                metrics.connections.add(-1);
                drop(permit);
            });
        }
        connections.close();
        tokio::select! {
            () = connections.wait() => {}
            () = self.shared.forced.cancelled() => {
                self.end_all();
                let _ = tokio::time::timeout(LAST_WORDS, connections.wait()).await;
                self.ending.cancel();
                let _ = tokio::time::timeout(LAST_WORDS, connections.wait()).await;
            }
        }
        housekeeping.abort();
    }

    async fn keep_house(self: Rc<Self>, mut events: mpsc::UnboundedReceiver<RouteEvent>) {
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
    fn end_all(&self) {
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

/// Nothing panics while it holds one of the proxy's locks; if it did, the data
/// would still be whole, because every change is one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
