//! Giving back the Spark sessions that a session has on shared servers.
//!
//! All that is known of them is in the store, so this can be broken off and
//! begun again at any line: first the session's generation is sealed, so that
//! no binding is added, then each Spark session is ended at its server, then
//! its id is given back. A server that cannot be asked is asked again for a
//! while. After that the ids are given up, and kept from everybody for longer
//! than any server keeps what it may still have.

use crate::providers::registry::Providers;
use compute::ComputeSpec;
use parking_lot::{Mutex, MutexGuard};
use session_core::{SessionKey, SparkSessionId, Timestamp};
use session_store::spark_bindings::Binding;
use session_store::{Error, SessionStore};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// So long after its end a session waits for a server that cannot be asked.
const GIVE_UP: Duration = Duration::from_secs(300);
/// So long an id that was given up is nobody's.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// So many sessions' Spark sessions are given back at once.
const AT_ONCE: usize = 16;
/// So many Spark sessions are being bound at once.
const BINDS: usize = 1024;

/// Gives bindings back.
#[derive(Debug)]
pub(crate) struct Bindings {
    store: Arc<dyn SessionStore>,
    computes: Providers,
    /// The sessions whose bindings are being given back here.
    under_way: Mutex<HashSet<SessionKey>>,
    slots: Arc<Semaphore>,
    /// Held by each bind that is under way.
    pub(crate) binds: Arc<Semaphore>,
    /// Who looks at a session when that is over.
    done: mpsc::Sender<SessionKey>,
}

impl Bindings {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        computes: Providers,
        done: mpsc::Sender<SessionKey>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            computes,
            under_way: Mutex::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            binds: Arc::new(Semaphore::new(BINDS)),
            done,
        })
    }

    /// Has the session bindings of this generation, or any before it?
    pub(crate) async fn any_left(&self, key: &SessionKey, up_to: u64) -> Result<bool, Error> {
        let bindings = self.store.list_bindings(key).await?;
        Ok(bindings.iter().any(|binding| binding.generation <= up_to))
    }

    /// Bars the spec's generation from new bindings and begins giving back what
    /// it and those before it have, unless that is under way. True if nothing
    /// is left. `ended` is when the session ended, or its compute was to go.
    pub(crate) async fn release(
        self: &Arc<Self>,
        spec: &ComputeSpec,
        ended: Option<Timestamp>,
    ) -> Result<bool, Error> {
        self.store.seal_bindings(&spec.key, spec.generation).await?;
        if !self.any_left(&spec.key, spec.generation).await? {
            return Ok(true);
        }
        let now = self.store.now().await?;
        let give_up = ended.is_some_and(|ended| now.since(ended) >= GIVE_UP);
        // Whoever finds no slot is brought back by its due entry.
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return Ok(false);
        };
        if !self.under_way().insert(spec.key.clone()) {
            return Ok(false);
        }
        let (this, spec) = (Arc::clone(self), spec.clone());
        tokio::spawn(async move {
            let work = UnderWay {
                bindings: &this,
                key: &spec.key,
            };
            let outcome = this.give_back(&spec, give_up).await;
            drop(work);
            drop(slot);
            match outcome {
                // Too many wait: its due entry does it.
                Ok(true) => drop(this.done.try_send(spec.key)),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(session = %spec.key.id, %error, "its Spark sessions are not given back yet");
                }
            }
        });
        Ok(false)
    }

    /// Ends Spark sessions and gives their ids back; true if all were.
    async fn give_back(&self, spec: &ComputeSpec, give_up: bool) -> Result<bool, Error> {
        let mut by_server: BTreeMap<String, Vec<Binding>> = BTreeMap::new();
        for binding in self.store.list_bindings(&spec.key).await? {
            if binding.generation <= spec.generation {
                let server = binding.spark.server.clone();
                by_server.entry(server).or_default().push(binding);
            }
        }
        let mut all = true;
        for (server, bindings) in by_server {
            let ended = self.end(spec, &server, &bindings).await;
            for binding in bindings {
                let keep = if ended.contains(&binding.spark.id) {
                    Duration::ZERO
                } else if give_up {
                    tracing::warn!(
                        session = %spec.key.id, spark_session = %binding.spark.id, server,
                        "a Spark session could not be ended at its server; its id is kept from everybody for a day"
                    );
                    KEEP
                } else {
                    all = false;
                    continue;
                };
                self.store.unbind(&spec.key, &binding, keep).await?;
            }
        }
        Ok(all)
    }

    /// Ends one Spark session and gives its id back; false if its server could
    /// not be asked.
    pub(crate) async fn give_back_one(&self, spec: &ComputeSpec, binding: &Binding) -> Result<bool, Error> {
        let bindings = std::slice::from_ref(binding);
        let ended = self.end(spec, &binding.spark.server, bindings).await;
        if ended.is_empty() {
            return Ok(false);
        }
        self.store.unbind(&spec.key, binding, Duration::ZERO).await?;
        Ok(true)
    }

    async fn end(&self, spec: &ComputeSpec, server: &str, bindings: &[Binding]) -> Vec<SparkSessionId> {
        let ids: Vec<_> = bindings.iter().map(|binding| binding.spark.id.clone()).collect();
        let ended = match self.computes.shared(&spec.cluster) {
            Ok(shared) => shared.end_spark_sessions(spec, server, &ids).await,
            Err(error) => Err(error),
        };
        ended.unwrap_or_else(|error| {
            tracing::warn!(session = %spec.key.id, server, %error, "a server cannot be asked to end Spark sessions");
            Vec::new()
        })
    }

    fn under_way(&self) -> MutexGuard<'_, HashSet<SessionKey>> {
        self.under_way.lock()
    }
}

/// Work on a session's bindings; its end, even by a panic, lets it begin again.
struct UnderWay<'a> {
    bindings: &'a Bindings,
    key: &'a SessionKey,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.bindings.under_way().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compute::SimCompute;
    use compute::simulation::{Call, Fault};
    use session_core::time::ManualClock;
    use session_core::{Cluster, ClusterStatus, Engine, Provider, SessionId};
    use session_store::memory::MemoryStore;
    use session_store::spark_bindings::{Bind, Bound, SparkSession};

    fn spec(n: u64) -> ComputeSpec {
        ComputeSpec {
            key: SessionKey {
                org: "acme".parse().unwrap(),
                id: SessionId::generate(Timestamp::ZERO, n),
            },
            generation: 1,
            cluster: Cluster {
                name: "c".parse().unwrap(),
                status: ClusterStatus::Active,
                engine: Engine::Sail,
                engine_version: None,
                client_versions: Vec::new(),
                granted_orgs: std::collections::BTreeSet::default(),
                provider: Provider::Static {
                    endpoints: Vec::new(),
                    allow_shared_untrusted: false,
                },
                idle_policy: None,
                wake: Default::default(),
                policy: session_core::policy::PolicyRange::default(),
                managed_by_config: false,
                version: 1,
            },
            catalog: None,
        }
    }

    fn bind(spec: &ComputeSpec) -> Bind {
        Bind {
            spark: SparkSession {
                server: "a:1".to_owned(),
                id: "0b5c2e9e-1f3a-4c6d-8e7f-0123456789ab".parse().unwrap(),
            },
            holder: spec.key.clone(),
            generation: 1,
            ticket: "t".to_owned(),
            prepare: None,
            limit: 1,
        }
    }

    #[tokio::test]
    async fn a_dead_server_is_given_up_after_a_while_and_its_ids_are_nobody_s_for_longer() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let sim = SimCompute::new();
        let (done, mut over) = mpsc::channel(8);
        let computes = Providers::new(sim.servers_only());
        let bindings = Bindings::new(Arc::clone(&store) as _, computes, done);
        let (first, second) = (spec(1), spec(2));
        let stored: &dyn SessionStore = &*store;
        assert_eq!(stored.bind(&bind(&first)).await.unwrap(), Bound::Ready);
        let ended = Some(stored.now().await.unwrap());
        let idle = async || {
            while !bindings.under_way().is_empty() {
                tokio::task::yield_now().await;
            }
        };

        // Asked in vain until its time is over, the last time included.
        for (pass, left) in [(0, true), (GIVE_UP.as_secs() - 1, true), (1, false)] {
            clock.advance(Duration::from_secs(pass));
            sim.inject(Call::EndSparkSessions, Fault::Fails("away".to_owned()));
            assert!(!bindings.release(&first, ended).await.unwrap());
            idle().await;
            assert_eq!(bindings.any_left(&first.key, 1).await.unwrap(), left);
        }
        assert_eq!(over.recv().await.unwrap(), first.key, "somebody looks at once");
        assert!(bindings.release(&first, ended).await.unwrap());
        assert!(sim.ended().is_empty());

        assert_eq!(stored.bind(&bind(&second)).await.unwrap(), Bound::Taken);
        clock.advance(KEEP);
        assert_eq!(stored.bind(&bind(&second)).await.unwrap(), Bound::Ready);
    }

    #[tokio::test]
    async fn what_never_ends_is_never_given_up() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let sim = SimCompute::new();
        let (done, _over) = mpsc::channel(8);
        let computes = Providers::new(sim.servers_only());
        let bindings = Bindings::new(Arc::clone(&store) as _, computes, done);
        let first = spec(1);
        let stored: &dyn SessionStore = &*store;
        assert_eq!(stored.bind(&bind(&first)).await.unwrap(), Bound::Ready);
        clock.advance(GIVE_UP * 10);
        sim.inject(Call::EndSparkSessions, Fault::Fails("away".to_owned()));
        assert!(!bindings.release(&first, None).await.unwrap());
        while !bindings.under_way().is_empty() {
            tokio::task::yield_now().await;
        }
        // Left for the session's own end, and barred from use meanwhile.
        assert!(bindings.any_left(&first.key, 1).await.unwrap());
        assert_eq!(stored.bind(&bind(&first)).await.unwrap(), Bound::Sealed);
    }
}
