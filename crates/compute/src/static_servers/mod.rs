//! The `static` provider: existing Spark Connect servers that sessions share.
//!
//! Nothing is started. A session is assigned to the server with the fewest sessions.
//! The placement is in the store (through [`Placements`]); only the probe result is in
//! memory, so a restarted manager reads the placement and probes again. Bindings of
//! Spark sessions separate sessions on one server, see [`crate::shared_servers`].

mod definition;
mod state;

use crate::address::{AddressError, AllowList};
use crate::change_feed::Changes;
use crate::connector::{Target, system_tls};
use crate::dns::AddressCache;
use crate::probe::{self, CatalogQuestion, Question};
use crate::properties::{secret_from_env, unfit};
use crate::shared_servers::{self, CatalogSelection, SharedCompute};
use crate::user_message;
use crate::{Capabilities, ComputeChanged, ComputeProvider, ComputeSpec, Error, Found};
use async_trait::async_trait;
pub(crate) use definition::check_definition;
use futures::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use rustls_pki_types::ServerName;
use session_core::cluster::StaticEndpoint;
use session_core::machine::{Cause, Observation};
use session_core::{Cluster, Provider, ProviderKind, Route, SessionKey, SparkSessionId};
use state::{MAX_STORED, Release, Stage, State};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Persistent placements of sessions on servers.
#[async_trait]
pub trait Placements: Send + Sync + fmt::Debug + 'static {
    /// Assigns `key` to a server: its present one if that is in `servers`, else the one
    /// with the fewest sessions, the first of several. With `org_alone`, servers with
    /// another organization are excluded. `None` if no server is left.
    ///
    /// # Errors
    /// If the store is unavailable.
    async fn place(
        &self,
        servers: &[String],
        key: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error>;

    /// Removes the placement of `key` on `server`, if it exists.
    ///
    /// # Errors
    /// If the store is unavailable.
    async fn remove(&self, server: &str, key: &SessionKey) -> Result<(), Error>;

    /// Lists the servers to which `key` is assigned.
    ///
    /// # Errors
    /// If the store is unavailable.
    async fn list(&self, key: &SessionKey) -> Result<Vec<String>, Error>;
}

/// Connection settings for existing servers.
#[derive(Clone)]
pub struct StaticConfig {
    /// Allowed addresses of endpoints.
    pub allow: Arc<AllowList>,
    /// TLS configuration of endpoints with TLS; [`system_tls`] if `None`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl fmt::Debug for StaticConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticConfig")
            .field("allow", &self.allow)
            .finish_non_exhaustive()
    }
}

/// The `static` provider; see the module.
#[derive(Debug)]
pub struct StaticProvider {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: StaticConfig,
    placements: Arc<dyn Placements>,
    state: Mutex<State>,
    /// Serializes the changes of a session's placement. A hash selects the lock, so
    /// some sessions share one.
    locks: [tokio::sync::Mutex<()>; LOCKS],
    changes: Changes,
    address_cache: AddressCache,
}

const LOCKS: usize = 64;
/// Provisioning of a session takes at most 15 min.
const PROBE_TIMEOUT: Duration = Duration::from_secs(16 * 60);
/// Time between two checks of a probe that its session still has the placement.
const PLACEMENT_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Time for which an unhealthy endpoint is avoided.
const UNHEALTHY_PERIOD: Duration = Duration::from_secs(60);

impl StaticProvider {
    /// A provider with these connection settings and placements.
    pub fn new(config: StaticConfig, placements: Arc<dyn Placements>) -> Self {
        Self {
            shared: Arc::new(Shared {
                address_cache: AddressCache::new(Arc::clone(&config.allow)),
                config,
                placements,
                state: Mutex::default(),
                locks: std::array::from_fn(|_| tokio::sync::Mutex::default()),
                changes: Changes::default(),
            }),
        }
    }
}

#[async_trait]
impl ComputeProvider for StaticProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn shared(&self) -> Option<&dyn SharedCompute> {
        Some(self)
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        check_provider(spec)?;
        let _guard = self.shared.lock(&spec.key).await;
        {
            let state = self.shared.state();
            if state.release_of(spec).is_some() || state.assignment_of(spec).is_some() {
                return Ok(());
            }
        }
        if let Some(cause) = unfit(spec, check_definition) {
            self.shared.fail(spec, cause);
            return Ok(());
        }
        match self.shared.place(spec).await? {
            Some(endpoint) => self.shared.start_probe(spec, endpoint),
            None => {
                let cause = format!(
                    "every endpoint of cluster {} serves another organization; use another cluster, or ask your platform team",
                    spec.cluster.name
                );
                self.shared.fail(spec, cause.into());
            }
        }
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        check_provider(spec)?;
        {
            let state = self.shared.state();
            match state.release_of(spec) {
                Some(Release { confirmed: true, .. }) => return Ok(Observation::Missing),
                Some(Release { confirmed: false, .. }) => {
                    return Ok(Observation::Starting {
                        cause: "its endpoint is being released".into(),
                    });
                }
                None => {}
            }
            if let Some(assignment) = state.assignment_of(spec) {
                return Ok(assignment.stage.observation());
            }
        }
        let _guard = self.shared.lock(&spec.key).await;
        // Placed by another manager, or before a restart.
        let placed = self.shared.placed(spec).await?;
        if self.shared.state().release_of(spec).is_some() {
            return Ok(Observation::Missing);
        }
        match placed {
            Some(endpoint) => self.shared.start_probe(spec, endpoint),
            None => self.shared.state().remove_assignment(&spec.key),
        }
        let state = self.shared.state();
        Ok(state
            .assignment_of(spec)
            .map_or(Observation::Missing, |assignment| assignment.stage.observation()))
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        check_provider(spec)?;
        let _guard = self.shared.lock(&spec.key).await;
        {
            let mut state = self.shared.state();
            let newest = state
                .assignments
                .get(&spec.key)
                .map(|assignment| assignment.generation);
            if newest.is_some_and(|newest| newest > spec.generation) {
                return Ok(());
            }
            if state.released.len() >= MAX_STORED {
                state.released.retain(|_, release| !release.confirmed);
            }
            let release = state.released.entry(spec.key.clone()).or_default();
            *release = Release {
                up_to: release.up_to.max(spec.generation),
                confirmed: false,
            };
            state.remove_assignment(&spec.key);
        }
        self.shared.remove_placements(&spec.key).await?;
        if let Some(release) = self.shared.state().released.get_mut(&spec.key) {
            release.confirmed = true;
        }
        self.shared.changes.publish(&spec.key, spec.generation);
        Ok(())
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        Ok(Vec::new())
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.shared.changes.watch()
    }
}

#[async_trait]
impl SharedCompute for StaticProvider {
    fn servers(&self, cluster: &Cluster) -> Vec<String> {
        addresses(cluster)
    }

    fn target_at(&self, cluster: &Cluster, server: &str) -> Result<Target, Cause> {
        self.shared.target_at(cluster, &server.to_ascii_lowercase())
    }

    async fn addresses(&self, server: &str) -> Result<Arc<[SocketAddr]>, AddressError> {
        self.shared
            .address_cache
            .addresses(&server.to_ascii_lowercase())
            .await
    }

    async fn select_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<CatalogSelection, Cause> {
        let target = self.shared.target_at(&spec.cluster, server)?;
        shared_servers::select_catalog(&target, spec, id).await
    }

    async fn end_spark_sessions(
        &self,
        spec: &ComputeSpec,
        server: &str,
        ids: &[SparkSessionId],
    ) -> Result<Vec<SparkSessionId>, Error> {
        let target = self.shared.target_at(&spec.cluster, server);
        let target = target.map_err(|cause| Error::Unavailable(cause.text))?;
        shared_servers::end_spark_sessions(&target, &spec.key, ids).await
    }
}

fn check_provider(spec: &ComputeSpec) -> Result<(), Error> {
    if spec.cluster.provider.kind() == ProviderKind::Static {
        Ok(())
    } else {
        Err(Error::WrongProvider(spec.cluster.name.to_string()))
    }
}

fn endpoints(cluster: &Cluster) -> &[StaticEndpoint] {
    if let Provider::Static { endpoints, .. } = &cluster.provider {
        endpoints
    } else {
        &[]
    }
}

/// The servers of a cluster, as `host:port`.
pub(crate) fn addresses(cluster: &Cluster) -> Vec<String> {
    let endpoints = endpoints(cluster).iter();
    endpoints.map(|endpoint| endpoint.address.clone()).collect()
}

/// Name of a server in placements, the same for all clusters.
fn server_name(endpoint: &StaticEndpoint) -> String {
    endpoint.address.to_ascii_lowercase()
}

fn endpoint_at<'a>(cluster: &'a Cluster, server: &str) -> Option<&'a StaticEndpoint> {
    endpoints(cluster)
        .iter()
        .find(|endpoint| server_name(endpoint) == server)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    async fn lock(&self, key: &SessionKey) -> tokio::sync::MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.locks[usize::try_from(hash % LOCKS as u64).unwrap_or(0)]
            .lock()
            .await
    }

    /// Returns the endpoint of the session's placement, if the cluster still has it.
    async fn placed<'a>(&self, spec: &'a ComputeSpec) -> Result<Option<&'a StaticEndpoint>, Error> {
        let servers = self.placements.list(&spec.key).await?;
        Ok(servers
            .iter()
            .find_map(|server| endpoint_at(&spec.cluster, server)))
    }

    /// Returns the endpoint of the session's placement, or assigns one: the one with
    /// the fewest sessions, preferably a healthy one.
    async fn place<'a>(&self, spec: &'a ComputeSpec) -> Result<Option<&'a StaticEndpoint>, Error> {
        if let Some(endpoint) = self.placed(spec).await? {
            return Ok(Some(endpoint));
        }
        // The placement is on a server that its cluster no longer has.
        self.remove_placements(&spec.key).await?;
        let (healthy, others): (Vec<_>, Vec<_>) = {
            let mut state = self.state();
            state
                .unhealthy
                .retain(|_, seen| seen.elapsed() < UNHEALTHY_PERIOD);
            endpoints(&spec.cluster)
                .iter()
                .map(server_name)
                .partition(|server| !state.unhealthy.contains_key(server))
        };
        let org_alone = spec.cluster.keeps_orgs_apart();
        for servers in [healthy, others] {
            if let Some(server) = self.placements.place(&servers, &spec.key, org_alone).await? {
                return Ok(endpoint_at(&spec.cluster, &server));
            }
        }
        Ok(None)
    }

    async fn remove_placements(&self, key: &SessionKey) -> Result<(), Error> {
        for server in self.placements.list(key).await? {
            self.placements.remove(&server, key).await?;
        }
        Ok(())
    }

    /// Connection parameters of a server with bound Spark sessions.
    fn target_at(&self, cluster: &Cluster, server: &str) -> Result<Target, Cause> {
        let endpoint = endpoint_at(cluster, server)
            .ok_or_else(|| Cause::from(format!("its server is no longer one of cluster {}", cluster.name)))?;
        self.target(endpoint)
    }

    fn target(&self, endpoint: &StaticEndpoint) -> Result<Target, Cause> {
        let tls = match &endpoint.tls_server_name {
            None => None,
            Some(name) => {
                let server = ServerName::try_from(name.clone()).map_err(|_| {
                    user_message::cause("the TLS server name of its endpoint is invalid", name)
                })?;
                let config = match &self.config.tls {
                    Some(config) => config.clone(),
                    None => system_tls().map_err(|e| user_message::cause("TLS cannot be used", e))?,
                };
                Some((server, config))
            }
        };
        Ok(Target {
            address: endpoint.address.clone(),
            tls,
            credential: endpoint.token_env.as_deref().map(secret_from_env).transpose()?,
            allow: Some(self.config.allow.clone()),
        })
    }

    /// Sets a permanent failure, without a probe.
    fn fail(&self, spec: &ComputeSpec, cause: Cause) {
        let stage = Stage::Failed { cause };
        self.state().set_assignment(spec, None, stage);
        self.changes.publish(&spec.key, spec.generation);
    }

    /// Starts a probe, unless one runs or has succeeded.
    fn start_probe(self: &Arc<Self>, spec: &ComputeSpec, endpoint: &StaticEndpoint) {
        let name = server_name(endpoint);
        let target = match self.target(endpoint) {
            Ok(target) => target,
            Err(cause) => return self.fail(spec, cause),
        };
        let (run, stop) = {
            let mut state = self.state();
            if let Some(assignment) = state.assignments.get_mut(&spec.key)
                && assignment.server.as_ref() == Some(&name)
                && !matches!(assignment.stage, Stage::Failed { .. })
            {
                assignment.generation = assignment.generation.max(spec.generation);
                return;
            }
            let stage = Stage::Starting {
                cause: "its endpoint is being probed".into(),
            };
            state.set_assignment(spec, Some(name.clone()), stage)
        };
        let (shared, spec, endpoint) = (self.clone(), spec.clone(), endpoint.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = shared.probe(&spec, &endpoint, &target, run) => {}
                () = shared.until_removed(&spec.key, &name) => {
                    shared.state().end_run(&spec.key, run);
                    shared.changes.publish(&spec.key, spec.generation);
                }
            }
        });
    }

    /// Waits until another manager removed the placement, or until the probe can have
    /// no waiter.
    async fn until_removed(&self, key: &SessionKey, name: &str) {
        let deadline = Instant::now() + PROBE_TIMEOUT;
        while Instant::now() < deadline {
            sleep(PLACEMENT_CHECK_INTERVAL).await;
            match self.placements.list(key).await {
                Ok(servers) if servers.iter().any(|server| server == name) => {}
                Ok(_) => return,
                Err(cause) => tracing::debug!(session = %key.id, %cause, "reading placements failed"),
            }
        }
    }

    async fn probe(&self, spec: &ComputeSpec, endpoint: &StaticEndpoint, target: &Target, run: u64) {
        let question = Question {
            user_id: shared_servers::user_id(&spec.key),
            catalog: spec.catalog.as_ref().map(|catalog| CatalogQuestion {
                name: catalog.name.to_string(),
                database: catalog.default_database.clone(),
                select: true,
            }),
        };
        let secrets = target.credential.as_slice();
        let mut last = None;
        let outcome = probe::until_ready(target, &question, |why| {
            let why = user_message::masked(&why, secrets);
            tracing::debug!(session = %spec.key.id, cause = %why.text, detail = %why.detail, "not ready yet");
            {
                let mut state = self.state();
                state.unhealthy.insert(server_name(endpoint), Instant::now());
                state.write(spec, run, Stage::Starting { cause: why.clone() });
            }
            if last.replace(why.clone()) != Some(why) {
                self.changes.publish(&spec.key, spec.generation);
            }
        });
        let stage = match outcome.await {
            Ok(engine_version) => {
                let route = Route {
                    endpoint: endpoint.address.clone(),
                    tls_server_name: endpoint.tls_server_name.clone(),
                    credential: target.credential.clone(),
                    engine: spec.cluster.engine,
                    engine_version,
                    dedicated: false,
                    host: None,
                };
                Stage::Ready { route }
            }
            Err(cause) => Stage::Failed {
                cause: user_message::masked(&cause, secrets),
            },
        };
        {
            let mut state = self.state();
            if matches!(stage, Stage::Ready { .. }) {
                state.unhealthy.remove(&server_name(endpoint));
            } else {
                state.unhealthy.insert(server_name(endpoint), Instant::now());
            }
            state.write(spec, run, stage);
        }
        self.changes.publish(&spec.key, spec.generation);
    }
}
