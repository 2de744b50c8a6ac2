//! Simulated compute for tests: it becomes ready, fails or vanishes only on command,
//! and records violations of the contract.

use crate::change_feed::Changes;
use crate::{
    Capabilities, CatalogSelection, ComputeChanged, ComputeProvider, ComputeSpec, DefinitionError, Error,
    Found, ProviderRegistry, SharedCompute,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use session_core::machine::{Cause, Observation};
use session_core::{Cluster, ClusterName, ProviderKind, Route, SessionKey, SparkSessionId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A provider that a test steps. Clones share its state.
#[derive(Debug, Clone, Default)]
pub struct SimCompute {
    shared: Arc<Shared>,
    /// Acts as a provider with shared servers.
    as_servers: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changes: Changes,
}

#[derive(Debug, Default)]
struct State {
    computes: BTreeMap<(SessionKey, u64), Compute>,
    released: BTreeMap<SessionKey, u64>,
    ensures: BTreeMap<(SessionKey, u64), usize>,
    made: BTreeMap<(SessionKey, u64), usize>,
    faults: VecDeque<(Call, Fault)>,
    labels: BTreeMap<(SessionKey, u64), (ClusterName, Instant)>,
    install_id: String,
    holds_releases: bool,
    forgets_releases: bool,
    violations: Vec<String>,
    /// The answer to definitions of clusters.
    definition_error: Option<DefinitionError>,
    /// Specs of `ensure` calls, in order.
    specs: Vec<ComputeSpec>,
    /// Spark sessions whose catalog was selected, in order.
    selected: Vec<SparkCall>,
    /// Spark sessions that were ended, in order.
    ended: Vec<SparkCall>,
}

/// The Spark session of a call: session, server, id.
pub type SparkCall = (SessionKey, String, SparkSessionId);

#[derive(Debug)]
enum Compute {
    Created(Observation),
    /// Release started, not finished: only if the test holds releases.
    Releasing,
}

/// A method of the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`ComputeProvider::ensure`].
    Ensure,
    /// [`ComputeProvider::observe`].
    Observe,
    /// [`ComputeProvider::release`].
    Release,
    /// [`ComputeProvider::inventory`].
    Inventory,
    /// [`SharedCompute::select_catalog`].
    SelectCatalog,
    /// [`SharedCompute::end_spark_sessions`].
    EndSparkSessions,
}

/// Fault of one call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It fails without an effect.
    Fails(String),
    /// It fails after its effect.
    FailsAfterwards(String),
    /// It takes this time (tokio time).
    Takes(Duration),
}

impl SimCompute {
    /// A provider without compute.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same compute as a provider with shared servers.
    #[must_use]
    pub fn as_servers(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            as_servers: true,
        }
    }

    /// A registry with this provider for every cluster.
    pub fn registry(&self) -> ProviderRegistry {
        self.servers_only()
            .with(ProviderKind::Process, Arc::new(self.clone()))
            .with(ProviderKind::Kubernetes, Arc::new(self.clone()))
    }

    /// Sets the answer to definitions of clusters; `None` accepts all.
    pub fn answer_definitions(&self, error: Option<DefinitionError>) {
        self.state().definition_error = error;
    }

    /// The cluster as it was in the last `ensure` call for this generation.
    pub fn cluster_of(&self, key: &SessionKey, generation: u64) -> Option<Cluster> {
        let state = self.state();
        let mut specs = state.specs.iter().rev();
        specs
            .find(|spec| spec.key == *key && spec.generation == generation)
            .map(|spec| spec.cluster.clone())
    }

    /// A registry with this provider for clusters of static servers only.
    pub fn servers_only(&self) -> ProviderRegistry {
        ProviderRegistry::default().with(ProviderKind::Static, Arc::new(self.as_servers()))
    }

    /// Injects a fault into the next call of this kind; several apply in order.
    pub fn inject(&self, call: Call, fault: Fault) {
        self.state().faults.push_back((call, fault));
    }

    /// Holds releases until [`Self::vanish`].
    pub fn hold_releases(&self) {
        self.state().holds_releases = true;
    }

    /// Creates compute again after its release, and older generations beside newer
    /// ones: the behaviour of a provider that does not store releases.
    pub fn forget_releases(&self) {
        self.state().forgets_releases = true;
    }

    /// Sets the installation id of all compute.
    pub fn install(&self, install_id: &str) {
        install_id.clone_into(&mut self.state().install_id);
    }

    /// Sets the reason why compute is not ready.
    pub fn waits(&self, key: &SessionKey, generation: u64, detail: &str) {
        self.put(key, generation, Observation::Starting { cause: detail.into() });
    }

    /// Makes compute ready.
    pub fn ready(&self, key: &SessionKey, generation: u64, route: Route) {
        self.put(key, generation, Observation::Ready { route });
    }

    /// Makes compute fail.
    pub fn fail(&self, key: &SessionKey, generation: u64, cause: &str, permanent: bool) {
        self.put(
            key,
            generation,
            Observation::Failed {
                cause: cause.into(),
                permanent,
            },
        );
    }

    /// Makes compute fail permanently, with a detail for owner and admins.
    pub fn fail_with(&self, key: &SessionKey, generation: u64, text: &str, detail: &str) {
        let cause = Cause {
            text: text.to_owned(),
            detail: detail.to_owned(),
        };
        self.put(
            key,
            generation,
            Observation::Failed {
                cause,
                permanent: true,
            },
        );
    }

    /// Removes compute.
    pub fn vanish(&self, key: &SessionKey, generation: u64) {
        self.state().computes.remove(&(key.clone(), generation));
        self.shared.changes.publish(key, generation);
    }

    /// Removes compute without an event.
    pub fn vanish_silently(&self, key: &SessionKey, generation: u64) {
        self.state().computes.remove(&(key.clone(), generation));
    }

    /// Number of `ensure` calls for this generation.
    pub fn ensures(&self, key: &SessionKey, generation: u64) -> usize {
        self.state()
            .ensures
            .get(&(key.clone(), generation))
            .copied()
            .unwrap_or(0)
    }

    /// Number of times that this generation was created.
    pub fn made(&self, key: &SessionKey, generation: u64) -> usize {
        self.state()
            .made
            .get(&(key.clone(), generation))
            .copied()
            .unwrap_or(0)
    }

    /// All existing compute.
    pub fn live(&self) -> Vec<(SessionKey, u64)> {
        self.state().computes.keys().cloned().collect()
    }

    /// The Spark sessions whose catalog was selected, in order.
    pub fn selected_catalogs(&self) -> Vec<SparkCall> {
        self.state().selected.clone()
    }

    /// The Spark sessions that were ended, in order.
    pub fn ended(&self) -> Vec<SparkCall> {
        self.state().ended.clone()
    }

    /// Violations of the contract; a test expects none.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    fn put(&self, key: &SessionKey, generation: u64, observation: Observation) {
        {
            let mut state = self.state();
            match state.computes.get_mut(&(key.clone(), generation)) {
                Some(Compute::Created(now)) => *now = observation,
                Some(Compute::Releasing) => {}
                None => {
                    let violation = format!(
                        "the test stepped {} generation {generation}, which does not exist",
                        key.id
                    );
                    state.violations.push(violation);
                }
            }
        }
        self.shared.changes.publish(key, generation);
    }

    /// Applies the injected fault of a call; returns the error for its end.
    async fn apply_fault(&self, call: Call) -> Result<Option<Error>, Error> {
        let fault = {
            let mut state = self.state();
            let at = state.faults.iter().position(|(of, _)| *of == call);
            at.and_then(|at| state.faults.remove(at))
        };
        match fault {
            None => Ok(None),
            Some((_, Fault::Fails(cause))) => Err(Error::Unavailable(cause)),
            Some((_, Fault::FailsAfterwards(cause))) => Ok(Some(Error::Unavailable(cause))),
            Some((_, Fault::Takes(time))) => {
                tokio::time::sleep(time).await;
                Ok(None)
            }
        }
    }
}

impl State {
    fn ensure(&mut self, spec: &ComputeSpec) {
        let id = (spec.key.clone(), spec.generation);
        *self.ensures.entry(id.clone()).or_default() += 1;
        self.specs.push(spec.clone());
        let forgets = self.forgets_releases;
        let was_released = |up_to: &u64| spec.generation <= *up_to;
        if self.released.get(&spec.key).is_some_and(was_released) && !forgets {
            return;
        }
        let newer = self
            .computes
            .keys()
            .find(|(key, generation)| *key == spec.key && *generation > spec.generation);
        if let Some((_, newer)) = newer.filter(|_| !forgets) {
            let violation = format!(
                "{} generation {} was wanted while {newer} exists",
                spec.key.id, spec.generation
            );
            self.violations.push(violation);
            return;
        }
        match self.computes.get(&id) {
            Some(Compute::Created(Observation::Failed { permanent: false, .. })) | None => {
                *self.made.entry(id.clone()).or_default() += 1;
                // Without a text the manager records nothing; see `waits`.
                let starting = Observation::Starting {
                    cause: Cause::default(),
                };
                let labels = (spec.cluster.name.clone(), Instant::now());
                self.labels.insert(id.clone(), labels);
                self.computes.insert(id, Compute::Created(starting));
            }
            Some(Compute::Created(_) | Compute::Releasing) => {}
        }
    }

    fn inventory(&self) -> Vec<Found> {
        let existing = self.computes.iter().filter(|(_, compute)| match compute {
            Compute::Created(_) => true,
            Compute::Releasing => false,
        });
        existing
            .filter_map(|(id, _)| {
                let (cluster, made) = self.labels.get(id)?;
                Some(Found {
                    key: id.0.clone(),
                    generation: id.1,
                    cluster: cluster.clone(),
                    install_id: self.install_id.clone(),
                    age: made.elapsed(),
                })
            })
            .collect()
    }

    fn release(&mut self, spec: &ComputeSpec) -> Vec<u64> {
        let up_to = self.released.entry(spec.key.clone()).or_default();
        *up_to = (*up_to).max(spec.generation);
        let released: Vec<u64> = self
            .computes
            .keys()
            .filter(|(key, generation)| *key == spec.key && *generation <= spec.generation)
            .map(|(_, generation)| *generation)
            .collect();
        for generation in &released {
            let id = (spec.key.clone(), *generation);
            if self.holds_releases {
                self.computes.insert(id, Compute::Releasing);
            } else {
                self.computes.remove(&id);
            }
        }
        released
    }
}

#[async_trait]
impl ComputeProvider for SimCompute {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            dies_with_manager: !self.as_servers,
            needs_leader: !self.as_servers,
        }
    }

    fn shared(&self) -> Option<&dyn SharedCompute> {
        self.as_servers.then_some(self)
    }

    async fn try_cluster(&self, _: &Cluster) -> Result<(), DefinitionError> {
        self.state().definition_error.clone().map_or(Ok(()), Err)
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let error = self.apply_fault(Call::Ensure).await?;
        self.state().ensure(spec);
        error.map_or(Ok(()), Err)
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        let error = self.apply_fault(Call::Observe).await?;
        let observation = match self.state().computes.get(&(spec.key.clone(), spec.generation)) {
            None => Observation::Missing,
            Some(Compute::Created(observation)) => observation.clone(),
            Some(Compute::Releasing) => Observation::Starting {
                cause: "it is being stopped".into(),
            },
        };
        error.map_or(Ok(observation), Err)
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let error = self.apply_fault(Call::Release).await?;
        let released = self.state().release(spec);
        for generation in released {
            self.shared.changes.publish(&spec.key, generation);
        }
        error.map_or(Ok(()), Err)
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        if self.as_servers {
            return Ok(Vec::new());
        }
        let error = self.apply_fault(Call::Inventory).await?;
        let found = self.state().inventory();
        error.map_or(Ok(found), Err)
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.shared.changes.watch()
    }
}

#[async_trait]
impl SharedCompute for SimCompute {
    fn servers(&self, cluster: &Cluster) -> Vec<String> {
        crate::static_servers::addresses(cluster)
    }

    fn target_at(&self, _: &Cluster, server: &str) -> Result<crate::connector::Target, Cause> {
        Ok(crate::connector::Target {
            address: server.to_owned(),
            tls: None,
            credential: None,
            allow: None,
        })
    }

    async fn select_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<CatalogSelection, Cause> {
        let cause = |error: Error| Cause::from(error.to_string());
        let error = self.apply_fault(Call::SelectCatalog).await.map_err(cause)?;
        let call = (spec.key.clone(), server.to_owned(), id.clone());
        self.state().selected.push(call);
        error.map_or(Ok(CatalogSelection::Current), |error| Err(cause(error)))
    }

    async fn end_spark_sessions(
        &self,
        spec: &ComputeSpec,
        server: &str,
        ids: &[SparkSessionId],
    ) -> Result<Vec<SparkSessionId>, Error> {
        let error = self.apply_fault(Call::EndSparkSessions).await?;
        let calls = ids
            .iter()
            .map(|id| (spec.key.clone(), server.to_owned(), id.clone()));
        self.state().ended.extend(calls);
        error.map_or(Ok(ids.to_vec()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{process_cluster, spec};
    use futures::StreamExt;
    use session_core::Engine;

    fn some_spec() -> ComputeSpec {
        spec(process_cluster(Engine::Sail, "/opt/sail", &[]), 1)
    }

    fn route() -> Route {
        Route {
            endpoint: "127.0.0.1:1".into(),
            tls_server_name: None,
            credential: None,
            engine: Engine::Sail,
            engine_version: "1".into(),
            dedicated: true,
            host: None,
        }
    }

    #[tokio::test]
    async fn it_obeys_the_contract_step_by_step() {
        let sim = SimCompute::new();
        let spec = some_spec();
        let mut changes = sim.watch();
        sim.ensure(&spec).await.unwrap();
        sim.ensure(&spec).await.unwrap();
        assert_eq!((sim.ensures(&spec.key, 1), sim.made(&spec.key, 1)), (2, 1));
        assert!(matches!(
            sim.observe(&spec).await.unwrap(),
            Observation::Starting { .. }
        ));
        sim.ready(&spec.key, 1, route());
        assert_eq!(changes.next().await.unwrap().generation, 1);
        assert_eq!(
            sim.observe(&spec).await.unwrap(),
            Observation::Ready { route: route() }
        );
        sim.release(&spec).await.unwrap();
        sim.ensure(&spec).await.unwrap();
        assert_eq!(sim.observe(&spec).await.unwrap(), Observation::Missing);
        assert!(sim.live().is_empty() && sim.violations().is_empty());
    }

    #[tokio::test]
    async fn faults_are_met_once_and_in_order() {
        let sim = SimCompute::new();
        let spec = some_spec();
        sim.inject(Call::Ensure, Fault::Fails("away".into()));
        sim.inject(Call::Ensure, Fault::FailsAfterwards("lost".into()));
        assert!(sim.ensure(&spec).await.is_err());
        assert_eq!(sim.made(&spec.key, 1), 0);
        assert!(sim.ensure(&spec).await.is_err());
        assert_eq!(sim.made(&spec.key, 1), 1);
        assert!(sim.ensure(&spec).await.is_ok());
    }

    #[tokio::test]
    async fn an_older_generation_beside_a_newer_one_is_a_violation() {
        let sim = SimCompute::new();
        let older = some_spec();
        let newer = ComputeSpec {
            generation: 2,
            ..older.clone()
        };
        sim.ensure(&newer).await.unwrap();
        sim.ensure(&older).await.unwrap();
        assert_eq!(sim.violations().len(), 1);
        assert_eq!(sim.live(), [(newer.key.clone(), 2)]);
    }
}
