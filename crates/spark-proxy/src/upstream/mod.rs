//! Upstream connections: HTTP/2, pooled per worker, and per generation of a session for dedicated
//! compute.

mod connect;
pub(crate) mod headers;

use crate::grpc::keepalive::Ear;
use crate::grpc::method::Method;
use crate::grpc::request_body::Outgoing;
use crate::metrics::Metrics;
use crate::routes::{Backend, PoolKey};
use connect::{Connected, Connector};
use foldhash::fast::RandomState;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use service_kit::limiter::{ConcurrencyLimiter, Permit};
use session_core::{OrgId, Reason, SessionId};
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
    bounds: Bounds,
    by_key: RefCell<HashMap<PoolKey, Rc<Pool>, RandomState>>,
}

/// Limits of a pool.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Calls on one connection; they cannot use up its window, even unread.
    calls: usize,
    /// Connections for all calls.
    links: usize,
    /// Time limit for waiting for a place.
    wait: Duration,
    /// Calls of one session, and of one organization, at a shared server.
    per_session: u32,
    per_org: u32,
}

/// Connections beyond [`Bounds::links`] for calls that end work, which must not wait for work. They
/// need their own connections, because the calls on a full one may have used up its window.
const SPARE_LINKS: usize = 2;
/// Retry delay when calls of the caller must end first.
const RETRY: Duration = Duration::from_secs(1);

/// The connections of one pool key.
struct Pool {
    /// Calls of one session, and of one organization.
    sessions: Arc<ConcurrencyLimiter<SessionId>>,
    orgs: Arc<ConcurrencyLimiter<OrgId>>,
    links: RefCell<Vec<Rc<Link>>>,
    /// Locked while a connection is made.
    gate: tokio::sync::Mutex<()>,
    /// Number of failed connection attempts.
    failures: Cell<u64>,
    last_used: Cell<Option<Instant>>,
    /// Calls that wait for a place, and their notification.
    waiting: Cell<usize>,
    room: Notify,
}

/// Place of a call in the shares of a shared server; released on drop.
pub(crate) struct Share {
    _session: Permit<SessionId>,
    _org: Permit<OrgId>,
}

/// One connection.
struct Link {
    sender: SendRequest<Outgoing>,
    open: Cell<usize>,
    dead: Cell<bool>,
    /// For calls that end work only.
    spare: bool,
    ear: Rc<Ear>,
}

/// A place on a connection for one call.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    link: Rc<Link>,
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
            bounds: connector.bounds(),
            connector,
            by_key: RefCell::default(),
        }
    }

    /// Whether a connection exists.
    pub(crate) fn is_connected(&self, backend: &Backend, method: Method) -> bool {
        self.by_key
            .borrow()
            .get(&backend.pool)
            .is_some_and(|pool| pool.pick(self.bounds, method).is_some())
    }

    fn pool(&self, backend: &Backend) -> Rc<Pool> {
        if let Some(pool) = self.by_key.borrow().get(&backend.pool) {
            return Rc::clone(pool);
        }
        let mut by_key = self.by_key.borrow_mut();
        let pool = by_key.entry(backend.pool.clone());
        Rc::clone(pool.or_insert_with(|| Rc::new(Pool::new(self.bounds))))
    }

    /// Takes a share of a shared server for one call. Dedicated compute has no shares, and calls
    /// that end work need none.
    pub(crate) fn enter(
        &self,
        backend: &Backend,
        method: Method,
        claims: &Claims,
    ) -> Result<Option<Share>, Refused> {
        if backend.dedicated || method.ends_work() {
            return Ok(None);
        }
        let pool = self.pool(backend);
        let session = pool.sessions.enter(claims.sid.clone());
        let session = session.ok_or_else(|| crowded("session", "backend.shared_calls_per_session"))?;
        let org = pool.orgs.enter(claims.org.clone());
        let org = org.ok_or_else(|| crowded("organization", "backend.shared_calls_per_org"))?;
        Ok(Some(Share {
            _session: session,
            _org: org,
        }))
    }

    /// Takes a place on a connection, and makes one if necessary, once for all callers. Waits if
    /// every allowed connection is full.
    pub(crate) async fn lease(&self, backend: &Backend, method: Method) -> Result<Lease, Unreachable> {
        let pool = self.pool(backend);
        let mut patience = None;
        loop {
            let link = match pool.pick(self.bounds, method) {
                Some(link) => link,
                None if !pool.may_grow(self.bounds, method) => {
                    let until = *patience.get_or_insert_with(|| {
                        self.connector.metrics().pool_full.inc();
                        Instant::now() + self.bounds.wait
                    });
                    Box::pin(pool.wait(self.bounds, method, until)).await?;
                    continue;
                }
                // After a wait the address is too old for a new connection.
                None if patience.is_some() => return Err(Unreachable),
                None => match Box::pin(self.connect(&pool, backend, method)).await? {
                    Some(link) => link,
                    None => continue,
                },
            };
            let mut sender = link.sender.clone();
            // A connection that received a GOAWAY is not used for new calls.
            match poll_fn(|cx| sender.poll_ready(cx)).await {
                Ok(()) => return Ok(Lease::new(pool, link, sender)),
                Err(error) => {
                    tracing::debug!(%error, "compute connection accepts no more calls");
                    link.dead.set(true);
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
    ) -> Result<Option<Rc<Link>>, Unreachable> {
        let failures = pool.failures.get();
        let _gate = pool.gate.lock().await;
        if let Some(link) = pool.pick(self.bounds, method) {
            return Ok(Some(link));
        }
        if pool.failures.get() != failures {
            // Callers that waited for a failed attempt do not repeat it.
            return Err(Unreachable);
        }
        if !pool.may_grow(self.bounds, method) {
            return Ok(None);
        }
        let spare = pool.count(false) >= self.bounds.links;
        let connected = self.connector.connect(backend).await;
        let Connected {
            sender,
            connection,
            ear,
        } = connected.inspect_err(|Unreachable| pool.failures.set(failures + 1))?;
        let link = Rc::new(Link {
            sender,
            open: Cell::new(0),
            dead: Cell::new(false),
            spare,
            ear,
        });
        pool.links.borrow_mut().push(Rc::clone(&link));
        // Weak: with a strong link the connection would keep its own sender and never end.
        let of = Rc::downgrade(&link);
        tokio::task::spawn_local(async move {
            connection
                .run(|| of.upgrade().is_some_and(|link| link.open.get() > 0))
                .await;
            if let Some(link) = of.upgrade() {
                link.dead.set(true);
            }
        });
        Ok(Some(link))
    }

    /// Closes connections that were idle for `idle`.
    pub(crate) fn sweep(&self, idle: Duration) {
        self.by_key.borrow_mut().retain(|_, pool| {
            pool.links.borrow_mut().retain(|link| !link.dead.get());
            let used = pool.links.borrow().iter().any(|link| link.open.get() > 0);
            used || Rc::strong_count(pool) > 1 || pool.last_used.get().is_some_and(|at| at.elapsed() < idle)
        });
    }

    /// Closes the connections of an ended session, as their calls end.
    pub(crate) fn forget(&self, session: &SessionId) {
        self.by_key.borrow_mut().retain(|key, _| match key {
            PoolKey::Dedicated(of, _) => of != session,
            PoolKey::Shared(..) => true,
        });
    }
}

fn crowded(whose: &str, key: &str) -> Refused {
    Refused::new(
        Reason::QuotaExceeded,
        format!(
            "The {whose} has as many calls at this shared server as it may have at once ({key}). Wait until one of them ends."
        ),
    )
    .with("limit", key)
    .retry_after(RETRY)
}

impl Pool {
    fn new(bounds: Bounds) -> Self {
        Self {
            sessions: ConcurrencyLimiter::new(bounds.per_session),
            orgs: ConcurrencyLimiter::new(bounds.per_org),
            links: RefCell::default(),
            gate: tokio::sync::Mutex::default(),
            failures: Cell::default(),
            last_used: Cell::default(),
            waiting: Cell::default(),
            room: Notify::default(),
        }
    }

    /// Selects a connection with room. One with a pending ping is avoided while another can be
    /// made: calls on it may be lost.
    fn pick(&self, bounds: Bounds, method: Method) -> Option<Rc<Link>> {
        self.links.borrow_mut().retain(|link| !link.dead.get());
        let may_grow = self.may_grow(bounds, method);
        let links = self.links.borrow();
        let has_room = |link: &&Rc<Link>| {
            (!link.spare || method.ends_work())
                && link.open.get() < link.sender.current_max_send_streams().min(bounds.calls)
        };
        let mut with_room = links.iter().filter(has_room);
        let sure = with_room.clone().find(|link| !link.ear.is_in_doubt());
        sure.or_else(|| with_room.find(|_| !may_grow)).cloned()
    }

    fn may_grow(&self, bounds: Bounds, method: Method) -> bool {
        self.count(false) < bounds.links || (method.ends_work() && self.count(true) < SPARE_LINKS)
    }

    fn count(&self, spare: bool) -> usize {
        self.links
            .borrow()
            .iter()
            .filter(|link| link.spare == spare)
            .count()
    }

    /// Waits until a place is released. The number of waiting calls is limited to the number of
    /// places, except for calls that end work.
    async fn wait(&self, bounds: Bounds, method: Method, until: Instant) -> Result<(), Unreachable> {
        if !method.ends_work() && self.waiting.get() >= bounds.calls * bounds.links {
            return Err(Unreachable);
        }
        let _waiting = Waiting::new(&self.waiting);
        tokio::time::timeout_at(until, self.room.notified())
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
    fn new(pool: Rc<Pool>, link: Rc<Link>, sender: SendRequest<Outgoing>) -> Self {
        if link.open.get() == 0 {
            link.ear.begin();
        }
        link.open.set(link.open.get() + 1);
        Self { pool, link, sender }
    }

    /// Sends the request's headers. On failure, nothing was sent.
    pub(crate) fn send(&mut self, request: Request<()>) -> Result<Upstream, Unreachable> {
        match self.sender.send_request(request, false) {
            Ok((response, sender)) => Ok(Upstream { response, sender }),
            Err(error) => {
                tracing::debug!(%error, "compute connection accepts no more calls");
                self.link.dead.set(true);
                Err(Unreachable)
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.link.open.set(self.link.open.get() - 1);
        self.pool.last_used.set(Some(Instant::now()));
        if self.link.spare {
            // Not every waiting call may use the place.
            self.pool.room.notify_waiters();
        } else if self.pool.waiting.get() > 0 {
            self.pool.room.notify_one();
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
