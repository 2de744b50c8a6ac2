//! Wiring of the service: its parts, and the tasks and threads that run them.

use crate::Listeners;
use crate::activity::{UsageRegistry, reports};
use crate::config::{Config, TlsMode};
use crate::downstream::acceptor;
use crate::jwks::KeySet;
use crate::metrics::Metrics;
use crate::overload::{self, OverloadFlag};
use crate::resource_limits::ManagerRequests;
use crate::routes::cache::{RouteEvent, Routes};
use crate::routes::{self, watch};
use crate::run_loop::{self, WorkerInput};
use crate::worker::Shared;
use anyhow::Context as _;
use service_kit::admin::Admin;
use service_kit::limiter::{ConcurrencyLimiter, RateLimiter};
use service_kit::service_account_token::{ServiceChannel, service_channel};
use service_kit::shutdown::Shutdown;
use service_kit::tls::{ClientTls, H2, ServerTls};
use session_core::Clock;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_token::Verifier;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Parts that exist before there is a key to verify tokens.
struct Parts {
    config: Config,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    tls: Option<Arc<ServerTls>>,
    backend_tls: Arc<ClientTls>,
    /// Each channel is one connection with limited streams: route requests must not exhaust the
    /// streams of watch, bindings and reports.
    lookup: ServiceChannel,
    control: ServiceChannel,
}

impl Parts {
    fn new(mut config: Config, clock: Arc<dyn Clock>, admin: &Admin) -> anyhow::Result<Self> {
        // A route request may last as long as a call may be held.
        config.manager.timeout = config
            .manager
            .timeout
            .max(config.routes.hold_max + routes::REQUEST_TIMEOUT);
        let tls = match (config.listen.tls.mode, config.listen.tls.files()) {
            (TlsMode::Off, _) | (_, None) => None,
            (TlsMode::Required | TlsMode::Auto, Some(files)) => Some(ServerTls::load(&files, H2)?),
        };
        let channel = || service_channel(&config.manager).context("manager");
        Ok(Self {
            backend_tls: ClientTls::load(&config.backend.tls, H2)?,
            lookup: channel()?,
            control: channel()?,
            metrics: Arc::new(Metrics::new(&admin.registry)),
            config,
            clock,
            tls,
        })
    }
}

/// Runs the proxy: the admin port immediately, the data port once there is a key.
pub(crate) async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: Shutdown,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    let admin = Admin::new(service_kit::build_info!());
    let ready = admin.readiness.condition("keys");
    let parts = Parts::new(config, clock, &admin)?;
    let admin_end = CancellationToken::new();
    let admin_listener = match listeners.admin {
        Some(listener) => listener,
        None => parts.config.admin.bind().await?,
    };
    let admin_task = tokio::spawn(admin.serve(admin_listener, admin_end.clone()));

    let keys = KeySet::new(
        &parts.config.tokens,
        Arc::clone(&parts.clock),
        Arc::clone(&parts.metrics),
    )?;
    tokio::spawn(Arc::clone(&keys).keep_fresh(shutdown.forced()));
    let has_keys = shutdown.stopping().run_until_cancelled(keys.wait_for_key()).await;
    let drain = if has_keys.is_some() {
        let drain = parts.config.drain.timeout;
        serve(parts, keys, listeners.data, &shutdown).await?;
        ready.set(true);
        shutdown.stopping().cancelled().await;
        ready.set(false);
        drain
    } else {
        Duration::ZERO
    };
    shutdown.finish(drain).await?;
    admin_end.cancel();
    admin_task.await??;
    Ok(())
}

/// Opens the data port and starts the tasks and threads that serve it.
async fn serve(
    parts: Parts,
    keys: Arc<KeySet>,
    listener: Option<TcpListener>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let listen = &parts.config.listen;
    let listener = match listener {
        Some(listener) => listener,
        None => TcpListener::bind(listen.address)
            .await
            .with_context(|| format!("cannot listen on {}", listen.address))?,
    };
    let address = listener.local_addr()?;
    if let Some(tls) = &parts.tls {
        tokio::spawn(Arc::clone(tls).keep_fresh(shutdown.stopping()));
    }
    let count = match listen.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => count,
    };
    let (events_to, events): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
    let (accepted_to, accepted): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
    let shared = Arc::new(share(parts, keys, events_to, shutdown));
    for (index, (accepted, events)) in accepted.into_iter().zip(events).enumerate() {
        let ended = spawn_worker(index, Arc::clone(&shared), WorkerInput { accepted, events })?;
        shutdown.spawn_critical("worker", ended);
    }
    shutdown.spawn_critical("acceptor", acceptor::run(listener, shared, accepted_to));
    tracing::info!(%address, workers = count, "serving");
    Ok(())
}

/// Creates the shared state of the workers and its tasks: the watch of routes, activity reports,
/// memory samples.
fn share(
    parts: Parts,
    keys: Arc<KeySet>,
    events: Vec<mpsc::UnboundedSender<RouteEvent>>,
    shutdown: &Shutdown,
) -> Shared {
    let Parts {
        config,
        clock,
        metrics,
        tls,
        backend_tls,
        lookup,
        control,
    } = parts;
    let forced = shutdown.forced();
    let control = RouteServiceClient::new(control);
    let routes = Routes::new(
        RouteServiceClient::new(lookup),
        control.clone(),
        config.routes.clone(),
        events,
        Arc::clone(&metrics),
    );
    let proxy_id = proxy_id();
    tokio::spawn(watch::run(Arc::clone(&routes), proxy_id.clone(), forced.clone()));
    let calls_per_second = config.limits.calls_per_second_per_org;
    let usages = Arc::new(UsageRegistry::new(Arc::clone(&clock), calls_per_second));
    tokio::spawn(reports::run(
        Arc::clone(&usages),
        control,
        proxy_id,
        Arc::clone(&metrics),
        forced.clone(),
    ));
    let overload = Arc::new(OverloadFlag::default());
    let samples = overload::sample(Arc::clone(&overload), config.limits.clone(), Arc::clone(&metrics));
    tokio::spawn(forced.clone().run_until_cancelled_owned(samples));
    let bad_tokens = config.limits.bad_tokens_per_second_per_address;
    Shared {
        connections: ConcurrencyLimiter::new(config.limits.connections_per_address),
        overload,
        verifier: Verifier::new(config.tokens.verifier()),
        config,
        clock,
        keys,
        routes,
        usages,
        manager_requests: ManagerRequests::default(),
        bad_tokens: RateLimiter::new(bad_tokens, Duration::from_secs(1), bad_tokens.saturating_mul(2)),
        metrics,
        tls,
        backend_tls,
        control: tokio::runtime::Handle::current(),
        stopping: shutdown.stopping(),
        forced,
    }
}

/// Starts the thread of a worker; the returned future ends with it.
fn spawn_worker(
    index: usize,
    shared: Arc<Shared>,
    input: WorkerInput,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            // Fails if the receiver was dropped.
            let _ = done.send(run_loop::run(shared, input));
        })?;
    Ok(async move { Ok(ended.await.context("the thread panicked")??) })
}

/// A random id of this process among the proxies; new at every start.
fn proxy_id() -> String {
    format!("p-{:016x}", rand::random::<u64>())
}
