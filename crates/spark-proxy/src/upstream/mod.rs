//! Upstream connections: HTTP/2, pooled per worker, and per generation of a session for dedicated
//! compute.

mod call_counts;
mod connect;
pub(crate) mod headers;

use crate::grpc::keepalive::KeepaliveState;
use crate::grpc::method::Method;
use crate::grpc::request_body::Outgoing;
use crate::metrics::Metrics;
use crate::resource_limits::{CallShares, SharedPermit};
use crate::routes::Backend;
use call_counts::CallCounts;
use connect::{Connected, Connector};
use foldhash::fast::RandomState;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use http::uri::Authority;
use rustls::pki_types::ServerName;
use session_core::{OrgId, SessionId};
use session_proto::error::Refused;
use session_token::Claims;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use connect::Unreachable;

/// All connections of one worker.
pub(crate) struct Pools {
    connector: Connector,
    limits: PoolLimits,
    /// Connections to dedicated compute belong to one generation of one session, never to an
    /// address: addresses are reused.
    dedicated: RefCell<HashMap<(SessionId, u64), Rc<Pool>, RandomState>>,
    /// Connections to shared servers belong to the server: its address, and its name for TLS.
    shared: RefCell<HashMap<Authority, Vec<SharedPool>, RandomState>>,
    last_id: Cell<u64>,
}

/// The pool of a server that is used with this name for TLS. Mostly an address has one.
type SharedPool = (Option<ServerName<'static>>, Rc<Pool>);

/// Limits of a pool.
#[derive(Debug, Clone, Copy)]
struct PoolLimits {
    /// Calls on one connection; they cannot use up its window, even unread.
    calls: usize,
    /// Connections for all calls.
    connections: usize,
    /// Time limit for waiting for a place.
    wait: Duration,
    /// Calls of one session, and of one organization, at a shared server.
    per_session: u32,
    per_org: u32,
}

/// Connections beyond [`PoolLimits::connections`] for calls that end work, which must not wait for
/// work. They need their own connections, because the calls on a full one may have used up its
/// window.
const SPARE_CONNECTIONS: usize = 2;

/// The connections to one server.
pub(crate) struct Pool {
    /// Unique among the pools of the worker.
    id: u64,
    /// Calls of one organization, while a session of it holds them.
    orgs: CallCounts<OrgId>,
    /// Calls of one session, while it or a call holds them.
    sessions: CallCounts<SessionId>,
    connections: RefCell<Vec<Rc<PooledConnection>>>,
    /// Locked while a connection is made.
    connecting: tokio::sync::Mutex<()>,
    /// Number of failed connection attempts.
    failures: Cell<u64>,
    /// Calls ended since `last_used` was set.
    was_used: Cell<bool>,
    last_used: Cell<Option<Instant>>,
    /// Calls that wait for a place, and their notification.
    waiting: Cell<usize>,
    released: Notify,
}

/// One connection.
struct PooledConnection {
    sender: SendRequest<Outgoing>,
    open: Cell<usize>,
    dead: Cell<bool>,
    /// For calls that end work only.
    spare: bool,
    keepalive_state: Rc<KeepaliveState>,
}

/// A place on a connection for one call.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Rc<PooledConnection>,
    sender: SendRequest<Outgoing>,
}

/// One call in progress.
pub(crate) struct Upstream {
    pub(crate) response: ResponseFuture,
    pub(crate) sender: SendStream<Outgoing>,
}

impl Pools {
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            limits: connector.limits(),
            connector,
            dedicated: RefCell::default(),
            shared: RefCell::default(),
            last_id: Cell::default(),
        }
    }

    /// Whether a connection with room exists.
    pub(crate) fn is_connected(&self, pool: &Pool, method: Method) -> bool {
        pool.pick(self.limits, method).is_some()
    }

    fn next_id(&self) -> u64 {
        self.last_id.set(self.last_id.get() + 1);
        self.last_id.get()
    }

    /// The pool of connections to `backend`, the compute of the session.
    pub(crate) fn pool(&self, session: &SessionId, backend: &Backend) -> Rc<Pool> {
        if backend.dedicated {
            let mut pools = self.dedicated.borrow_mut();
            let pool = pools.entry((session.clone(), backend.generation));
            return Rc::clone(pool.or_insert_with(|| self.new_pool()));
        }
        let mut shared = self.shared.borrow_mut();
        let known = shared.get(&backend.authority).and_then(|pools| {
            let mut pools = pools.iter();
            pools.find(|(tls, _)| *tls == backend.tls)
        });
        if let Some((_, pool)) = known {
            return Rc::clone(pool);
        }
        let pool = self.new_pool();
        let pools = shared.entry(backend.authority.clone()).or_default();
        pools.push((backend.tls.clone(), Rc::clone(&pool)));
        pool
    }

    fn new_pool(&self) -> Rc<Pool> {
        Rc::new(Pool::new(self.next_id()))
    }

    /// Takes a share of a shared server for one call. Dedicated compute has no shares, and calls
    /// that end work need none.
    pub(crate) fn enter(
        &self,
        pool: &Pool,
        backend: &Backend,
        method: Method,
        shares: &RefCell<Option<CallShares>>,
        claims: &Claims,
    ) -> Result<Option<SharedPermit>, Refused> {
        if backend.dedicated || method.ends_work() {
            return Ok(None);
        }
        pool.enter(self.limits, shares, claims).map(Some)
    }

    /// Takes a place on a connection, and makes one if necessary, once for all callers. Waits if
    /// every allowed connection is full.
    pub(crate) async fn lease(
        &self,
        pool: Rc<Pool>,
        backend: &Backend,
        method: Method,
    ) -> Result<Lease, Unreachable> {
        let mut wait_until = None;
        loop {
            let connection = match pool.pick(self.limits, method) {
                Some(connection) => connection,
                None if !pool.may_grow(self.limits, method) => {
                    let until = *wait_until.get_or_insert_with(|| {
                        self.connector.metrics().connections.pool_full.inc();
                        Instant::now() + self.limits.wait
                    });
                    Box::pin(pool.wait(self.limits, method, until)).await?;
                    continue;
                }
                // After a wait the address is too old for a new connection.
                None if wait_until.is_some() => return Err(Unreachable),
                None => match Box::pin(self.connect(&pool, backend, method)).await? {
                    Some(connection) => connection,
                    None => continue,
                },
            };
            let mut sender = connection.sender.clone();
            // A connection that received a GOAWAY is not used for new calls.
            match poll_fn(|cx| sender.poll_ready(cx)).await {
                Ok(()) => return Ok(Lease::new(pool, connection, sender)),
                Err(error) => {
                    tracing::debug!(%error, "compute connection accepts no more calls");
                    connection.dead.set(true);
                }
            }
        }
    }

    /// Makes one connection for all concurrent callers; `None` if the pool filled up meanwhile.
    async fn connect(
        &self,
        pool: &Rc<Pool>,
        backend: &Backend,
        method: Method,
    ) -> Result<Option<Rc<PooledConnection>>, Unreachable> {
        let failures = pool.failures.get();
        let _connecting = pool.connecting.lock().await;
        if let Some(connection) = pool.pick(self.limits, method) {
            return Ok(Some(connection));
        }
        if pool.failures.get() != failures {
            // Callers that waited for a failed attempt do not repeat it.
            return Err(Unreachable);
        }
        if !pool.may_grow(self.limits, method) {
            return Ok(None);
        }
        let spare = pool.count(false) >= self.limits.connections;
        let connected = self.connector.connect(backend).await;
        let Connected {
            sender,
            driver,
            keepalive_state,
        } = connected.inspect_err(|Unreachable| pool.failures.set(failures + 1))?;
        let connection = Rc::new(PooledConnection {
            sender,
            open: Cell::new(0),
            dead: Cell::new(false),
            spare,
            keepalive_state,
        });
        pool.connections.borrow_mut().push(Rc::clone(&connection));
        // Weak: with a strong reference the connection would keep its own sender and never end.
        let pooled = Rc::downgrade(&connection);
        tokio::task::spawn_local(async move {
            driver
                .run(|| {
                    pooled
                        .upgrade()
                        .is_some_and(|connection| connection.open.get() > 0)
                })
                .await;
            if let Some(connection) = pooled.upgrade() {
                connection.dead.set(true);
            }
        });
        Ok(Some(connection))
    }

    /// Closes connections that were idle for `idle`.
    pub(crate) fn sweep(&self, idle: Duration) {
        let mut dedicated = self.dedicated.borrow_mut();
        dedicated.retain(|_, pool| pool.sweep(idle));
        self.shared.borrow_mut().retain(|_, pools| {
            pools.retain(|(_, pool)| pool.sweep(idle));
            !pools.is_empty()
        });
    }

    /// Closes the connections of an ended session, as their calls end.
    pub(crate) fn forget(&self, session: &SessionId) {
        self.dedicated.borrow_mut().retain(|(of, _), _| of != session);
    }
}

impl Pool {
    fn new(id: u64) -> Self {
        Self {
            id,
            orgs: CallCounts::default(),
            sessions: CallCounts::default(),
            connections: RefCell::default(),
            connecting: tokio::sync::Mutex::default(),
            failures: Cell::default(),
            was_used: Cell::default(),
            last_used: Cell::default(),
            waiting: Cell::default(),
            released: Notify::default(),
        }
    }

    /// Removes what is unused; whether the pool itself was used within `idle`.
    fn sweep(self: &Rc<Self>, idle: Duration) -> bool {
        self.connections
            .borrow_mut()
            .retain(|connection| !connection.dead.get());
        let connections = self.connections.borrow();
        let is_used = connections.iter().any(|connection| connection.open.get() > 0);
        if self.was_used.take() {
            self.last_used.set(Some(Instant::now()));
        }
        self.orgs.sweep();
        self.sessions.sweep();
        is_used || Rc::strong_count(self) > 1 || self.last_used.get().is_some_and(|at| at.elapsed() < idle)
    }

    /// Counts a call, with the counts that the session keeps of its last pool.
    fn enter(
        &self,
        limits: PoolLimits,
        shares: &RefCell<Option<CallShares>>,
        claims: &Claims,
    ) -> Result<SharedPermit, Refused> {
        let mut shares = shares.borrow_mut();
        let shares = match &mut *shares {
            Some(shares) if shares.is_at(self.id) => shares,
            outdated => outdated.insert(CallShares::new(
                self.id,
                self.sessions.of(&claims.sid),
                self.orgs.of(&claims.org),
            )),
        };
        shares.enter(limits.per_session, limits.per_org)
    }

    /// Selects a connection with room. One with a pending ping is avoided while another can be
    /// made: calls on it may be lost.
    fn pick(&self, limits: PoolLimits, method: Method) -> Option<Rc<PooledConnection>> {
        self.connections
            .borrow_mut()
            .retain(|connection| !connection.dead.get());
        let may_grow = self.may_grow(limits, method);
        let connections = self.connections.borrow();
        let has_room = |connection: &&Rc<PooledConnection>| {
            (!connection.spare || method.ends_work())
                && connection.open.get() < connection.sender.current_max_send_streams().min(limits.calls)
        };
        let mut with_room = connections.iter().filter(has_room);
        let responsive = with_room
            .clone()
            .find(|connection| !connection.keepalive_state.is_ping_pending());
        responsive.or_else(|| with_room.find(|_| !may_grow)).cloned()
    }

    fn may_grow(&self, limits: PoolLimits, method: Method) -> bool {
        self.count(false) < limits.connections || (method.ends_work() && self.count(true) < SPARE_CONNECTIONS)
    }

    fn count(&self, spare: bool) -> usize {
        self.connections
            .borrow()
            .iter()
            .filter(|connection| connection.spare == spare)
            .count()
    }

    /// Waits until a place is released. The number of waiting calls is limited to the number of
    /// places, except for calls that end work.
    async fn wait(&self, limits: PoolLimits, method: Method, until: Instant) -> Result<(), Unreachable> {
        if !method.ends_work() && self.waiting.get() >= limits.calls * limits.connections {
            return Err(Unreachable);
        }
        let _waiting = Waiting::new(&self.waiting);
        tokio::time::timeout_at(until, self.released.notified())
            .await
            .map_err(|_| Unreachable)
    }
}

/// Counts a waiting call until dropped.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Lease {
    fn new(pool: Rc<Pool>, connection: Rc<PooledConnection>, sender: SendRequest<Outgoing>) -> Self {
        if connection.open.get() == 0 {
            connection.keepalive_state.call_began();
        }
        connection.open.set(connection.open.get() + 1);
        Self {
            pool,
            connection,
            sender,
        }
    }

    /// Sends the request's headers. On failure, nothing was sent.
    pub(crate) fn send(&mut self, request: Request<()>) -> Result<Upstream, Unreachable> {
        match self.sender.send_request(request, false) {
            Ok((response, sender)) => Ok(Upstream { response, sender }),
            Err(error) => {
                tracing::debug!(%error, "compute connection accepts no more calls");
                self.connection.dead.set(true);
                Err(Unreachable)
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.open.set(self.connection.open.get() - 1);
        self.pool.was_used.set(true);
        if self.connection.spare {
            // Not every waiting call may use the place.
            self.pool.released.notify_waiters();
        } else if self.pool.waiting.get() > 0 {
            self.pool.released.notify_one();
        }
    }
}

/// Creates a connector with the settings of backend connections.
pub(crate) fn connector(
    config: &crate::config::BackendConfig,
    tls: Arc<service_kit::tls::ClientTls>,
    metrics: Arc<Metrics>,
) -> Connector {
    Connector::new(config, tls, metrics)
}

/// An h2 response body.
pub(crate) type Body = RecvStream;

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::{Timestamp, TokenId};

    #[test]
    fn a_session_that_returns_to_a_server_still_has_its_calls_there() {
        let now = Timestamp::from_millis(1_000_000);
        let claims = Claims {
            iss: "berth".into(),
            aud: "berth".into(),
            sub: "sa|tester".parse().unwrap(),
            org: "acme".parse().unwrap(),
            sid: SessionId::generate(now, 1),
            epoch: 1,
            iat: 1000,
            nbf: 1000,
            exp: 2000,
            jti: TokenId::generate(now, 1),
        };
        let limits = PoolLimits {
            calls: 1,
            connections: 1,
            wait: Duration::ZERO,
            per_session: 1,
            per_org: 0,
        };
        let [a, b] = [1, 2].map(Pool::new);
        let shares = RefCell::default();
        let first = a.enter(limits, &shares, &claims).unwrap();
        let second = b.enter(limits, &shares, &claims).unwrap();
        assert!(a.enter(limits, &shares, &claims).is_err());
        drop(first);
        let third = a.enter(limits, &shares, &claims).unwrap();
        drop((second, third));
        drop(shares);
        for pool in [&a, &b] {
            pool.sessions.sweep();
            pool.orgs.sweep();
            assert!(pool.sessions.is_empty() && pool.orgs.is_empty());
        }
    }
}
