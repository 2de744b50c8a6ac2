//! Release of the Spark sessions that a session has on shared servers.
//!
//! All state is in the store, so a release can stop and resume at any line. It
//! seals the session's generation against new bindings, ends each Spark session
//! at its server, then frees its id. An unreachable server is retried for
//! [`GIVE_UP_AFTER`]. After that the ids stay reserved for longer than any server
//! keeps a Spark session.

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

/// Time after the end of a session during which unreachable servers are retried.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);
/// Time for which an id stays reserved if its Spark session could not be ended.
const ID_RESERVATION: Duration = Duration::from_secs(24 * 3600);
/// Maximum concurrent releases, in sessions.
const MAX_CONCURRENT_RELEASES: usize = 16;
/// Maximum concurrent binds, in Spark sessions.
const MAX_CONCURRENT_BINDS: usize = 1024;

/// Releases Spark session bindings.
#[derive(Debug)]
pub(crate) struct Bindings {
    store: Arc<dyn SessionStore>,
    computes: Providers,
    /// The sessions whose bindings this manager is releasing.
    releasing: Mutex<HashSet<SessionKey>>,
    permits: Arc<Semaphore>,
    /// One permit is held by each bind in progress.
    pub(crate) binds: Arc<Semaphore>,
    /// Receives a session when its release is complete.
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
            releasing: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_RELEASES)),
            binds: Arc::new(Semaphore::new(MAX_CONCURRENT_BINDS)),
            done,
        })
    }

    /// Whether the session has bindings of this generation or an earlier one.
    pub(crate) async fn any_left(&self, key: &SessionKey, up_to: u64) -> Result<bool, Error> {
        let bindings = self.store.list_bindings(key).await?;
        Ok(bindings.iter().any(|binding| binding.generation <= up_to))
    }

    /// Seals the spec's generation against new bindings and starts the release of
    /// its bindings and those of earlier generations, unless it runs already. True
    /// if none is left. `ended` is the time when the session ended or its compute
    /// was to be released.
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
        let give_up = ended.is_some_and(|ended| now.since(ended) >= GIVE_UP_AFTER);
        // Without a permit, the session's due entry repeats this.
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return Ok(false);
        };
        if !self.releasing().insert(spec.key.clone()) {
            return Ok(false);
        }
        let (this, spec) = (Arc::clone(self), spec.clone());
        tokio::spawn(async move {
            let releasing = Releasing {
                bindings: &this,
                key: &spec.key,
            };
            let outcome = this.release_bindings(&spec, give_up).await;
            drop(releasing);
            drop(permit);
            match outcome {
                // If the queue is full, the session's due entry replaces it.
                Ok(true) => drop(this.done.try_send(spec.key)),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(session = %spec.key.id, %error, "releasing Spark sessions failed; it is retried");
                }
            }
        });
        Ok(false)
    }

    /// Ends Spark sessions and frees their ids; true if none is left.
    async fn release_bindings(&self, spec: &ComputeSpec, give_up: bool) -> Result<bool, Error> {
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
                let reservation = if ended.contains(&binding.spark.id) {
                    Duration::ZERO
                } else if give_up {
                    tracing::warn!(
                        session = %spec.key.id, spark_session = %binding.spark.id, server,
                        "ending a Spark session given up; its id stays reserved for a day"
                    );
                    ID_RESERVATION
                } else {
                    all = false;
                    continue;
                };
                self.store.unbind(&spec.key, &binding, reservation).await?;
            }
        }
        Ok(all)
    }

    /// Ends one Spark session and frees its id; false if its server is unreachable.
    pub(crate) async fn release_one(&self, spec: &ComputeSpec, binding: &Binding) -> Result<bool, Error> {
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
            tracing::warn!(session = %spec.key.id, server, %error, "ending Spark sessions at a server failed");
            Vec::new()
        })
    }

    fn releasing(&self) -> MutexGuard<'_, HashSet<SessionKey>> {
        self.releasing.lock()
    }
}

/// A release in progress. Its end, even by a panic, permits the next one.
struct Releasing<'a> {
    bindings: &'a Bindings,
    key: &'a SessionKey,
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        self.bindings.releasing().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use compute::SimCompute;
    use compute::simulation::{Call, Fault};
    use session_core::time::ManualClock;
    use session_store::memory::MemoryStore;
    use session_store::spark_bindings::{Bind, Bound, SparkSession};

    fn spec(n: u64) -> ComputeSpec {
        fixtures::spec(n, fixtures::shared_cluster())
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
    async fn an_unreachable_server_is_given_up_and_its_ids_stay_reserved() {
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
            while !bindings.releasing().is_empty() {
                tokio::task::yield_now().await;
            }
        };

        // Every attempt fails, also the last one.
        for (pass, left) in [(0, true), (GIVE_UP_AFTER.as_secs() - 1, true), (1, false)] {
            clock.advance(Duration::from_secs(pass));
            sim.inject(Call::EndSparkSessions, Fault::Fails("away".to_owned()));
            assert!(!bindings.release(&first, ended).await.unwrap());
            idle().await;
            assert_eq!(bindings.any_left(&first.key, 1).await.unwrap(), left);
        }
        assert_eq!(over.recv().await.unwrap(), first.key, "reconciled at once");
        assert!(bindings.release(&first, ended).await.unwrap());
        assert!(sim.ended().is_empty());

        assert_eq!(stored.bind(&bind(&second)).await.unwrap(), Bound::Taken);
        clock.advance(ID_RESERVATION);
        assert_eq!(stored.bind(&bind(&second)).await.unwrap(), Bound::Ready);
    }

    #[tokio::test]
    async fn a_session_without_an_end_keeps_its_bindings() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let sim = SimCompute::new();
        let (done, _over) = mpsc::channel(8);
        let computes = Providers::new(sim.servers_only());
        let bindings = Bindings::new(Arc::clone(&store) as _, computes, done);
        let first = spec(1);
        let stored: &dyn SessionStore = &*store;
        assert_eq!(stored.bind(&bind(&first)).await.unwrap(), Bound::Ready);
        clock.advance(GIVE_UP_AFTER * 10);
        sim.inject(Call::EndSparkSessions, Fault::Fails("away".to_owned()));
        assert!(!bindings.release(&first, None).await.unwrap());
        while !bindings.releasing().is_empty() {
            tokio::task::yield_now().await;
        }
        // The binding stays until the session's own end, sealed against use.
        assert!(bindings.any_left(&first.key, 1).await.unwrap());
        assert_eq!(stored.bind(&bind(&first)).await.unwrap(), Bound::Sealed);
    }
}
