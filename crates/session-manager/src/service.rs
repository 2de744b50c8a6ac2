//! The wiring of the service: its parts, and the tasks that run them.

use crate::admission::Admission;
use crate::admission::authenticate::CallerAuthenticator;
use crate::api::Api;
use crate::change_feed::ChangeFanOut;
use crate::config::{self, Config};
use crate::definitions::DefinitionStore;
use crate::lifecycle::activity_reports::ReportIntake;
use crate::lifecycle::disabling::Disabling;
use crate::lifecycle::orphan_collection::OrphanCollector;
use crate::lifecycle::reconciler::Reconciler;
use crate::lifecycle::report_freshness::ReportFreshness;
use crate::lifecycle::warm_pools::WarmPoolFeed;
use crate::metrics::Metrics;
use crate::providers::registry::Providers;
use crate::server::{Listeners, Ports, serve};
use crate::startup::until_available;
use crate::{api, audit, error, gauges, lifecycle::retention};
use anyhow::{Context, Result};
use service_kit::admin::{Admin, Condition};
use service_kit::polled_document::Document;
use service_kit::shutdown::Shutdown;
use session_core::{AuditRecord, Clock, SessionKey, SystemClock};
use session_proto::definition::{CatalogDefinition, ClusterDefinition, Wrong};
use session_store::SessionStore;
use session_token::{Keyring, Verifier, VerifierConfig};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Maximum age of the last valid key set while reading it again fails.
const MAX_KEY_SET_AGE: Duration = Duration::from_secs(24 * 3600);
/// Entries of the signature cache, 32 bytes each: proxies send the same tokens
/// repeatedly.
const MAX_CACHED_SIGNATURES: usize = 16_384;
/// Time between two health checks of the state store.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Opens the store that the configuration names.
///
/// # Errors
/// If it is unreachable, or its settings allow it to lose sessions.
pub async fn open_store(config: &Config) -> Result<Arc<dyn SessionStore>> {
    session_store::open(config.store.url.expose(), &config.store.options())
        .await
        .context("store.url")
}

/// Runs the service until `shutdown` begins.
///
/// # Errors
/// If the start fails, or a critical task ends early.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<()> {
    let own_ports: Vec<u16> = listeners.ports().collect();
    let ports = Ports::admin_first(listeners, &shutdown);
    let stop = shutdown.stopping();
    let opened = until_available("open the state store", &stop, || open_store(&config));
    let Some(store) = opened.await? else {
        return Ok(shutdown.finish(config.drain).await?);
    };
    let made = until_available("prepare compute", &stop, || {
        config.compute.open(&store, own_ports.iter().copied(), &stop)
    });
    let Some(computes) = made.await? else {
        return Ok(shutdown.finish(config.drain).await?);
    };
    let freshness = ReportFreshness::new(Arc::clone(&store));
    run_on(config, ports, shutdown, store, computes, freshness).await
}

/// [`run`] with a store and providers of the caller. For tests, which also set
/// the store's clock.
///
/// # Errors
/// If the start fails, or a critical task ends early.
pub async fn run_with(
    config: Config,
    listeners: Listeners,
    shutdown: Shutdown,
    store: Arc<dyn SessionStore>,
    computes: Providers,
) -> Result<()> {
    let ports = Ports::admin_first(listeners, &shutdown);
    let freshness = ReportFreshness::new(Arc::clone(&store)).with_settable_clock();
    run_on(config, ports, shutdown, store, computes, freshness).await
}

async fn run_on(
    config: Config,
    ports: Ports,
    shutdown: Shutdown,
    store: Arc<dyn SessionStore>,
    computes: Providers,
    freshness: ReportFreshness,
) -> Result<()> {
    let definitions = DefinitionStore::new(Arc::clone(&store));
    let stop = shutdown.stopping();
    let follow = || follow_configuration(&config, &definitions);
    let followed = until_available("follow the configuration", &stop, follow).await?;
    if followed.is_none() {
        return Ok(shutdown.finish(config.drain).await?);
    }
    freshness.store_available().await;
    let parts = Parts::new(
        &config,
        &ports.admin,
        stop,
        store,
        definitions,
        computes,
        freshness,
    )?;
    let api = Arc::clone(&parts.api);
    parts.spawn(&shutdown, &ports.admin);
    serve(&shutdown, ports, &config, &api)?;
    tracing::info!("session-manager started");
    shutdown.finish(config.drain).await?;
    Ok(())
}

/// The parts of the service: those that the servers call, and those that run as
/// tasks.
struct Parts {
    api: Arc<Api>,
    freshness: Arc<ReportFreshness>,
    enqueued: mpsc::Receiver<SessionKey>,
    orphans: OrphanCollector,
    refusals: mpsc::Receiver<AuditRecord>,
}

impl Parts {
    fn new(
        config: &Config,
        admin: &Admin,
        stopping: CancellationToken,
        store: Arc<dyn SessionStore>,
        definitions: DefinitionStore,
        computes: Providers,
        freshness: ReportFreshness,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::new(&admin.registry));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let freshness = Arc::new(freshness);
        let lifecycle = Lifecycle::new(&store, &definitions, &computes, &freshness, &metrics);
        let (trail, refusals) =
            audit::Trail::new(Arc::clone(&store), Arc::clone(&clock), Arc::clone(&metrics));
        let admission = Arc::new(Admission {
            authenticator: CallerAuthenticator::new(config, Arc::clone(&clock))?,
            definitions: definitions.clone(),
            trail: Arc::clone(&trail),
            metrics: Arc::clone(&metrics),
            clock: Arc::clone(&clock),
        });
        let tokens = &config.tokens;
        let verifier = Verifier::new(VerifierConfig::new(&tokens.issuer, &tokens.audience));
        let keyring = Arc::new(Keyring::with_signature_cache(MAX_CACHED_SIGNATURES));
        let ready = admin.readiness.condition("token keys");
        let reconciler = lifecycle.reconciler;
        let api = Arc::new(Api {
            admission,
            trail,
            disabling: Disabling::new(
                Arc::clone(&store),
                definitions.clone(),
                Arc::clone(&reconciler),
                verifier.config().afterlife(),
            ),
            definitions,
            reconciler,
            fan_out: Arc::new(ChangeFanOut::new()),
            reports: lifecycle.reports,
            watches: api::watch::Watches::new(),
            read_limits: api::audit::ReadLimits::new(),
            cluster_versions: api::client_advice::ClusterVersions::default(),
            catalog_tests: api::test_catalog::catalog_tests(),
            verifier,
            keys: key_document(config, Arc::clone(&keyring), Arc::clone(&clock), ready)?,
            keyring,
            clock,
            computes,
            compute_config: config.compute.clone(),
            metrics,
            store,
            stopping,
        });
        Ok(Self {
            api,
            freshness,
            enqueued: lifecycle.enqueued,
            orphans: lifecycle.orphans,
            refusals,
        })
    }

    /// Starts the tasks; they end with `shutdown`.
    fn spawn(self, shutdown: &Shutdown, admin: &Admin) {
        let Self {
            api,
            freshness,
            enqueued,
            orphans,
            refusals,
        } = self;
        let (stop, store) = (shutdown.stopping(), &api.store);
        let too_old = {
            let (keyring, clock) = (Arc::clone(&api.keyring), Arc::clone(&api.clock));
            move || forget_old_keys(&keyring, &*clock)
        };
        shutdown.spawn(Arc::clone(&api.keys).keep_fresh(too_old, stop.clone()));
        shutdown.spawn(audit::write_later(Arc::clone(store), refusals, stop.clone()));
        shutdown.spawn(audit::export(Arc::clone(store), stop.clone()));
        shutdown.spawn(retention::run(Arc::clone(store), stop.clone()));
        let pools = WarmPoolFeed::new(
            Arc::clone(store),
            api.definitions.clone(),
            api.computes.clone(),
            Arc::clone(&api.metrics),
        );
        shutdown.spawn(pools.run(stop.clone()));
        shutdown.spawn(Arc::clone(&api.disabling).run(stop.clone()));
        let (definitions, metrics) = (api.definitions.clone(), Arc::clone(&api.metrics));
        let memory = gauges::memory(Arc::clone(store), Arc::clone(&metrics), stop.clone());
        shutdown.spawn(memory);
        shutdown.spawn(gauges::run(Arc::clone(store), definitions, metrics, stop.clone()));
        let available = admin.readiness.condition("state store");
        let metrics = Arc::clone(&api.metrics);
        let available = move |check: &Result<(), session_store::Error>| {
            metrics.store_available(check);
            match check {
                Ok(()) => available.set(true),
                Err(error) => available.unmet(error::store_condition(error)),
            }
        };
        shutdown.spawn(watch_store(Arc::clone(store), freshness, available, stop.clone()));
        let (admission, stopped) = (Arc::clone(&api.admission), stop.clone());
        shutdown.spawn(async move { admission.authenticator.keep_fresh(stopped).await });

        let (fan_out, feed, stopped) = (Arc::clone(&api.fan_out), Arc::clone(store), stop.clone());
        spawn_critical(shutdown, "change feed", async move {
            fan_out.run(feed, stopped).await
        });
        let (reconciler, stopped) = (Arc::clone(&api.reconciler), stop.clone());
        spawn_critical(shutdown, "reconciler", async move {
            reconciler.run(enqueued, stopped).await;
        });
        let stopped = stop.clone();
        spawn_critical(shutdown, "orphan collection", async move {
            orphans.run(stopped).await
        });
        let (reports, stopped) = (Arc::clone(&api.reports), stop.clone());
        spawn_critical(shutdown, "activity", async move { reports.run(stopped).await });
        spawn_critical(shutdown, "watched sessions", async move {
            let (fan_out, store) = (Arc::clone(&api.fan_out), Arc::clone(&api.store));
            api.watches.run(&fan_out, store, stop).await;
        });
    }
}

/// The parts that move sessions through their lifecycle.
pub(crate) struct Lifecycle {
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) enqueued: mpsc::Receiver<SessionKey>,
    pub(crate) reports: Arc<ReportIntake>,
    pub(crate) orphans: OrphanCollector,
}

impl Lifecycle {
    pub(crate) fn new(
        store: &Arc<dyn SessionStore>,
        definitions: &DefinitionStore,
        computes: &Providers,
        freshness: &Arc<ReportFreshness>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (reconciler, enqueued) = Reconciler::new(
            Arc::clone(store),
            definitions.clone(),
            computes.clone(),
            Arc::clone(freshness),
            Arc::clone(metrics),
        );
        let reports = Arc::new(ReportIntake::new(
            Arc::clone(store),
            Arc::clone(&reconciler),
            Arc::clone(freshness),
            Arc::clone(metrics),
        ));
        let orphans = OrphanCollector::new(
            Arc::clone(store),
            definitions.clone(),
            computes.clone(),
            Arc::clone(&reconciler),
            Arc::clone(freshness),
            Arc::clone(metrics),
        );
        Self {
            reconciler,
            enqueued,
            reports,
            orphans,
        }
    }
}

/// Runs a task whose end before the shutdown is a crash of the service.
fn spawn_critical(shutdown: &Shutdown, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    shutdown.spawn_critical(name, async move {
        task.await;
        tracing::debug!(name, "task ended");
        anyhow::Ok(())
    });
}

async fn follow_configuration(config: &Config, definitions: &DefinitionStore) -> Result<()> {
    let clusters = defined(config.clusters.iter().map(ClusterDefinition::define)).context("clusters")?;
    let catalogs = defined(config.catalogs.iter().map(CatalogDefinition::define)).context("catalogs")?;
    let orgs = defined(config.orgs.iter().map(config::OrgConfig::define)).context("orgs")?;
    definitions.sync(&clusters).await?;
    definitions.sync(&catalogs).await?;
    definitions.sync(&orgs).await
}

fn defined<T>(all: impl Iterator<Item = Result<T, Vec<Wrong>>>) -> Result<Vec<T>> {
    all.map(|one| one.map_err(|wrong| anyhow::anyhow!("{wrong:?}")))
        .collect()
}

fn key_document(
    config: &Config,
    keyring: Arc<Keyring>,
    clock: Arc<dyn Clock>,
    ready: Condition,
) -> Result<Arc<Document>> {
    Document::new(&config.tokens.keys, move |fetched| {
        keyring.update(fetched.new_text(), clock.now())?;
        ready.set(true);
        Ok(())
    })
    .context("tokens.keys")
}

/// Drops a key set that is older than [`MAX_KEY_SET_AGE`]: keys may have been
/// withdrawn since.
fn forget_old_keys(keyring: &Keyring, clock: &dyn Clock) {
    if keyring.expire(MAX_KEY_SET_AGE, clock.now()) {
        tracing::error!("key set expired: reading failed for too long; all tokens are rejected");
    }
}

/// Checks the state store's health until `stop`, for readiness and for report
/// freshness.
pub(crate) async fn watch_store(
    store: Arc<dyn SessionStore>,
    freshness: Arc<ReportFreshness>,
    available: impl Fn(&Result<(), session_store::Error>),
    stop: CancellationToken,
) {
    loop {
        let check = store.ping().await;
        available(&check);
        if check.is_ok() {
            freshness.store_available().await;
        } else {
            freshness.store_unavailable();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PING_INTERVAL) => {}
        }
    }
}
