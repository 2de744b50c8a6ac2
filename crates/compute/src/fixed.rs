//! Existing, shared Spark Connect servers: the `static` provider.
//!
//! Nothing is started. A session claims one endpoint, the claim lives in the
//! store (through [`Claims`]), and only what probing found is kept here: after
//! a restart the claim is found again and probed anew. One live session per
//! endpoint until Spark sessions are bound to Berth sessions (DESIGN §5.4).

use crate::address::AllowList;
use crate::dial::{Target, system_tls};
use crate::probe::{self, CatalogQuestion, Question};
use crate::properties::{secret_from_env, unfit};
use crate::watch::Changes;
use crate::{ComputeChanged, ComputeProvider, ComputeSpec, Error};
use async_trait::async_trait;
use futures::stream::BoxStream;
use rustls_pki_types::ServerName;
use session_core::cluster::StaticEndpoint;
use session_core::machine::Observation;
use session_core::{Cluster, Provider, Route, SessionKey};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Exclusive claims that outlive the manager. The names are ours.
#[async_trait]
pub trait Claims: Send + Sync + fmt::Debug + 'static {
    /// Claims `name` for `key` unless somebody has it; returns whose it is now.
    ///
    /// # Errors
    /// If the store cannot tell.
    async fn claim(&self, name: &str, key: &SessionKey) -> Result<SessionKey, Error>;

    /// Ends the claim of `key`; nothing happens if it is not its.
    ///
    /// # Errors
    /// If the store cannot tell.
    async fn unclaim(&self, name: &str, key: &SessionKey) -> Result<(), Error>;

    /// Whose it is.
    ///
    /// # Errors
    /// If the store cannot tell.
    async fn claimed_by(&self, name: &str) -> Result<Option<SessionKey>, Error>;

    /// All the names that are `key`'s.
    ///
    /// # Errors
    /// If the store cannot tell.
    async fn claims_of(&self, key: &SessionKey) -> Result<Vec<String>, Error>;
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

/// What is known of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Never asked.
    Unknown,
    /// It answered when last asked.
    Healthy,
    /// It did not, and why.
    Unhealthy(String),
}

/// See the module.
#[derive(Debug)]
pub struct StaticProvider {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: StaticConfig,
    claims: Arc<dyn Claims>,
    state: Mutex<State>,
    /// What is done to one session's claim is done one after the other; which
    /// gate is decided by a hash, so some sessions share one.
    gates: [tokio::sync::Mutex<()>; GATES],
    changes: Changes,
}

#[derive(Debug, Default)]
struct State {
    /// By session: one claim serves all its generations.
    uses: HashMap<SessionKey, Use>,
    released: HashMap<SessionKey, Release>,
    health: BTreeMap<String, Health>,
    runs: u64,
}

/// Generations that must not come back.
#[derive(Debug, Clone, Copy, Default)]
struct Release {
    up_to: u64,
    /// The store has ended the claim.
    confirmed: bool,
}

#[derive(Debug)]
struct Use {
    run: u64,
    /// The newest generation that asked for it.
    generation: u64,
    stage: Stage,
    stop: CancellationToken,
}

#[derive(Debug, Clone)]
enum Stage {
    Starting { detail: String },
    Ready { route: Route },
    Failed { cause: String, permanent: bool },
}

/// More released sessions are not remembered one by one; the claims decide.
const REMEMBER_MANY: usize = 10_000;
const GATES: usize = 64;

impl StaticProvider {
    /// Endpoints reached by `config`, claimed in `claims`.
    pub fn new(config: StaticConfig, claims: Arc<dyn Claims>) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                claims,
                state: Mutex::default(),
                gates: std::array::from_fn(|_| tokio::sync::Mutex::default()),
                changes: Changes::default(),
            }),
        }
    }

    /// What is known of each endpoint of a cluster.
    pub fn health(&self, cluster: &Cluster) -> Vec<(String, Health)> {
        let state = self.shared.state();
        let known = |address: &String| state.health.get(address).cloned().unwrap_or(Health::Unknown);
        endpoints(cluster)
            .iter()
            .map(|e| (e.address.clone(), known(&e.address)))
            .collect()
    }

    /// Asks every endpoint of a cluster whether it lives.
    pub async fn check_health(&self, cluster: &Cluster) -> Vec<(String, Health)> {
        let asked = endpoints(cluster).iter().map(|endpoint| async {
            let health = match self.shared.target(endpoint) {
                Err(cause) => Health::Unhealthy(cause),
                Ok(target) => match probe::is_alive(&target).await {
                    Ok(()) => Health::Healthy,
                    Err(probe::NotReady::Yet(cause) | probe::NotReady::Ever(cause)) => {
                        Health::Unhealthy(cause)
                    }
                },
            };
            self.shared
                .state()
                .health
                .insert(endpoint.address.clone(), health);
        });
        futures::future::join_all(asked).await;
        self.health(cluster)
    }
}

#[async_trait]
impl ComputeProvider for StaticProvider {
    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        must_be_static(spec)?;
        let _gate = self.shared.gate(&spec.key).await;
        {
            let mut state = self.shared.state();
            if state.release_of(spec).is_some() {
                return Ok(());
            }
            if let Some(used) = state.uses.get_mut(&spec.key) {
                let again = match used.stage {
                    Stage::Failed { permanent, .. } => !permanent || used.generation < spec.generation,
                    Stage::Starting { .. } | Stage::Ready { .. } => false,
                };
                used.generation = used.generation.max(spec.generation);
                if !again {
                    return Ok(());
                }
            }
        }
        if let Some(cause) = unfit(spec) {
            self.shared.settle(
                spec,
                Stage::Failed {
                    cause,
                    permanent: true,
                },
            );
            return Ok(());
        }
        match self.shared.claim(spec).await? {
            Some(endpoint) => self.shared.begin(spec, endpoint),
            None => {
                let cause = format!(
                    "every endpoint of cluster {} is in use by another session; close one, or use another cluster",
                    spec.cluster.name
                );
                self.shared.settle(
                    spec,
                    Stage::Failed {
                        cause,
                        permanent: true,
                    },
                );
            }
        }
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        must_be_static(spec)?;
        {
            let mut state = self.shared.state();
            match state.release_of(spec) {
                Some(Release { confirmed: true, .. }) => return Ok(Observation::Missing),
                Some(Release { confirmed: false, .. }) => {
                    return Ok(Observation::Starting {
                        detail: "its endpoint is being given back".to_owned(),
                    });
                }
                None => {}
            }
            if let Some(used) = state.uses.get_mut(&spec.key) {
                used.generation = used.generation.max(spec.generation);
                return Ok(match &used.stage {
                    Stage::Starting { detail } => Observation::Starting {
                        detail: detail.clone(),
                    },
                    Stage::Ready { route } => Observation::Ready { route: route.clone() },
                    Stage::Failed { cause, permanent } => Observation::Failed {
                        cause: cause.as_str().into(),
                        permanent: *permanent,
                    },
                });
            }
        }
        let _gate = self.shared.gate(&spec.key).await;
        // Claimed by a manager before this one.
        Ok(match self.shared.claimed(spec).await? {
            Some(endpoint) if self.shared.state().release_of(spec).is_none() => {
                self.shared.begin(spec, endpoint);
                Observation::Starting {
                    detail: "its endpoint is being probed again".to_owned(),
                }
            }
            Some(_) | None => Observation::Missing,
        })
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
            if let Some(used) = state.uses.remove(&spec.key) {
                used.stop.cancel();
            }
        }
        self.shared.unclaim_all(spec).await?;
        if let Some(release) = self.shared.state().released.get_mut(&spec.key) {
            release.confirmed = true;
        }
        self.shared.changes.tell(&spec.key, spec.generation);
        Ok(())
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.shared.changes.watch()
    }
}

fn must_be_static(spec: &ComputeSpec) -> Result<(), Error> {
    match spec.cluster.provider {
        Provider::Static { .. } => Ok(()),
        Provider::Process { .. } => Err(Error::WrongProvider(spec.cluster.name.to_string())),
    }
}

fn endpoints(cluster: &Cluster) -> &[StaticEndpoint] {
    match &cluster.provider {
        Provider::Static { endpoints } => endpoints,
        Provider::Process { .. } => &[],
    }
}

/// One server is one claim, whichever cluster names it.
fn claim_name(endpoint: &StaticEndpoint) -> String {
    format!("endpoint/{}", endpoint.address.to_ascii_lowercase())
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn gate(&self, key: &SessionKey) -> tokio::sync::MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.gates[usize::try_from(hash % GATES as u64).unwrap_or(0)]
            .lock()
            .await
    }

    async fn claimed<'a>(&self, spec: &'a ComputeSpec) -> Result<Option<&'a StaticEndpoint>, Error> {
        for endpoint in endpoints(&spec.cluster) {
            if self.claims.claimed_by(&claim_name(endpoint)).await?.as_ref() == Some(&spec.key) {
                return Ok(Some(endpoint));
            }
        }
        Ok(None)
    }

    /// The endpoint this session has, or the first that it gets. All replicas
    /// try in the same order, healthy ones first.
    async fn claim<'a>(&self, spec: &'a ComputeSpec) -> Result<Option<&'a StaticEndpoint>, Error> {
        if let Some(endpoint) = self.claimed(spec).await? {
            return Ok(Some(endpoint));
        }
        let mut order: Vec<&StaticEndpoint> = endpoints(&spec.cluster).iter().collect();
        {
            let state = self.state();
            order.sort_by_key(|e| matches!(state.health.get(&e.address), Some(Health::Unhealthy(_))));
        }
        for endpoint in order {
            if self.claims.claim(&claim_name(endpoint), &spec.key).await? == spec.key {
                return Ok(Some(endpoint));
            }
        }
        Ok(None)
    }

    async fn unclaim_all(&self, spec: &ComputeSpec) -> Result<(), Error> {
        for endpoint in endpoints(&spec.cluster) {
            let name = claim_name(endpoint);
            if self.claims.claimed_by(&name).await?.as_ref() == Some(&spec.key) {
                self.claims.unclaim(&name, &spec.key).await?;
            }
        }
        Ok(())
    }

    fn target(&self, endpoint: &StaticEndpoint) -> Result<Target, String> {
        let tls = match &endpoint.tls_server_name {
            None => None,
            Some(name) => {
                let server = ServerName::try_from(name.clone())
                    .map_err(|_| format!("{name} is not a TLS server name"))?;
                let config = match &self.config.tls {
                    Some(config) => config.clone(),
                    None => system_tls().map_err(|e| format!("TLS cannot be used: {e}"))?,
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

    /// Writes down an outcome that needed no probe.
    fn settle(&self, spec: &ComputeSpec, stage: Stage) {
        {
            let mut state = self.state();
            state.runs += 1;
            let run = state.runs;
            let used = Use {
                run,
                generation: spec.generation,
                stage,
                stop: CancellationToken::new(),
            };
            state.uses.insert(spec.key.clone(), used);
        }
        self.changes.tell(&spec.key, spec.generation);
    }

    /// Starts probing, unless somebody did.
    fn begin(self: &Arc<Self>, spec: &ComputeSpec, endpoint: &StaticEndpoint) {
        let target = match self.target(endpoint) {
            Ok(target) => target,
            Err(cause) => {
                return self.settle(
                    spec,
                    Stage::Failed {
                        cause,
                        permanent: true,
                    },
                );
            }
        };
        let stop = CancellationToken::new();
        let run = {
            let mut state = self.state();
            match state.uses.get(&spec.key).map(|used| &used.stage) {
                Some(Stage::Starting { .. } | Stage::Ready { .. }) => return,
                Some(Stage::Failed { .. }) | None => {}
            }
            state.runs += 1;
            let run = state.runs;
            let stage = Stage::Starting {
                detail: "its endpoint is being probed".to_owned(),
            };
            let used = Use {
                run,
                generation: spec.generation,
                stage,
                stop: stop.clone(),
            };
            state.uses.insert(spec.key.clone(), used);
            run
        };
        let (shared, spec, endpoint) = (self.clone(), spec.clone(), endpoint.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = shared.probe(&spec, &endpoint, &target, run) => {}
            }
        });
    }

    async fn probe(&self, spec: &ComputeSpec, endpoint: &StaticEndpoint, target: &Target, run: u64) {
        let question = Question {
            user_id: spec.key.id.to_string(),
            catalog: spec.catalog.as_ref().map(|catalog| CatalogQuestion {
                name: catalog.name.to_string(),
                database: catalog.default_database.clone(),
                select: true,
            }),
        };
        let asked = probe::until_ready(target, &question, |why| {
            let mut state = self.state();
            state
                .health
                .insert(endpoint.address.clone(), Health::Unhealthy(why.clone()));
            state.write(spec, run, Stage::Starting { detail: why });
        });
        let (stage, health) = match asked.await {
            Ok(engine_version) => {
                let route = Route {
                    endpoint: endpoint.address.clone(),
                    tls_server_name: endpoint.tls_server_name.clone(),
                    credential: target.credential.clone(),
                    engine: spec.cluster.engine,
                    engine_version,
                    dedicated: false,
                };
                (Stage::Ready { route }, Health::Healthy)
            }
            Err(cause) => (
                Stage::Failed {
                    cause: cause.as_str().into(),
                    permanent: true,
                },
                Health::Unhealthy(cause),
            ),
        };
        {
            let mut state = self.state();
            state.health.insert(endpoint.address.clone(), health);
            state.write(spec, run, stage);
        }
        self.changes.tell(&spec.key, spec.generation);
    }
}

impl State {
    fn release_of(&self, spec: &ComputeSpec) -> Option<Release> {
        self.released
            .get(&spec.key)
            .copied()
            .filter(|release| spec.generation <= release.up_to)
    }

    fn write(&mut self, spec: &ComputeSpec, run: u64, stage: Stage) {
        if let Some(used) = self.uses.get_mut(&spec.key).filter(|used| used.run == run) {
            used.stage = stage;
        }
    }
}
