//! `session-manager`: the life of sessions, and the only part of Berth that
//! opens the store or drives compute.
//!
//! [`run`] is the whole service: tests and `main` start the same function.

mod api;
mod audit;
mod bindings;
mod callers;
mod census;
mod computes;
pub mod config;
mod directory;
mod driver;
mod exclusive;
mod feed;
mod foreign;
mod gate;
mod install;
mod metrics;
mod reconcile;
mod refuse;
mod reports;
mod show;
mod shut_out;
mod silence;
#[cfg(test)]
mod simulation;
mod slots;
mod start;
mod tombstones;

pub use computes::{Computes, StorePlaces};
pub use config::Config;
pub use show::show;

use anyhow::{Context, Result};
use api::Api;
use callers::Callers;
use directory::Directory;
use driver::Driver;
use exclusive::Exclusive;
use feed::Hub;
use metrics::Metrics;
use reconcile::Reconcile;
use reports::Reports;
use service_kit::admin::{Admin, Condition};
use service_kit::document::{Document, Fetched};
use service_kit::gate::Gate;
use service_kit::grpc::{self, MAX_MESSAGE, ServerConfig};
use service_kit::limits::{AtOnce, ByAddress};
use service_kit::listen::Listener;
use service_kit::projected::ServiceTokens;
use service_kit::shutdown::Shutdown;
use service_kit::tls::{AcceptLimits, H2, Incoming};
use session_core::{Clock, SystemClock};
use session_proto::internal::route_service_server::RouteServiceServer;
use session_proto::internal::token_ledger_server::TokenLedgerServer;
use session_proto::v1::catalog_service_server::CatalogServiceServer;
use session_proto::v1::cluster_service_server::ClusterServiceServer;
use session_proto::v1::org_service_server::OrgServiceServer;
use session_proto::v1::session_service_server::SessionServiceServer;
use session_store::SessionStore;
use session_token::{Jwks, Keyring, Verifier, VerifierConfig};
use shut_out::ShutOut;
use silence::{Jumps, Silence};
use start::until_available;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// ResolveRoute may hold as long as a hold may be configured, and a little.
const LONGEST_INTERNAL_CALL: Duration = Duration::from_secs(16 * 60);
/// Streams of one connection at the internal port. A proxy asks for the routes
/// of all its sessions on one connection, and binds Spark sessions on another.
/// More than all calls that a proxy holds (`limits.held_calls`).
const INTERNAL_STREAMS: u32 = 16 * 1024;
/// The last good key set is used this long when it cannot be read again.
const KEEP_KEYS: Duration = Duration::from_secs(24 * 3600);
/// Good signatures that are remembered, 32 bytes each: proxies show the same tokens
/// again and again.
const SIGNATURES: usize = 16_384;
/// How often the store is asked whether it is there.
const PING: Duration = Duration::from_secs(2);

/// The ports, bound.
#[derive(Debug)]
pub struct Listeners {
    /// `berth.v1`.
    pub public: Listener,
    /// `berth.internal.v1`.
    pub internal: Listener,
    /// Health and metrics.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// Names the address that cannot be had.
    pub async fn bind(config: &Config) -> Result<Self> {
        Ok(Self {
            public: Listener::bind(&config.listen.public, H2)
                .await
                .context("listen.public")?,
            internal: Listener::bind(&config.listen.internal, H2)
                .await
                .context("listen.internal")?,
            admin: config.admin.bind().await?,
        })
    }

    fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        let admin = self.admin.local_addr().map(|address| address.port()).ok();
        [self.public.local_addr().port(), self.internal.local_addr().port()]
            .into_iter()
            .chain(admin)
    }
}

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
            settings.install_id = install::id(store).await.context("store.url")?;
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

/// The ports of a service that is starting: the admin port serves already, so
/// that it can be seen to live while it waits for its state.
struct Ports {
    public: Listener,
    internal: Listener,
    admin: Admin,
    started: Condition,
}

impl Ports {
    fn admin_first(listeners: Listeners, shutdown: &Shutdown) -> Self {
        let admin = Admin::new(service_kit::build_info!());
        let started = admin.readiness.condition("started");
        admin.clone().spawn(listeners.admin, shutdown);
        Self {
            public: listeners.public,
            internal: listeners.internal,
            admin,
            started,
        }
    }
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
    let census = census::run(
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
        trials: api::trial::trials(),
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
    shutdown.spawn(tombstones::run(Arc::clone(&store), stop.clone()));
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
    shutdown.spawn(census);
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
        match fetched {
            Fetched::New(text) => {
                let keys = Jwks::from_json(text)?;
                anyhow::ensure!(!keys.is_empty(), "it holds no key that signs session tokens");
                keyring.replace(&keys, clock.now());
            }
            Fetched::Same => {
                anyhow::ensure!(!keyring.is_empty(), "the last set was given up");
                keyring.confirm(clock.now());
            }
        }
        ready.set(true);
        Ok(())
    })
    .context("tokens.keys")
}

/// A key set that could not be read for a day says nothing of today's keys.
fn forget_old_keys(keyring: &Keyring, clock: &dyn Clock) {
    let now = clock.now();
    if !keyring.is_empty() && keyring.age(now).is_some_and(|age| age > KEEP_KEYS) {
        tracing::error!("the key set could not be read for too long; tokens are no longer accepted");
        keyring.replace(&Jwks::default(), now);
    }
}

/// Asks again and again whether the store is there.
async fn watch_store(
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

fn serve(shutdown: &Shutdown, ports: Ports, config: &Config, api: &Arc<Api>) -> Result<()> {
    let counts = Arc::new(gate::Counts::new(&config.limits));
    let tokens = config.internal.tokens.as_ref();
    let tokens = tokens
        .map(|tokens| ServiceTokens::new(tokens, Arc::new(foreign::Foreign)))
        .transpose()
        .context("internal.tokens")?
        .map(Arc::new);
    if let Some(tokens) = tokens.clone() {
        let stop = shutdown.stopping();
        shutdown.spawn(async move { tokens.keep_fresh(stop).await });
    }
    let largest = config.limits.request_bytes;
    let stop = shutdown.stopping();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(session_proto::PUBLIC_DESCRIPTORS)
        .build_v1()
        .context("server reflection")?;
    let public = grpc::server(&ServerConfig {
        timeout: Duration::from_secs(90),
        ..ServerConfig::default()
    })
    .layer(Gate::new(gate::Public {
        api: Arc::clone(api),
        addresses: ByAddress::new(&config.limits),
        counts: Arc::clone(&counts),
        at_once: AtOnce::new(config.limits.calls_at_once),
    }))
    .add_service(grpc::health(&ports.admin.readiness, stop.clone()))
    .add_service(reflection)
    .add_service(
        SessionServiceServer::new(api::sessions::Sessions(Arc::clone(api)))
            .max_decoding_message_size(largest),
    )
    .add_service(
        ClusterServiceServer::new(api::clusters::Clusters(Arc::clone(api)))
            .max_decoding_message_size(largest),
    )
    .add_service(
        CatalogServiceServer::new(api::catalogs::Catalogs(Arc::clone(api)))
            .max_decoding_message_size(largest),
    )
    .add_service(OrgServiceServer::new(api::orgs::Orgs(Arc::clone(api))).max_decoding_message_size(largest));
    let internal = grpc::server(&ServerConfig {
        timeout: LONGEST_INTERNAL_CALL,
        streams_per_connection: INTERNAL_STREAMS,
        ..ServerConfig::default()
    })
    .layer(Gate::new(gate::Internal {
        api: Arc::clone(api),
        counts,
        allow: config.internal.clone(),
        tokens,
    }))
    .add_service(grpc::health(&ports.admin.readiness, stop.clone()))
    .add_service(
        RouteServiceServer::new(api::routes::Routes(Arc::clone(api))).max_decoding_message_size(MAX_MESSAGE),
    )
    .add_service(
        TokenLedgerServer::new(api::ledger::Ledger(Arc::clone(api))).max_decoding_message_size(MAX_MESSAGE),
    );
    let connections = |listener, limits| Incoming::new(listener, limits, stop.clone());
    let incoming = connections(ports.public, config.limits.api_connections());
    let public = public.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let incoming = connections(ports.internal, AcceptLimits::default());
    let internal = internal.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    shutdown.spawn_critical("public API", public);
    shutdown.spawn_critical("internal API", internal);
    ports.started.set(true);
    Ok(())
}
