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
use crate::metrics::Metrics;
use crate::providers::registry::Providers;
use crate::server::{Listeners, Ports, serve};
use crate::startup::until_available;
use crate::{api, audit, gauges, lifecycle::retention};
use anyhow::{Context, Result};
use service_kit::admin::Condition;
use service_kit::polled_document::Document;
use service_kit::shutdown::Shutdown;
use session_core::{Clock, SystemClock};
use session_proto::definition::{CatalogDefinition, ClusterDefinition, Wrong};
use session_store::SessionStore;
use session_token::{Keyring, Verifier, VerifierConfig};
use std::sync::Arc;
use std::time::Duration;

/// The last good key set is used this long when it cannot be read again.
const MAX_KEY_SET_AGE: Duration = Duration::from_secs(24 * 3600);
/// Good signatures that are remembered, 32 bytes each: proxies show the same tokens
/// again and again.
const SIGNATURES: usize = 16_384;
/// How often the store is asked whether it is there.
const PING: Duration = Duration::from_secs(2);

/// Opens the store that the configuration names.
///
/// # Errors
/// When it cannot be reached, or could lose sessions.
pub async fn open_store(config: &Config) -> Result<Arc<dyn SessionStore>> {
    session_store::open(config.store.url.expose(), &config.store.options())
        .await
        .context("store.url")
}

/// Runs the service until `shutdown` says to stop.
///
/// # Errors
/// When it cannot start, or one of its tasks crashed.
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

/// [`run`] on a store and compute that the caller made: tests hold both, and
/// set the clock of the store as they like.
///
/// # Errors
/// When it cannot start, or one of its tasks crashed.
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
    let admin = ports.admin.clone();
    let metrics = Arc::new(Metrics::new(&admin.registry));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let definitions = DefinitionStore::new(Arc::clone(&store));
    let stop = shutdown.stopping();
    let follow = || follow_configuration(&config, &definitions);
    let followed = until_available("follow the configuration", &stop, follow).await?;
    if followed.is_none() {
        return Ok(shutdown.finish(config.drain).await?);
    }

    let freshness = Arc::new(freshness);
    freshness.found().await;
    let (reconciler, enqueued) = Reconciler::new(
        Arc::clone(&store),
        definitions.clone(),
        computes.clone(),
        Arc::clone(&freshness),
        Arc::clone(&metrics),
    );
    let reports = Arc::new(ReportIntake::new(
        Arc::clone(&store),
        Arc::clone(&reconciler),
        Arc::clone(&freshness),
        Arc::clone(&metrics),
    ));
    let reconcile = OrphanCollector::new(
        Arc::clone(&store),
        definitions.clone(),
        computes.clone(),
        Arc::clone(&reconciler),
        Arc::clone(&freshness),
        Arc::clone(&metrics),
    );
    let gauges = gauges::run(
        Arc::clone(&store),
        definitions.clone(),
        Arc::clone(&metrics),
        shutdown.stopping(),
    );
    let fan_out = Arc::new(ChangeFanOut::new());
    let keyring = Arc::new(Keyring::remembering(SIGNATURES));
    let keys = key_document(
        &config,
        Arc::clone(&keyring),
        Arc::clone(&clock),
        admin.readiness.condition("token keys"),
    )?;
    let verifier = Verifier::new(VerifierConfig::new(
        &config.tokens.issuer,
        &config.tokens.audience,
    ));
    let disabling = Disabling::new(
        Arc::clone(&store),
        definitions.clone(),
        Arc::clone(&reconciler),
        verifier.config().afterlife(),
    );
    let (trail, refusals) = audit::Trail::new(Arc::clone(&store), Arc::clone(&clock), Arc::clone(&metrics));
    let trail = Arc::new(trail);
    let admission = Arc::new(Admission {
        authenticator: CallerAuthenticator::new(&config, Arc::clone(&clock))?,
        definitions: definitions.clone(),
        trail: Arc::clone(&trail),
        metrics: Arc::clone(&metrics),
        clock: Arc::clone(&clock),
    });
    let api = Arc::new(Api {
        admission: Arc::clone(&admission),
        trail,
        store: Arc::clone(&store),
        definitions,
        reconciler: Arc::clone(&reconciler),
        fan_out: Arc::clone(&fan_out),
        reports: Arc::clone(&reports),
        disabling: Arc::clone(&disabling),
        watches: api::watch::Watches::new(),
        catalog_tests: api::test_catalog::catalog_tests(),
        verifier,
        keyring,
        keys: Arc::clone(&keys),
        clock,
        computes,
        compute_config: config.compute.clone(),
        metrics,
        stopping: shutdown.stopping(),
    });

    let stop = shutdown.stopping();
    let too_old = {
        let (keyring, clock) = (Arc::clone(&api.keyring), Arc::clone(&api.clock));
        move || forget_old_keys(&keyring, &*clock)
    };
    shutdown.spawn(keys.keep_fresh(too_old, stop.clone()));
    shutdown.spawn(audit::write_later(Arc::clone(&store), refusals, stop.clone()));
    shutdown.spawn(audit::export(Arc::clone(&store), stop.clone()));
    shutdown.spawn(retention::run(Arc::clone(&store), stop.clone()));
    let there = admin.readiness.condition("state store");
    shutdown.spawn(watch_store(
        Arc::clone(&store),
        freshness,
        move |answers| there.set(answers),
        stop.clone(),
    ));
    let ended = |name: &'static str| tracing::debug!(name, "task ended");
    shutdown.spawn(disabling.run(stop.clone()));
    shutdown.spawn_critical("watched sessions", {
        let (api, fan_out, store, stop) = (
            Arc::clone(&api),
            Arc::clone(&fan_out),
            Arc::clone(&store),
            stop.clone(),
        );
        async move {
            api.watches.run(&fan_out, store, stop).await;
            anyhow::Ok(())
        }
    });
    shutdown.spawn_critical("change feed", {
        let stop = stop.clone();
        async move {
            fan_out.run(store, stop).await;
            ended("change feed");
            anyhow::Ok(())
        }
    });
    shutdown.spawn_critical("reconciler", {
        let stop = stop.clone();
        async move {
            reconciler.run(enqueued, stop).await;
            ended("reconciler");
            anyhow::Ok(())
        }
    });
    shutdown.spawn(gauges);
    shutdown.spawn_critical("orphan collection", {
        let stop = stop.clone();
        async move {
            reconcile.run(stop).await;
            ended("orphan collection");
            anyhow::Ok(())
        }
    });
    shutdown.spawn_critical("activity", {
        let stop = stop.clone();
        async move {
            reports.run(stop).await;
            ended("activity");
            anyhow::Ok(())
        }
    });
    shutdown.spawn({
        let stop = stop.clone();
        async move { admission.authenticator.keep_fresh(stop).await }
    });
    serve(&shutdown, ports, &config, &api)?;
    tracing::info!("session-manager is up");
    shutdown.finish(config.drain).await?;
    Ok(())
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

/// A key set that could not be read for a day says nothing of today's keys.
fn forget_old_keys(keyring: &Keyring, clock: &dyn Clock) {
    if keyring.expire(MAX_KEY_SET_AGE, clock.now()) {
        tracing::error!("key set expired: reading failed for too long; all tokens are rejected");
    }
}

/// Asks again and again whether the store is there.
pub(crate) async fn watch_store(
    store: Arc<dyn SessionStore>,
    freshness: Arc<ReportFreshness>,
    there: impl Fn(bool),
    stop: tokio_util::sync::CancellationToken,
) {
    loop {
        let answers = store.ping().await.is_ok();
        there(answers);
        if answers {
            freshness.found().await;
        } else {
            freshness.lost();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PING) => {}
        }
    }
}
