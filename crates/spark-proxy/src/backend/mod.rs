//! Connections to compute: HTTP/2, kept per worker, and per generation of a
//! session where compute is dedicated.

mod connect;

use crate::messages::Outgoing;
use crate::metrics::Metrics;
use crate::routes::{Backend, PoolKey};
use connect::Connector;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use session_core::SessionId;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub(crate) use connect::Unreachable;

/// All connections of one worker.
pub(crate) struct Pools {
    connector: Connector,
    by_key: RefCell<HashMap<PoolKey, Rc<Pool>>>,
}

/// The connections that calls with one key share.
#[derive(Default)]
struct Pool {
    links: RefCell<Vec<Rc<Link>>>,
    /// Held by the one that connects.
    gate: tokio::sync::Mutex<()>,
    /// How many attempts to connect failed, and how the last did.
    failures: Cell<u64>,
    last_used: Cell<Option<Instant>>,
}

/// One connection.
struct Link {
    sender: SendRequest<Outgoing>,
    open: Cell<usize>,
    dead: Cell<bool>,
}

/// A place on a connection for one call.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    link: Rc<Link>,
    sender: SendRequest<Outgoing>,
}

/// One call on its way.
pub(crate) struct Upstream {
    pub(crate) response: ResponseFuture,
    pub(crate) sender: SendStream<Outgoing>,
}

impl Pools {
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            connector,
            by_key: RefCell::default(),
        }
    }

    /// Is there a connection already, so that none must be made?
    pub(crate) fn is_connected(&self, backend: &Backend) -> bool {
        self.by_key
            .borrow()
            .get(&backend.pool)
            .is_some_and(|pool| pool.pick().is_some())
    }

    /// A place on a connection, which is made if need be: by one caller, for all.
    pub(crate) async fn lease(&self, backend: &Backend) -> Result<Lease, Unreachable> {
        let pool = Rc::clone(self.by_key.borrow_mut().entry(backend.pool.clone()).or_default());
        loop {
            let link = match pool.pick() {
                Some(link) => link,
                None => self.connect(&pool, backend).await?,
            };
            let mut sender = link.sender.clone();
            // A connection that was told to take no more calls is not used for one.
            match poll_fn(|cx| sender.poll_ready(cx)).await {
                Ok(()) => return Ok(Lease::new(pool, link, sender)),
                Err(error) => {
                    tracing::debug!(%error, "a backend connection takes no more calls");
                    link.dead.set(true);
                }
            }
        }
    }

    /// One new connection of a pool, however many ask for it at once.
    async fn connect(&self, pool: &Rc<Pool>, backend: &Backend) -> Result<Rc<Link>, Unreachable> {
        let failures = pool.failures.get();
        let _gate = pool.gate.lock().await;
        if let Some(link) = pool.pick() {
            return Ok(link);
        }
        if pool.failures.get() != failures {
            // Who waited for an attempt that failed does not make another.
            return Err(Unreachable);
        }
        let connected = self.connector.connect(backend).await;
        let (sender, connection) = connected.inspect_err(|Unreachable| pool.failures.set(failures + 1))?;
        let link = Rc::new(Link {
            sender,
            open: Cell::new(0),
            dead: Cell::new(false),
        });
        pool.links.borrow_mut().push(Rc::clone(&link));
        let ended = Rc::downgrade(&link);
        tokio::task::spawn_local(async move {
            connection.run().await;
            if let Some(link) = ended.upgrade() {
                link.dead.set(true);
            }
        });
        Ok(link)
    }

    /// Closes what serves nobody: connections that were idle for long.
    pub(crate) fn sweep(&self, idle: Duration) {
        self.by_key.borrow_mut().retain(|_, pool| {
            pool.links.borrow_mut().retain(|link| !link.dead.get());
            let used = pool.links.borrow().iter().any(|link| link.open.get() > 0);
            used || Rc::strong_count(pool) > 1 || pool.last_used.get().is_some_and(|at| at.elapsed() < idle)
        });
    }

    /// Closes the connections of a session that ended, as their calls end.
    pub(crate) fn forget(&self, session: &SessionId) {
        self.by_key.borrow_mut().retain(|key, _| match key {
            PoolKey::Dedicated(of, _) => of != session,
            PoolKey::Shared(..) => true,
        });
    }
}

impl Pool {
    fn pick(&self) -> Option<Rc<Link>> {
        let mut links = self.links.borrow_mut();
        links.retain(|link| !link.dead.get());
        links
            .iter()
            .find(|link| link.open.get() < link.sender.current_max_send_streams())
            .cloned()
    }
}

impl Lease {
    fn new(pool: Rc<Pool>, link: Rc<Link>, sender: SendRequest<Outgoing>) -> Self {
        link.open.set(link.open.get() + 1);
        Self { pool, link, sender }
    }

    /// Sends the request's headers. If this fails, nothing was sent.
    pub(crate) fn send(&mut self, request: Request<()>) -> Result<Upstream, Unreachable> {
        match self.sender.send_request(request, false) {
            Ok((response, sender)) => Ok(Upstream { response, sender }),
            Err(error) => {
                tracing::debug!(%error, "a backend connection takes no more calls");
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
    }
}

/// Settings of backend connections.
pub(crate) fn connector(
    config: &crate::config::BackendConfig,
    tls: Arc<service_kit::tls::ClientTls>,
    metrics: Arc<Metrics>,
) -> Connector {
    Connector::new(config, tls, metrics)
}

/// A response body as h2 gives it.
pub(crate) type Body = RecvStream;
