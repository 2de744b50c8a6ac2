//! Compute behind faulty requests of one manager, and its simulated life: it becomes
//! ready in time or late, fails, hangs, and vanishes with or without an event.

use super::coverage::{self, Fault};
use super::store::Run;
use super::world::{World, short};
use async_trait::async_trait;
use compute::connector::Target;
use compute::{
    Capabilities, CatalogSelection, ComputeChanged, ComputeProvider, ComputeSpec, Error, Found, SharedCompute,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use session_core::machine::{Cause, Observation};
use session_core::{Cluster, SessionKey, SparkSessionId};
use std::sync::Arc;
use std::time::Duration;

/// A provider with faults.
#[derive(Debug)]
pub(super) struct FaultyCompute {
    pub(super) run: Run,
    /// Acts as the provider of static servers.
    pub(super) as_servers: bool,
}

fn lost() -> Error {
    Error::Unavailable("lost".to_owned())
}

/// Starts the compute, and simulates its life if it did not exist.
async fn ensure(world: &Arc<World>, spec: &ComputeSpec) -> Result<(), Error> {
    let (key, generation) = (spec.key.clone(), spec.generation);
    let before = world.sim.made(&key, generation);
    world.sim.ensure(spec).await?;
    let made = world.sim.made(&key, generation);
    if made > before {
        world.note("compute", format_args!("{} g{generation} is made", short(&key)));
        tokio::spawn(live(Arc::clone(world), key, generation, made));
    }
    Ok(())
}

async fn live(world: Arc<World>, key: SessionKey, generation: u64, made: usize) {
    let stormy = !world.is_calm();
    let exists =
        || world.sim.live().contains(&(key.clone(), generation)) && world.sim.made(&key, generation) == made;
    let note = |what: &str| world.note("compute", format_args!("{} g{generation} {what}", short(&key)));
    tokio::time::sleep(world.between(50, 4000)).await;
    let mut luck = world.below(if stormy { 20 } else { 60 });
    if world.strikes_session(&key, Fault::ComputeHangs, 0) {
        luck = 0;
    } else if world.strikes_session(&key, Fault::ComputeFails, 0) {
        luck = 2;
    }
    if luck == 0 {
        note("hangs");
        world.meets(&key, Fault::ComputeHangs);
        return;
    }
    if luck == 1 {
        if exists() {
            world.sim.waits(&key, generation, "a node is being added");
        }
        tokio::time::sleep(world.between(1000, 20_000)).await;
    }
    if !exists() {
        return;
    }
    if luck == 2 || luck == 3 {
        note("fails");
        world.meets(&key, Fault::ComputeFails);
        let permanent = luck == 3 && world.one_in(3);
        return world
            .sim
            .fail(&key, generation, "the simulation says so", permanent);
    }
    note("is ready");
    world.sim.ready(&key, generation, crate::fixtures::route());
    if !world.one_in(if stormy { 4 } else { 12 }) {
        return;
    }
    tokio::time::sleep(world.between(1000, 300_000)).await;
    if !exists() {
        return;
    }
    let fault = match world.below(4) {
        0 | 1 => Fault::ComputeVanishesSilently,
        2 => Fault::ComputeCrashes,
        _ => Fault::ComputeVanishes,
    };
    end(&world, &key, generation, fault);
}

/// Ends compute.
pub(super) fn end(world: &World, key: &SessionKey, generation: u64, how: Fault) {
    world.stimulate(key);
    world.meets(key, how);
    let note = |what: &str| world.note("compute", format_args!("{} g{generation} {what}", short(key)));
    match how {
        Fault::ComputeVanishesSilently => {
            note("vanishes silently");
            world.sim.vanish_silently(key, generation);
        }
        Fault::ComputeCrashes => {
            note("crashes");
            world.sim.fail(key, generation, "it crashed", false);
        }
        _ => {
            note("vanishes");
            world.sim.vanish(key, generation);
        }
    }
}

/// A request for compute arrives a second time.
pub(super) async fn arrive_again(world: &Arc<World>, spec: &ComputeSpec) {
    world.meets(&spec.key, Fault::ComputeRequestRepeated);
    drop(ensure(world, spec).await);
    let now = world.elapsed();
    world.state().last_fault = now;
}

impl FaultyCompute {
    /// Loses or delays a request.
    async fn arrive(&self, what: &str, key: Option<&SessionKey>) -> Result<(), Error> {
        self.run.pause().await;
        let world = &self.run.world;
        let strikes = |fault, per_million| match key {
            Some(key) => world.strikes_session(key, fault, per_million),
            None => world.strikes(per_million),
        };
        if strikes(Fault::ComputeRequestLost, 15_000) {
            world.fault(&self.run.name, format_args!("{what} is lost"));
            return Err(lost());
        }
        if strikes(Fault::ComputeRequestSlow, 5_000) {
            let delay = world.between(1000, 15_000);
            world.fault(&self.run.name, format_args!("{what} takes {delay:?}"));
            tokio::time::sleep(delay).await;
        }
        self.run.alive().await;
        Ok(())
    }

    async fn answer(&self, what: &str, key: &SessionKey) -> Result<(), Error> {
        let world = &self.run.world;
        if world.strikes(1_000) {
            self.run.crash(&format!("after {what}"));
        }
        self.run.pause().await;
        if world.strikes_session(key, Fault::ComputeAnswerLost, 15_000) {
            world.fault(&self.run.name, format_args!("the answer to {what} is lost"));
            return Err(lost());
        }
        Ok(())
    }
}

#[async_trait]
impl ComputeProvider for FaultyCompute {
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
        let world = &self.run.world;
        world.check_ensure(&spec.key, spec.generation);
        coverage::repeat_in_focus(world, spec);
        if world.strikes(40_000) {
            // A duplicate of the request arrives later.
            let (world, spec, delay) = (Arc::clone(world), spec.clone(), world.between(10, 20_000));
            world.fault(
                &self.run.name,
                format_args!(
                    "ensure {} g{} comes again {delay:?} later",
                    short(&spec.key),
                    spec.generation
                ),
            );
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                arrive_again(&world, &spec).await;
            });
        }
        self.arrive("ensure", Some(&spec.key)).await?;
        ensure(world, spec).await?;
        if world.strikes(20_000) {
            let delay = world.between(1000, 9000);
            world.fault(
                &self.run.name,
                format_args!("the answer to ensure {} takes {delay:?}", short(&spec.key)),
            );
            tokio::time::sleep(delay).await;
        }
        self.answer("ensure", &spec.key).await?;
        world.ensure_confirmed(&self.run, &spec.key, spec.generation);
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        self.arrive("observe", Some(&spec.key)).await?;
        let seen = self.run.world.sim.observe(spec).await?;
        if seen == Observation::Missing {
            self.run.world.saw_gone(&self.run, &spec.key, spec.generation);
        }
        self.answer("observe", &spec.key).await?;
        Ok(seen)
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let world = &self.run.world;
        world.check_release(&spec.key, spec.generation);
        self.arrive("release", Some(&spec.key)).await?;
        world.check_release(&spec.key, spec.generation);
        world.note(
            &self.run.name,
            format_args!("releases {} up to g{}", short(&spec.key), spec.generation),
        );
        world.sim.release(spec).await?;
        self.answer("release", &spec.key).await
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        if self.as_servers {
            return Ok(Vec::new());
        }
        self.arrive("inventory", None).await?;
        self.run.world.sim.inventory().await
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        let run = self.run.clone();
        let changes = self.run.world.sim.watch().filter_map(move |change| {
            let run = run.clone();
            async move {
                run.pause().await;
                let lost = run
                    .world
                    .strikes_session(&change.key, Fault::ComputeEventLost, 100_000);
                (!lost).then_some(change)
            }
        });
        changes.boxed()
    }
}

#[async_trait]
impl SharedCompute for FaultyCompute {
    fn servers(&self, cluster: &Cluster) -> Vec<String> {
        self.run.world.sim.as_servers().servers(cluster)
    }

    fn target_at(&self, cluster: &Cluster, server: &str) -> Result<Target, Cause> {
        self.run.world.sim.target_at(cluster, server)
    }

    async fn select_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<CatalogSelection, Cause> {
        self.run.world.sim.select_catalog(spec, server, id).await
    }

    async fn end_spark_sessions(
        &self,
        spec: &ComputeSpec,
        server: &str,
        ids: &[SparkSessionId],
    ) -> Result<Vec<SparkSessionId>, Error> {
        self.arrive("end_spark_sessions", Some(&spec.key)).await?;
        self.run.world.sim.end_spark_sessions(spec, server, ids).await
    }
}

/// Waits until compute of this generation is gone, at most `limit`.
pub(super) async fn until_gone(world: &World, key: &SessionKey, generation: u64, limit: Duration) {
    let until = world.elapsed() + limit;
    while world.elapsed() < until {
        if !world.sim.live().contains(&(key.clone(), generation)) {
            return;
        }
        let left = until.saturating_sub(world.elapsed());
        tokio::time::sleep(left.min(Duration::from_secs(2))).await;
    }
}
