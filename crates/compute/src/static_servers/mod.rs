//! Existing, shared Spark Connect servers: the `static` provider.
//!
//! Nothing is started. A session takes a place on one endpoint, where the
//! fewest sessions are; the place lives in the store (through [`Places`]), and
//! only what probing found is kept here: after a restart the place is found
//! again and probed anew. Sessions that share an endpoint are kept apart by
//! binding their Spark sessions, see [`crate::shared_servers`].

mod definition;
mod state;

use crate::address::{AddressError, AllowList};
use crate::change_feed::Changes;
use crate::connector::{Target, system_tls};
use crate::dns::Checked;
use crate::probe::{self, CatalogQuestion, Question};
use crate::properties::{secret_from_env, unfit};
use crate::shared_servers::{self, Chosen, SharedCompute};
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
use state::{REMEMBER_MANY, Release, Stage, State};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Places on servers that outlive the manager.
#[async_trait]
pub trait Places: Send + Sync + fmt::Debug + 'static {
    /// Gives `key` a place: the one it has if it is among `servers`, else where
    /// the fewest are, the first of several such. If `org_alone`, not where
    /// another organization is. None if nothing is left.
    ///
    /// # Errors
    /// If the store cannot tell.
    async fn take(
        &self,
        servers: &[String],
        key: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error>;

    /// Gives a place of `key`'s back, if it has it.
    ///
    /// # Errors
    /// If the store cannot tell.
    async fn leave(&self, server: &str, key: &SessionKey) -> Result<(), Error>;

    /// All the servers where `key` has a place.
    ///
    /// # Errors
    /// If the store cannot tell.
    async fn of(&self, key: &SessionKey) -> Result<Vec<String>, Error>;
}

/// How existing servers are reached.
#[derive(Clone)]
pub struct StaticConfig {
    /// Where endpoints may be.
    pub allow: Arc<AllowList>,
    /// TLS to endpoints that ask for it; [`system_tls`] if none.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl fmt::Debug for StaticConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticConfig")
            .field("allow", &self.allow)
            .finish_non_exhaustive()
    }
}

/// See the module.
#[derive(Debug)]
pub struct StaticProvider {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: StaticConfig,
    places: Arc<dyn Places>,
    state: Mutex<State>,
    /// What is done to one session's place is done one after the other; which
    /// gate is decided by a hash, so some sessions share one.
    gates: [tokio::sync::Mutex<()>; GATES],
    changes: Changes,
    checked: Checked,
}

const GATES: usize = 64;
/// No session is provisioned for longer than 15 min, so nobody waits longer.
const PROBE_LIMIT: Duration = Duration::from_secs(16 * 60);
/// How often a probe asks whether its session still has the endpoint.
const PLACE_CHECK: Duration = Duration::from_secs(5);
/// How long an endpoint that did not answer is avoided.
const AVOID: Duration = Duration::from_secs(60);

impl StaticProvider {
    /// Endpoints reached by `config`, shared by `places`.
    pub fn new(config: StaticConfig, places: Arc<dyn Places>) -> Self {
        Self {
            shared: Arc::new(Shared {
                checked: Checked::new(Arc::clone(&config.allow)),
                config,
                places,
                state: Mutex::default(),
                gates: std::array::from_fn(|_| tokio::sync::Mutex::default()),
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
        must_be_static(spec)?;
        let _gate = self.shared.gate(&spec.key).await;
        {
            let state = self.shared.state();
            if state.release_of(spec).is_some() || state.use_of(spec).is_some() {
                return Ok(());
            }
        }
        if let Some(cause) = unfit(spec, check_definition) {
            self.shared.settle(spec, cause);
            return Ok(());
        }
        match self.shared.take(spec).await? {
            Some(endpoint) => self.shared.begin(spec, endpoint),
            None => {
                let cause = format!(
                    "every endpoint of cluster {} serves another organization; use another cluster, or ask your platform team",
                    spec.cluster.name
                );
                self.shared.settle(spec, cause.into());
            }
        }
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        must_be_static(spec)?;
        {
            let state = self.shared.state();
            match state.release_of(spec) {
                Some(Release { confirmed: true, .. }) => return Ok(Observation::Missing),
                Some(Release { confirmed: false, .. }) => {
                    return Ok(Observation::Starting {
                        detail: "its endpoint is being given back".to_owned(),
                    });
                }
                None => {}
            }
            if let Some(used) = state.use_of(spec) {
                return Ok(used.stage.observation());
            }
        }
        let _gate = self.shared.gate(&spec.key).await;
        // Taken by another manager, or by one before this.
        let taken = self.shared.taken(spec).await?;
        if self.shared.state().release_of(spec).is_some() {
            return Ok(Observation::Missing);
        }
        match taken {
            Some(endpoint) => self.shared.begin(spec, endpoint),
            None => self.shared.state().drop_use(&spec.key),
        }
        let state = self.shared.state();
        Ok(state
            .use_of(spec)
            .map_or(Observation::Missing, |used| used.stage.observation()))
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        must_be_static(spec)?;
        let _gate = self.shared.gate(&spec.key).await;
        {
            let mut state = self.shared.state();
            let newest = state.uses.get(&spec.key).map(|used| used.generation);
            if newest.is_some_and(|newest| newest > spec.generation) {
                return Ok(());
            }
            if state.released.len() >= REMEMBER_MANY {
                state.released.retain(|_, release| !release.confirmed);
            }
            let release = state.released.entry(spec.key.clone()).or_default();
            *release = Release {
                up_to: release.up_to.max(spec.generation),
                confirmed: false,
            };
            state.drop_use(&spec.key);
        }
        self.shared.leave_all(&spec.key).await?;
        if let Some(release) = self.shared.state().released.get_mut(&spec.key) {
            release.confirmed = true;
        }
        self.shared.changes.tell(&spec.key, spec.generation);
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
        self.shared.checked.addresses(&server.to_ascii_lowercase()).await
    }

    async fn choose_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<Chosen, Cause> {
        let target = self.shared.target_at(&spec.cluster, server)?;
        shared_servers::choose_catalog(&target, spec, id).await
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

fn must_be_static(spec: &ComputeSpec) -> Result<(), Error> {
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

/// One server is one place, whichever cluster names it.
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

    async fn gate(&self, key: &SessionKey) -> tokio::sync::MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.gates[usize::try_from(hash % GATES as u64).unwrap_or(0)]
            .lock()
            .await
    }

    /// Where this session has its place, by the places alone: the definition
    /// of its cluster may have changed since.
    async fn taken<'a>(&self, spec: &'a ComputeSpec) -> Result<Option<&'a StaticEndpoint>, Error> {
        let servers = self.places.of(&spec.key).await?;
        Ok(servers
            .iter()
            .find_map(|server| endpoint_at(&spec.cluster, server)))
    }

    /// The endpoint where this session has its place, or the one it gets now:
    /// where the fewest are, of those that answered when last asked, if any.
    async fn take<'a>(&self, spec: &'a ComputeSpec) -> Result<Option<&'a StaticEndpoint>, Error> {
        if let Some(endpoint) = self.taken(spec).await? {
            return Ok(Some(endpoint));
        }
        // What it has is no endpoint of its cluster any more.
        self.leave_all(&spec.key).await?;
        let (healthy, others): (Vec<_>, Vec<_>) = {
            let mut state = self.state();
            state.unhealthy.retain(|_, seen| seen.elapsed() < AVOID);
            endpoints(&spec.cluster)
                .iter()
                .map(server_name)
                .partition(|server| !state.unhealthy.contains_key(server))
        };
        let org_alone = spec.cluster.keeps_orgs_apart();
        for servers in [healthy, others] {
            if let Some(server) = self.places.take(&servers, &spec.key, org_alone).await? {
                return Ok(endpoint_at(&spec.cluster, &server));
            }
        }
        Ok(None)
    }

    async fn leave_all(&self, key: &SessionKey) -> Result<(), Error> {
        for server in self.places.of(key).await? {
            self.places.leave(&server, key).await?;
        }
        Ok(())
    }

    /// How to reach a server that Spark sessions were bound on.
    fn target_at(&self, cluster: &Cluster, server: &str) -> Result<Target, Cause> {
        let endpoint = endpoint_at(cluster, server)
            .ok_or_else(|| Cause::from(format!("its server is no longer one of cluster {}", cluster.name)))?;
        self.target(endpoint)
    }

    fn target(&self, endpoint: &StaticEndpoint) -> Result<Target, Cause> {
        let tls = match &endpoint.tls_server_name {
            None => None,
            Some(name) => {
                let server = ServerName::try_from(name.clone())
                    .map_err(|_| user_message::cause("the TLS server name of its endpoint is none", name))?;
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

    /// Writes down that there is no hope, without a probe.
    fn settle(&self, spec: &ComputeSpec, cause: Cause) {
        let stage = Stage::Failed { cause };
        self.state().put_use(spec, None, stage);
        self.changes.tell(&spec.key, spec.generation);
    }

    /// Starts probing, unless somebody did.
    fn begin(self: &Arc<Self>, spec: &ComputeSpec, endpoint: &StaticEndpoint) {
        let name = server_name(endpoint);
        let target = match self.target(endpoint) {
            Ok(target) => target,
            Err(cause) => return self.settle(spec, cause),
        };
        let (run, stop) = {
            let mut state = self.state();
            if let Some(used) = state.uses.get_mut(&spec.key)
                && used.place.as_ref() == Some(&name)
                && !matches!(used.stage, Stage::Failed { .. })
            {
                used.generation = used.generation.max(spec.generation);
                return;
            }
            let stage = Stage::Starting {
                detail: "its endpoint is being probed".to_owned(),
            };
            state.put_use(spec, Some(name.clone()), stage)
        };
        let (shared, spec, endpoint) = (self.clone(), spec.clone(), endpoint.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = shared.probe(&spec, &endpoint, &target, run) => {}
                () = shared.until_lost(&spec.key, &name) => {
                    shared.state().end_run(&spec.key, run);
                    shared.changes.tell(&spec.key, spec.generation);
                }
            }
        });
    }

    /// Waits until the place has been given back by another manager, or until
    /// nobody can be waiting for this probe any more.
    async fn until_lost(&self, key: &SessionKey, name: &str) {
        let over = Instant::now() + PROBE_LIMIT;
        while Instant::now() < over {
            sleep(PLACE_CHECK).await;
            match self.places.of(key).await {
                Ok(servers) if servers.iter().any(|server| server == name) => {}
                Ok(_) => return,
                Err(cause) => tracing::debug!(session = %key.id, %cause, "its place cannot be looked up"),
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
        let asked = probe::until_ready(target, &question, |why| {
            let why = user_message::masked(&why, secrets);
            tracing::debug!(session = %spec.key.id, cause = %why.text, detail = %why.detail, "not ready yet");
            let mut state = self.state();
            state.unhealthy.insert(server_name(endpoint), Instant::now());
            state.write(spec, run, Stage::Starting { detail: why.text });
        });
        let stage = match asked.await {
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
        self.changes.tell(&spec.key, spec.generation);
    }
}
