//! Compute that does what the test says: nothing becomes ready, fails or
//! vanishes by itself, and what must never happen is written down.

use crate::change_feed::Changes;
use crate::{
    Capabilities, Chosen, ComputeChanged, ComputeProvider, ComputeSpec, Error, Found, ProviderRegistry,
    SharedCompute,
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

/// A provider stepped by a test. Clones are the same provider.
#[derive(Debug, Clone, Default)]
pub struct SimCompute {
    shared: Arc<Shared>,
    /// Acts as a provider of servers that sessions share.
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
    keeps_releasing: bool,
    forgets_releases: bool,
    violations: Vec<String>,
    /// Catalogs that were chosen, in order.
    chosen: Vec<SparkCall>,
    /// Spark sessions that were ended, in order.
    ended: Vec<SparkCall>,
}

/// A Spark session that a call was about: whose, where, which.
pub type SparkCall = (SessionKey, String, SparkSessionId);

#[derive(Debug)]
enum Compute {
    Made(Observation),
    /// Asked to go, not gone: only if the test holds releases.
    Going,
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
    /// [`SharedCompute::choose_catalog`].
    Choose,
    /// [`SharedCompute::end_spark_sessions`].
    End,
}

/// What befalls one call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It fails and has done nothing.
    Fails(String),
    /// It fails after it has done its work.
    FailsAfterwards(String),
    /// It takes this long (tokio time).
    Takes(Duration),
}

impl SimCompute {
    /// Nothing exists yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same compute as a provider of servers that sessions share.
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
    }

    /// A registry with this provider for clusters of static servers only.
    pub fn servers_only(&self) -> ProviderRegistry {
        ProviderRegistry::default().with(ProviderKind::Static, Arc::new(self.as_servers()))
    }

    /// The next call of this kind meets `fault`; several are used up in order.
    pub fn inject(&self, call: Call, fault: Fault) {
        self.state().faults.push_back((call, fault));
    }

    /// Makes releases take until [`Self::vanish`].
    pub fn hold_releases(&self) {
        self.state().keeps_releasing = true;
    }

    /// Makes compute anew, and older beside newer, if it is asked for after it
    /// was released: what a provider does that keeps no list of what went.
    pub fn forget_releases(&self) {
        self.state().forgets_releases = true;
    }

    /// From now on compute belongs to this installation.
    pub fn install(&self, install_id: &str) {
        install_id.clone_into(&mut self.state().install_id);
    }

    /// Says what an unready compute is waiting for.
    pub fn waits(&self, key: &SessionKey, generation: u64, detail: &str) {
        self.put(
            key,
            generation,
            Observation::Starting {
                detail: detail.to_owned(),
            },
        );
    }

    /// It answered the probe.
    pub fn ready(&self, key: &SessionKey, generation: u64, route: Route) {
        self.put(key, generation, Observation::Ready { route });
    }

    /// It will not become ready, or has crashed.
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

    /// It failed for good, with a detail for those who may act as the session.
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

    /// It is gone, asked for or not.
    pub fn vanish(&self, key: &SessionKey, generation: u64) {
        self.state().computes.remove(&(key.clone(), generation));
        self.shared.changes.tell(key, generation);
    }

    /// Changes what there is without telling anybody.
    pub fn vanish_silently(&self, key: &SessionKey, generation: u64) {
        self.state().computes.remove(&(key.clone(), generation));
    }

    /// How often this generation was asked for.
    pub fn ensures(&self, key: &SessionKey, generation: u64) -> usize {
        self.state()
            .ensures
            .get(&(key.clone(), generation))
            .copied()
            .unwrap_or(0)
    }

    /// How often this generation was really made.
    pub fn made(&self, key: &SessionKey, generation: u64) -> usize {
        self.state()
            .made
            .get(&(key.clone(), generation))
            .copied()
            .unwrap_or(0)
    }

    /// Every compute there is.
    pub fn live(&self) -> Vec<(SessionKey, u64)> {
        self.state().computes.keys().cloned().collect()
    }

    /// The Spark sessions in which a catalog was chosen, in order.
    pub fn chosen(&self) -> Vec<SparkCall> {
        self.state().chosen.clone()
    }

    /// The Spark sessions that were ended, in order.
    pub fn ended(&self) -> Vec<SparkCall> {
        self.state().ended.clone()
    }

    /// What should never have happened; a test ends by finding it empty.
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
                Some(Compute::Made(now)) => *now = observation,
                Some(Compute::Going) => {}
                None => {
                    let told = format!(
                        "the test stepped {} generation {generation}, which does not exist",
                        key.id
                    );
                    state.violations.push(told);
                }
            }
        }
        self.shared.changes.tell(key, generation);
    }

    /// Meets the fault meant for this call; returns the error to give at its end.
    async fn meet(&self, call: Call) -> Result<Option<Error>, Error> {
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
            let told = format!(
                "{} generation {} was wanted while {newer} exists",
                spec.key.id, spec.generation
            );
            self.violations.push(told);
            return;
        }
        match self.computes.get(&id) {
            Some(Compute::Made(Observation::Failed { permanent: false, .. })) | None => {
                *self.made.entry(id.clone()).or_default() += 1;
                let starting = Observation::Starting {
                    detail: "the test has not decided".to_owned(),
                };
                let labels = (spec.cluster.name.clone(), Instant::now());
                self.labels.insert(id.clone(), labels);
                self.computes.insert(id, Compute::Made(starting));
            }
            Some(Compute::Made(_) | Compute::Going) => {}
        }
    }

    fn inventory(&self) -> Vec<Found> {
        let there = self.computes.iter().filter(|(_, compute)| match compute {
            Compute::Made(_) => true,
            Compute::Going => false,
        });
        there
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
        let concerned: Vec<u64> = self
            .computes
            .keys()
            .filter(|(key, generation)| *key == spec.key && *generation <= spec.generation)
            .map(|(_, generation)| *generation)
            .collect();
        for generation in &concerned {
            let id = (spec.key.clone(), *generation);
            if self.keeps_releasing {
                self.computes.insert(id, Compute::Going);
            } else {
                self.computes.remove(&id);
            }
        }
        concerned
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

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let error = self.meet(Call::Ensure).await?;
        self.state().ensure(spec);
        error.map_or(Ok(()), Err)
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        let error = self.meet(Call::Observe).await?;
        let seen = match self.state().computes.get(&(spec.key.clone(), spec.generation)) {
            None => Observation::Missing,
            Some(Compute::Made(observation)) => observation.clone(),
            Some(Compute::Going) => Observation::Starting {
                detail: "it is being stopped".to_owned(),
            },
        };
        error.map_or(Ok(seen), Err)
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let error = self.meet(Call::Release).await?;
        let concerned = self.state().release(spec);
        for generation in concerned {
            self.shared.changes.tell(&spec.key, generation);
        }
        error.map_or(Ok(()), Err)
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        if self.as_servers {
            return Ok(Vec::new());
        }
        let error = self.meet(Call::Inventory).await?;
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

    async fn choose_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<Chosen, Cause> {
        let told = |error: Error| Cause::from(error.to_string());
        let error = self.meet(Call::Choose).await.map_err(told)?;
        let call = (spec.key.clone(), server.to_owned(), id.clone());
        self.state().chosen.push(call);
        error.map_or(Ok(Chosen::Current), |error| Err(told(error)))
    }

    async fn end_spark_sessions(
        &self,
        spec: &ComputeSpec,
        server: &str,
        ids: &[SparkSessionId],
    ) -> Result<Vec<SparkSessionId>, Error> {
        let error = self.meet(Call::End).await?;
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
