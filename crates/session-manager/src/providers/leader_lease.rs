//! One manager at a time runs the child processes of an installation.
//!
//! Children live and die with their manager, so a second manager would see
//! every session's compute as missing and make its own. A lease in the store
//! says whose turn it is: without it the provider neither makes, nor sees, nor
//! gives back anything, and the sessions wait for the manager that has it. A
//! manager that starts again in the same folder has the same name, and goes on
//! at once; another one waits until the lease runs out. The name is one of this
//! boot of this host and of the very folder, so that no copy of a host has it.
//!
//! The lease's fencing number goes into each record that is decided from what
//! was observed. A manager that stood still while its lease passed on finds a
//! higher number there and decides nothing; once it knows, it ends its children.

use async_trait::async_trait;
use compute::{Capabilities, ComputeChanged, ComputeProvider, ComputeSpec, Error, Found};
use futures::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use service_kit::host;
use session_core::SessionKey;
use session_core::machine::Observation;
use session_store::SessionStore;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const NAME: &str = "process-engines";
const TERM: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(4);

/// A provider that works only while this manager has the lease.
#[derive(Debug)]
pub(crate) struct LeasedProvider<P> {
    inner: Arc<P>,
    turn: Arc<Turn>,
    /// What was asked for and not released; ended when the lease is another's.
    made: Arc<Made>,
}

type Made = Mutex<HashMap<(SessionKey, u64), ComputeSpec>>;

#[derive(Debug)]
struct Turn {
    store: Arc<dyn SessionStore>,
    owner: String,
    /// Until when the lease is ours by this machine's own clock, and its
    /// fencing number.
    held: Mutex<Option<(Instant, u64)>>,
    told: AtomicBool,
}

impl<P: ComputeProvider> LeasedProvider<P> {
    /// Takes the lease if it is free, and keeps it until `stop`.
    pub(crate) async fn new(
        inner: P,
        store: Arc<dyn SessionStore>,
        state_dir: &Path,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let owner = owner(state_dir);
        let turn = Arc::new(Turn {
            store,
            owner,
            held: Mutex::default(),
            told: AtomicBool::new(false),
        });
        let (inner, made) = (Arc::new(inner), Arc::new(Made::default()));
        turn.renew().await;
        let end_children = {
            let (inner, made) = (Arc::clone(&inner), Arc::clone(&made));
            async move || end_all(&*inner, &made).await
        };
        tokio::spawn(Arc::clone(&turn).keep(stop, end_children));
        Arc::new(Self { inner, turn, made })
    }

    fn made(&self) -> MutexGuard<'_, HashMap<(SessionKey, u64), ComputeSpec>> {
        self.made.lock()
    }

    fn mine(&self) -> Result<&P, Error> {
        if self.turn.fence().is_some() {
            Ok(&self.inner)
        } else {
            Err(Error::NotLeader(
                "another session-manager runs the child processes".to_owned(),
            ))
        }
    }
}

/// The same for a manager that starts again in this folder, and for nobody else.
fn owner(state_dir: &Path) -> String {
    let folder = std::fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let inode = std::fs::metadata(&folder).map(|folder| (folder.dev(), folder.ino()));
    let (device, inode) = inode.unwrap_or_default();
    format!("{}:{device}:{inode}:{}", host::id(), folder.display())
}

/// Ends what was made: the sessions get new compute of whoever has the lease.
async fn end_all(provider: &impl ComputeProvider, made: &Made) {
    let all = std::mem::take(&mut *made.lock());
    if !all.is_empty() {
        tracing::warn!(
            children = all.len(),
            "the lease of the child processes was lost; ending them"
        );
    }
    for spec in all.into_values() {
        if let Err(error) = provider.release(&spec).await {
            tracing::warn!(session = %spec.key.id, %error, "a child process could not be ended");
        }
    }
}

impl Turn {
    /// The fencing number, while the lease is ours.
    fn fence(&self) -> Option<u64> {
        let held = *self.held.lock();
        held.filter(|(until, _)| Instant::now() < *until)
            .map(|(_, fence)| fence)
    }

    fn set(&self, held: Option<(Instant, u64)>) {
        *self.held.lock() = held;
    }

    /// False if another manager has it.
    async fn renew(&self) -> bool {
        // Counted from before the question, so that ours ends before the store's.
        let until = Instant::now() + TERM;
        match self.store.acquire_lease(NAME, &self.owner, TERM).await {
            Ok(Some(fence)) => {
                self.set(Some((until, fence)));
                self.told.store(false, Ordering::Relaxed);
            }
            Ok(None) => {
                self.set(None);
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "another session-manager runs the child processes; this one takes over when it ends"
                    );
                }
                return false;
            }
            Err(error) => tracing::warn!(%error, "the lease of the child processes cannot be renewed"),
        }
        true
    }

    async fn keep(self: Arc<Self>, stop: CancellationToken, end_children: impl AsyncFn()) {
        while stop
            .run_until_cancelled(tokio::time::sleep(RENEW))
            .await
            .is_some()
        {
            if !self.renew().await {
                end_children().await;
            }
        }
        self.set(None);
        if let Err(error) = self.store.release_lease(NAME, &self.owner).await {
            tracing::info!(%error, "the lease of the child processes ends by itself");
        }
    }
}

#[async_trait]
impl<P: ComputeProvider> ComputeProvider for LeasedProvider<P> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn fence(&self) -> u64 {
        self.turn.fence().unwrap_or(0)
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let provider = self.mine()?;
        self.made()
            .insert((spec.key.clone(), spec.generation), spec.clone());
        provider.ensure(spec).await
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        self.mine()?.observe(spec).await
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let provider = self.mine()?;
        self.made()
            .retain(|(key, generation), _| *key != spec.key || *generation > spec.generation);
        provider.release(spec).await
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
    use session_store::prelude::*;

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
    ) -> Arc<LeasedProvider<SimCompute>> {
        let store: Arc<dyn SessionStore> = Arc::clone(store) as _;
        LeasedProvider::new(SimCompute::new(), store, Path::new(folder), stop.clone()).await
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
        let crashed = owner(Path::new("/nowhere/a"));
        assert!(store.acquire_lease(NAME, &crashed, TERM).await.unwrap().is_some());
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

    /// A store that is away says nothing about who has the lease.
    #[tokio::test(start_paused = true)]
    async fn children_outlive_a_lease_that_nobody_else_has() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let stop = CancellationToken::new();
        let first = join(&store, "/nowhere/a", &stop).await;
        let fence = first.fence();
        first.ensure(&spec()).await.unwrap();
        clock.advance(TERM * 4);
        tokio::time::sleep(RENEW + Duration::from_secs(1)).await;
        assert!(first.fence() > fence, "taken anew");
        assert_eq!(first.inner.live().len(), 1);
    }

    #[test]
    fn copies_of_a_host_have_names_of_their_own() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, other] = folders.each_ref().map(|folder| {
            let path = folder.path().join("state");
            std::fs::create_dir(&path).unwrap();
            owner(&path).replace(&path.display().to_string(), "/state")
        });
        assert_ne!(one, other, "the same path on two volumes");
        assert!(one.starts_with(host::id()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_renewed_ends() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let stop = CancellationToken::new();
        let first = join(&store, "/nowhere/a", &stop).await;
        // Its term is over for the store, and another has it.
        clock.advance(TERM + Duration::from_secs(1));
        first.ensure(&spec()).await.unwrap();
        let fence = first.fence();
        let higher = store.acquire_lease(NAME, "another", TERM * 100).await.unwrap();
        assert!(higher > Some(fence) && fence > 0, "{higher:?} {fence}");
        tokio::time::sleep(RENEW + Duration::from_secs(1)).await;
        assert!(first.observe(&spec()).await.is_err());
        assert_eq!(
            (first.fence(), first.inner.live()),
            (0, Vec::new()),
            "its children end"
        );
    }
}
