//! A running forwarder: its listener, its tokens and its connections to spark-proxy.

use super::access::Access;
use super::connection::{self, Lobby};
use super::listener::Listener;
use super::tokens::SessionTokens;
use super::upstream::{Unreachable, Upstream};
use crate::args::AccessArgs;
use crate::output;
use crate::settings::Target;
use anyhow::{Context as _, Result, bail};
use http::HeaderValue;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time for the first connection to spark-proxy.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the ends of calls and connections. A connection waits for its client, up to 1 s without
/// bytes; those that take longer are closed first, so that the rest of the time is for their tasks.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTIONS_STOP_TIMEOUT: Duration = Duration::from_millis(1500);
/// Delay after a failed accept, such as for want of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Minimum time between two hints about TLS.
const TLS_NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// State shared by all connections and calls.
pub(super) struct Shared {
    pub(super) access: Access,
    pub(super) tokens: SessionTokens,
    pub(super) upstream: Upstream,
    /// Value of `x-session-id`.
    pub(super) session_header: HeaderValue,
    pub(super) calls: Arc<Semaphore>,
    pub(super) max_calls: u32,
    pub(super) connections: Arc<Semaphore>,
    pub(super) max_connections: u32,
    pub(super) lobby: Lobby,
    /// The end: no new calls, and an error for those that run.
    pub(super) stopping: CancellationToken,
    tls_noted: Mutex<Option<Instant>>,
}

impl Shared {
    /// Waits until connections must end, after their calls.
    pub(super) async fn ended(&self) {
        self.stopping.cancelled().await;
        tokio::time::sleep(CONNECTIONS_STOP_TIMEOUT).await;
    }

    /// A client has tried TLS; it would retry for minutes without a message.
    pub(super) fn note_tls_client(&self) {
        let mut noted = self.tls_noted.lock();
        if noted.is_none_or(|at| at.elapsed() >= TLS_NOTE_INTERVAL) {
            *noted = Some(Instant::now());
            output::note(
                "A client tried TLS; this port is plaintext. Use the printed connection string unchanged: without token= and use_ssl=true.",
            );
        }
    }
}

/// A forwarder, until it is dropped.
pub(super) struct Server {
    shared: Arc<Shared>,
    port: Option<u16>,
    address: String,
    connections: TaskTracker,
    accepting: JoinHandle<()>,
    renewing: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        self.renewing.abort();
    }
}

impl Server {
    /// Starts to forward, once there are a token and a connection to spark-proxy.
    pub(super) async fn start(
        target: &Target,
        session: &str,
        listener: Listener,
        access: Access,
        args: &AccessArgs,
    ) -> Result<Self> {
        let (tokens, url) = SessionTokens::first(target, session, args.ttl).await?;
        let upstream = Upstream::new(target, &url)?;
        let first = upstream.lease(Instant::now() + FIRST_CONNECT_TIMEOUT).await;
        if let Err(Unreachable(why)) = first {
            bail!(
                "Berth's Spark Connect port cannot be reached: {why}. `berth doctor {session}` finds the cause."
            );
        }
        drop(first);
        let shared = Arc::new(Shared {
            access,
            tokens,
            upstream,
            session_header: HeaderValue::try_from(session).context("the session's id is no id")?,
            calls: Arc::new(Semaphore::new(args.max_calls as usize)),
            max_calls: args.max_calls,
            connections: Arc::new(Semaphore::new(args.max_connections as usize)),
            max_connections: args.max_connections,
            lobby: Lobby::default(),
            stopping: CancellationToken::new(),
            tls_noted: Mutex::default(),
        });
        let connections = TaskTracker::new();
        let renewing = Arc::clone(&shared);
        Ok(Self {
            port: listener.port(),
            address: listener.address(),
            accepting: tokio::spawn(accept(Arc::clone(&shared), listener, connections.clone())),
            renewing: tokio::spawn(async move { renewing.tokens.keep_renewed().await }),
            shared,
            connections,
        })
    }

    /// The address as it is printed.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The connection string for clients; for a socket, its name in gRPC.
    pub(super) fn connection_url(&self) -> String {
        match self.port {
            Some(port) => self.shared.access.connection_url(port),
            None => format!("unix:{}", self.address),
        }
    }

    /// Prints the rule for local clients; with `--quiet` only if it is a warning.
    pub(super) fn print_access_note(&self) {
        self.print_access_warning();
        if !self.shared.access.is_open_to_others() {
            output::note(self.shared.access.note());
        }
    }

    /// Prints the warning that other users can send queries, if they can.
    pub(super) fn print_access_warning(&self) {
        if self.shared.access.is_open_to_others() {
            output::error(self.shared.access.note());
        }
    }

    /// Waits until the session is over; returns the reason.
    pub(super) async fn session_over(&self) -> String {
        self.shared.tokens.session_over().await
    }

    /// Ends calls and connections.
    pub(super) async fn stop(self) {
        self.accepting.abort();
        self.shared.stopping.cancel();
        self.connections.close();
        // What has not ended by then ends with the process.
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.connections.wait()).await;
        self.shared.upstream.close();
    }
}

async fn accept(shared: Arc<Shared>, listener: Listener, connections: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok(client) => {
                connections.spawn(connection::serve(Arc::clone(&shared), client));
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}
