//! `spark-proxy`: the data path. It checks session tokens, finds the route,
//! and streams bytes between Spark Connect clients and compute.
//!
//! One acceptor hands connections to worker threads ([`worker`]); a
//! connection is TLS and HTTP/2 ([`connection`]); a call is one future
//! ([`call`]). Everything that asks others (routes, keys) runs on the
//! runtime that called [`run`]. HTTP/2 is spoken with h2 itself on both sides:
//! the proxy needs to say when flow-control credit is given back and when a
//! stream is reset, and one future per call keeps both sides of it.

mod activity;
#[doc(hidden)]
pub mod bench_support;
mod call;
pub mod config;
mod downstream;
mod grpc;
mod jwks;
mod metrics;
mod overload;
mod per_ip_limit;
mod routes;
mod run_loop;
mod shares;
mod stop;
mod upstream;
mod worker;

pub use config::Config;

use crate::activity::Ledger;
use crate::config::TlsMode;
use crate::jwks::Keys;
use crate::metrics::Metrics;
use crate::overload::Shed;
use crate::per_ip_limit::Addresses;
use crate::routes::cache::Routes;
use crate::run_loop::Feed;
use crate::shares::Questions;
use crate::worker::Shared;
use anyhow::Context as _;
use service_kit::admin::Admin;
use service_kit::limits::Rates;
use service_kit::shutdown::Shutdown;
use service_kit::tls::{ClientTls, H2, ServerTls};
use session_core::{Clock, SystemClock};
use session_proto::internal::route_service_client::RouteServiceClient;
use session_token::Verifier;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Ports that are bound already. What is `None` is bound by the configuration,
/// the data port only when there is a key to check tokens with.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Spark Connect.
    pub data: Option<TcpListener>,
    /// Health and metrics.
    pub admin: Option<TcpListener>,
}

/// Runs the proxy until `shutdown`, drain included.
///
/// # Errors
/// A port that cannot be bound, certificates that cannot be used, or a part
/// that crashed.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
    run_with_clock(config, listeners, shutdown, Arc::new(SystemClock)).await
}

/// [`run`] with a clock of the caller's, which tests own.
///
/// # Errors
/// As [`run`].
pub async fn run_with_clock(
    mut config: Config,
    listeners: Listeners,
    shutdown: Shutdown,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    // Questions for routes may take as long as a call may be held.
    config.manager.timeout = config
        .manager
        .timeout
        .max(config.routes.hold_max + routes::ANSWER_TIME);
    let tls = match (config.listen.tls.mode, config.listen.tls.files()) {
        (TlsMode::Off, _) | (_, None) => None,
        (TlsMode::Required | TlsMode::Auto, Some(files)) => Some(ServerTls::load(&files, H2)?),
    };
    let backend_tls = ClientTls::load(&config.backend.tls, H2)?;
    // Each channel is one connection, whose streams are counted: look-ups cannot
    // take those of what keeps this proxy's state true.
    let channel = || service_kit::service_account_token::service_channel(&config.manager).context("manager");
    let (lookup_channel, control_channel) = (channel()?, channel()?);

    let admin = Admin::new(service_kit::build_info!());
    let ready = admin.readiness.condition("keys");
    let metrics = Arc::new(Metrics::new(&admin.registry));
    let admin_end = CancellationToken::new();
    let admin_listener = match listeners.admin {
        Some(listener) => listener,
        None => config.admin.bind().await?,
    };
    let admin_task = tokio::spawn(admin.serve(admin_listener, admin_end.clone()));

    let keys = Keys::new(&config.tokens, Arc::clone(&clock), Arc::clone(&metrics))?;
    tokio::spawn(Arc::clone(&keys).keep_fresh(shutdown.forced()));
    let started = shutdown
        .stopping()
        .run_until_cancelled(keys.first())
        .await
        .is_some();
    if started {
        let listener = match listeners.data {
            Some(listener) => listener,
            None => TcpListener::bind(config.listen.address)
                .await
                .with_context(|| format!("cannot listen on {}", config.listen.address))?,
        };
        let address = listener.local_addr()?;
        if let Some(tls) = &tls {
            tokio::spawn(Arc::clone(tls).keep_fresh(shutdown.stopping()));
        }

        let count = match config.listen.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        };
        let (events_to, events): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let (accepted_to, accepted): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let control_client = RouteServiceClient::new(control_channel);
        let routes = Routes::new(
            RouteServiceClient::new(lookup_channel),
            control_client.clone(),
            config.routes.clone(),
            events_to,
            Arc::clone(&metrics),
        );
        let proxy_id = proxy_id();
        tokio::spawn(routes::watch::run(
            Arc::clone(&routes),
            proxy_id.clone(),
            shutdown.forced(),
        ));
        let ledger = Arc::new(Ledger::new(
            Arc::clone(&clock),
            config.limits.calls_per_second_per_org,
        ));
        tokio::spawn(activity::run(
            Arc::clone(&ledger),
            control_client,
            proxy_id,
            Arc::clone(&metrics),
            shutdown.forced(),
        ));

        let shed = Arc::new(Shed::default());
        tokio::spawn(shutdown.forced().run_until_cancelled_owned(overload::sample(
            Arc::clone(&shed),
            config.limits.clone(),
            Arc::clone(&metrics),
        )));

        let drain = config.drain.timeout;
        let bad_tokens = config.limits.bad_tokens_per_second_per_address;
        let shared = Arc::new(Shared {
            addresses: Addresses::new(config.limits.connections_per_address),
            shed,
            verifier: Verifier::new(config.tokens.verifier()),
            config,
            clock,
            keys,
            routes,
            ledger,
            questions: Questions::default(),
            bad_tokens: Rates::new(bad_tokens, Duration::from_secs(1), bad_tokens.saturating_mul(2)),
            metrics,
            tls,
            backend_tls,
            control: tokio::runtime::Handle::current(),
            stopping: shutdown.stopping(),
            forced: shutdown.forced(),
        });
        for (index, (accepted, events)) in accepted.into_iter().zip(events).enumerate() {
            let ended = spawn_worker(index, Arc::clone(&shared), Feed { accepted, events })?;
            shutdown.spawn_critical("worker", ended);
        }
        shutdown.spawn_critical(
            "acceptor",
            downstream::acceptor::run(listener, shared, accepted_to),
        );
        ready.set(true);
        tracing::info!(%address, workers = count, "serving");
        shutdown.stopping().cancelled().await;
        ready.set(false);
        shutdown.finish(drain).await?;
    } else {
        shutdown.finish(Duration::ZERO).await?;
    }
    admin_end.cancel();
    admin_task.await??;
    Ok(())
}

/// Starts a worker's thread; the future ends with it.
fn spawn_worker(
    index: usize,
    shared: Arc<Shared>,
    feed: Feed,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            // Nobody waits for it any more if this fails.
            let _ = done.send(run_loop::run(shared, feed));
        })?;
    Ok(async move { Ok(ended.await.context("the thread panicked")??) })
}

/// Names this process among the proxies; new at every start.
fn proxy_id() -> String {
    format!("p-{:016x}", rand::random::<u64>())
}
