//! The wiring of the service: its parts, and the tasks that run them.

use crate::admission::authenticate::Callers;
use crate::api::Api;
use crate::change_feed::Hub;
use crate::config::{self, Config};
use crate::definitions::Directory;
use crate::lifecycle::activity_reports::Reports;
use crate::lifecycle::disabling::ShutOut;
use crate::lifecycle::orphan_collection::Reconcile;
use crate::lifecycle::reconciler::Driver;
use crate::lifecycle::report_freshness::{Jumps, Silence};
use crate::metrics::Metrics;
use crate::providers::leader_lease::Exclusive;
use crate::providers::registry::{Computes, StorePlaces};
use crate::server::{Listeners, Ports, serve};
use crate::startup::until_available;
use crate::{api, audit, gauges, lifecycle::retention, providers::installation};
use anyhow::{Context, Result};
use service_kit::admin::Condition;
use service_kit::polled_document::Document;
use service_kit::shutdown::Shutdown;
use session_core::{Clock, SystemClock};
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

/// Makes the providers that the configuration allows.
///
/// # Errors
/// When one cannot work here.
async fn make_computes(
    config: &Config,
    store: &Arc<dyn SessionStore>,
    own_ports: impl IntoIterator<Item = u16>,
    shutdown: &Shutdown,
) -> Result<Computes> {
    let allow = config
        .allow_list(own_ports)
        .map_err(anyhow::Error::msg)
        .context("compute.static.allow")?;
    let fixed = compute::StaticProvider::new(
        compute::StaticConfig {
            allow: Arc::new(allow),
            tls: None,
        },
        Arc::new(StorePlaces(Arc::clone(store))),
    );
    let process = match config.compute.process_config() {
        None => None,
        Some(mut settings) => {
            settings.install_id = installation::id(store).await.context("store.url")?;
            settings.host = Some(service_kit::host::id().to_owned());
            let folder = settings.state_dir.clone();
            let provider = compute::ProcessProvider::new(settings).context("compute.process")?;
            let exclusive = Exclusive::new(provider, Arc::clone(store), &folder, shutdown.stopping()).await;
            Some(exclusive as Arc<dyn compute::ComputeProvider>)
        }
    };
    Ok(Computes::new(Arc::new(fixed), process))
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
        make_computes(&config, &store, own_ports.iter().copied(), &shutdown)
    });
    let Some(computes) = made.await? else {
        return Ok(shutdown.finish(config.drain).await?);
    };
    run_on(config, ports, shutdown, store, computes, Jumps::AreOutages).await
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
    computes: Computes,
) -> Result<()> {
    let ports = Ports::admin_first(listeners, &shutdown);
    run_on(config, ports, shutdown, store, computes, Jumps::AreMeant).await
}

async fn run_on(
    config: Config,
    ports: Ports,
    shutdown: Shutdown,
    store: Arc<dyn SessionStore>,
    computes: Computes,
    jumps: Jumps,
) -> Result<()> {
    let admin = ports.admin.clone();
    let metrics = Arc::new(Metrics::new(&admin.registry));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let directory = Directory::new(Arc::clone(&store));
    let stop = shutdown.stopping();
    let follow = || follow_configuration(&config, &directory);
    let followed = until_available("follow the configuration", &stop, follow).await?;
    if followed.is_none() {
        return Ok(shutdown.finish(config.drain).await?);
    }

    let silence = Arc::new(Silence::new(Arc::clone(&store), jumps));
    silence.found().await;
    let (driver, kicked) = Driver::new(
        Arc::clone(&store),
        directory.clone(),
        computes.clone(),
        Arc::clone(&silence),
        Arc::clone(&metrics),
    );
    let reports = Arc::new(Reports::new(
        Arc::clone(&store),
        Arc::clone(&driver),
        Arc::clone(&silence),
        Arc::clone(&metrics),
    ));
    let reconcile = Reconcile::new(
        Arc::clone(&store),
        directory.clone(),
        computes.clone(),
        Arc::clone(&driver),
        Arc::clone(&silence),
        Arc::clone(&metrics),
    );
    let gauges = gauges::run(
        Arc::clone(&store),
        directory.clone(),
        Arc::clone(&metrics),
        shutdown.stopping(),
    );
    let hub = Arc::new(Hub::new());
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
    let shut_out = ShutOut::new(
        Arc::clone(&store),
        directory.clone(),
        Arc::clone(&driver),
        verifier.config().afterlife(),
    );
    let (trail, refusals) = audit::Trail::new(Arc::clone(&clock), Arc::clone(&metrics));
    let api = Arc::new(Api {
        trail,
        store: Arc::clone(&store),
        directory,
        driver: Arc::clone(&driver),
        hub: Arc::clone(&hub),
        reports: Arc::clone(&reports),
        shut_out: Arc::clone(&shut_out),
        watches: api::watch::Watches::new(),
        trials: api::test_catalog::trials(),
        callers: Callers::new(&config, Arc::clone(&clock))?,
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
        silence,
        move |answers| there.set(answers),
        stop.clone(),
    ));
    let ended = |name: &'static str| tracing::debug!(name, "task ended");
    shutdown.spawn(shut_out.run(stop.clone()));
    shutdown.spawn_critical("watched sessions", {
        let (api, hub, store, stop) = (
            Arc::clone(&api),
            Arc::clone(&hub),
            Arc::clone(&store),
            stop.clone(),
        );
        async move {
            api.watches.run(&hub, store, stop).await;
            anyhow::Ok(())
        }
    });
    shutdown.spawn_critical("change feed", {
        let stop = stop.clone();
        async move {
            hub.run(store, stop).await;
            ended("change feed");
            anyhow::Ok(())
        }
    });
    shutdown.spawn_critical("driver", {
        let stop = stop.clone();
        async move {
            driver.run(kicked, stop).await;
            ended("driver");
            anyhow::Ok(())
        }
    });
    shutdown.spawn(gauges);
    shutdown.spawn_critical("reconcile", {
        let stop = stop.clone();
        async move {
            reconcile.run(stop).await;
            ended("reconcile");
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
        let (api, stop) = (Arc::clone(&api), stop.clone());
        async move { api.callers.keep_fresh(stop).await }
    });
    serve(&shutdown, ports, &config, &api)?;
    tracing::info!("session-manager is up");
    shutdown.finish(config.drain).await?;
    Ok(())
}

async fn follow_configuration(config: &Config, directory: &Directory) -> Result<()> {
    let clusters = defined(config.clusters.iter().map(config::ClusterConfig::define)).context("clusters")?;
    let catalogs = defined(config.catalogs.iter().map(config::CatalogConfig::define)).context("catalogs")?;
    let orgs = defined(config.orgs.iter().map(config::OrgConfig::define)).context("orgs")?;
    directory.sync(&clusters).await?;
    directory.sync(&catalogs).await?;
    directory.sync(&orgs).await
}

fn defined<T>(all: impl Iterator<Item = Result<T, Vec<config::Wrong>>>) -> Result<Vec<T>> {
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
        tracing::error!("the key set could not be read for too long; tokens are no longer accepted");
    }
}

/// Asks again and again whether the store is there.
pub(crate) async fn watch_store(
    store: Arc<dyn SessionStore>,
    silence: Arc<Silence>,
    there: impl Fn(bool),
    stop: tokio_util::sync::CancellationToken,
) {
    loop {
        let answers = store.ping().await.is_ok();
        there(answers);
        if answers {
            silence.found().await;
        } else {
            silence.lost();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PING) => {}
        }
    }
}
