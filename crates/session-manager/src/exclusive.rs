//! One manager at a time runs the child processes of an installation.
//!
//! Children live and die with their manager, so a second manager would see
//! every session's compute as missing and make its own. A lease in the store
//! says whose turn it is: without it the provider neither makes, nor sees, nor
//! gives back anything, and the sessions wait for the manager that has it. A
//! manager that starts again in the same folder has the same name, and goes on
//! at once; another one waits until the lease runs out.

use async_trait::async_trait;
use compute::{ComputeChanged, ComputeProvider, ComputeSpec, Error, Found};
use futures::stream::BoxStream;
use session_core::machine::Observation;
use session_store::SessionStore;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const NAME: &str = "process-engines";
const TERM: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(4);

/// A provider that works only while this manager has the lease.
#[derive(Debug)]
pub(crate) struct Exclusive<P> {
    inner: P,
    turn: Arc<Turn>,
}

#[derive(Debug)]
struct Turn {
    store: Arc<dyn SessionStore>,
    owner: String,
    /// Until when the lease is ours by this machine's own clock.
    until: Mutex<Option<Instant>>,
    told: AtomicBool,
}

impl<P: ComputeProvider> Exclusive<P> {
    /// Takes the lease if it is free, and keeps it until `stop`.
    pub(crate) async fn new(
        inner: P,
        store: Arc<dyn SessionStore>,
        state_dir: &Path,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let folder = std::fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let owner = format!("{}:{}", host.trim(), folder.display());
        let turn = Arc::new(Turn {
            store,
            owner,
            until: Mutex::default(),
            told: AtomicBool::new(false),
        });
        turn.renew().await;
        tokio::spawn(Arc::clone(&turn).keep(stop));
        Arc::new(Self { inner, turn })
    }

    fn mine(&self) -> Result<&P, Error> {
        if self.turn.is_ours() {
            Ok(&self.inner)
        } else {
            Err(Error::NotLeader(
                "another session-manager runs the child processes".to_owned(),
            ))
        }
    }
}

impl Turn {
    fn is_ours(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    async fn renew(&self) {
        // Counted from before the question, so that ours ends before the store's.
        let until = Instant::now() + TERM;
        match self.store.lease(NAME, &self.owner, TERM).await {
            Ok(true) => {
                *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
                self.told.store(false, Ordering::Relaxed);
            }
            Ok(false) => {
                *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "another session-manager runs the child processes; this one takes over when it ends"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "the lease of the child processes cannot be renewed"),
        }
    }

    async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(RENEW) => self.renew().await,
            }
        }
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(error) = self.store.lease(NAME, &self.owner, Duration::ZERO).await {
            tracing::info!(%error, "the lease of the child processes ends by itself");
        }
    }
}

#[async_trait]
impl<P: ComputeProvider> ComputeProvider for Exclusive<P> {
    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        self.mine()?.ensure(spec).await
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        self.mine()?.observe(spec).await
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        self.mine()?.release(spec).await
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        self.mine()?.inventory().await
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.inner.watch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compute::SimCompute;
    use session_core::time::ManualClock;
    use session_core::{Cluster, Engine, Provider, SessionId, SessionKey, Timestamp};
    use session_store::memory::MemoryStore;

    fn spec() -> ComputeSpec {
        ComputeSpec {
            key: SessionKey {
                org: "acme".parse().unwrap(),
                id: SessionId::generate(Timestamp::ZERO, 1),
            },
            generation: 1,
            cluster: Cluster {
                name: "c".parse().unwrap(),
                status: session_core::ClusterStatus::Active,
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

    async fn join(
        store: &Arc<MemoryStore>,
        folder: &str,
        stop: &CancellationToken,
    ) -> Arc<Exclusive<SimCompute>> {
        let store: Arc<dyn SessionStore> = Arc::clone(store) as _;
        Exclusive::new(SimCompute::new(), store, Path::new(folder), stop.clone()).await
    }

    /// Lets time pass on both clocks in small steps.
    async fn pass(clock: &ManualClock, seconds: u64) {
        for _ in 0..seconds {
            clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_manager_at_a_time_and_the_next_after_it() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let (stop_first, stop_second) = (CancellationToken::new(), CancellationToken::new());
        let first = join(&store, "/nowhere/a", &stop_first).await;
        let second = join(&store, "/nowhere/b", &stop_second).await;
        pass(&clock, 60).await;
        assert!(first.observe(&spec()).await.is_ok(), "renewed again and again");
        assert!(second.ensure(&spec()).await.is_err() && second.observe(&spec()).await.is_err());

        stop_first.cancel();
        pass(&clock, RENEW.as_secs() + 1).await;
        assert!(first.observe(&spec()).await.is_err(), "given back");
        assert!(second.observe(&spec()).await.is_ok(), "taken over");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_crash_the_same_folder_goes_on_at_once_and_another_waits() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        // A crash renews nothing: the lease was taken and is nobody's to keep.
        let crashed = format!(
            "{}:/nowhere/a",
            std::fs::read_to_string("/proc/sys/kernel/hostname")
                .unwrap()
                .trim()
        );
        assert!(store.lease(NAME, &crashed, TERM).await.unwrap());
        let stop = CancellationToken::new();
        let other = join(&store, "/nowhere/b", &stop).await;
        assert!(other.observe(&spec()).await.is_err());
        assert!(
            join(&store, "/nowhere/a", &stop)
                .await
                .observe(&spec())
                .await
                .is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_renewed_ends() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let stop = CancellationToken::new();
        let first = join(&store, "/nowhere/a", &stop).await;
        // Its term is over for the store, and another has it.
        clock.advance(TERM + Duration::from_secs(1));
        assert!(store.lease(NAME, "another", TERM * 100).await.unwrap());
        tokio::time::sleep(RENEW + Duration::from_secs(1)).await;
        assert!(first.observe(&spec()).await.is_err());
    }
}
