//! The leader lease: one manager at a time runs the child processes.
//!
//! Children end with their manager, so a second manager would observe the compute
//! of every session as missing and start its own. Without the lease in the store,
//! the provider neither starts, observes nor releases compute, and the sessions
//! wait for the leader. A manager that restarts in the same folder has the same
//! owner name and continues at once; another one waits until the lease expires.
//! The name contains the boot id of the host and the inode of the folder, so that
//! a copy of a host has another name.
//!
//! Each record that is decided from an observation contains the lease's fencing
//! number. A manager that was suspended while its lease passed to another finds a
//! higher number and decides nothing; when it notices the loss, it ends its
//! children.

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
const LEASE_TERM: Duration = Duration::from_secs(15);
const RENEWAL_INTERVAL: Duration = Duration::from_secs(4);

/// A provider that works only while this manager holds the lease.
#[derive(Debug)]
pub(crate) struct LeasedProvider<P> {
    inner: Arc<P>,
    lease: Arc<LeaderLease>,
    /// Compute that was ensured and not released; it is ended when another manager
    /// gets the lease.
    ensured: Arc<Ensured>,
}

type Ensured = Mutex<HashMap<(SessionKey, u64), ComputeSpec>>;

#[derive(Debug)]
struct LeaderLease {
    store: Arc<dyn SessionStore>,
    owner: String,
    /// The end of the lease by this machine's monotonic clock, and its fencing
    /// number.
    held: Mutex<Option<(Instant, u64)>>,
    /// Whether the loss of the lease was logged.
    warned: AtomicBool,
}

impl<P: ComputeProvider> LeasedProvider<P> {
    /// Acquires the lease if it is free, and renews it until `stop`.
    pub(crate) async fn new(
        inner: P,
        store: Arc<dyn SessionStore>,
        state_dir: &Path,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let owner = owner(state_dir);
        let lease = Arc::new(LeaderLease {
            store,
            owner,
            held: Mutex::default(),
            warned: AtomicBool::new(false),
        });
        let (inner, ensured) = (Arc::new(inner), Arc::new(Ensured::default()));
        lease.renew().await;
        let end_children = {
            let (inner, ensured) = (Arc::clone(&inner), Arc::clone(&ensured));
            async move || end_all(&*inner, &ensured).await
        };
        tokio::spawn(Arc::clone(&lease).keep_renewed(stop, end_children));
        Arc::new(Self {
            inner,
            lease,
            ensured,
        })
    }

    fn ensured(&self) -> MutexGuard<'_, HashMap<(SessionKey, u64), ComputeSpec>> {
        self.ensured.lock()
    }

    /// The provider, if this manager is the leader.
    fn as_leader(&self) -> Result<&P, Error> {
        if self.lease.fence().is_some() {
            Ok(&self.inner)
        } else {
            Err(Error::NotLeader(
                "another session-manager runs the child processes".to_owned(),
            ))
        }
    }
}

/// The owner name of the lease: the same after a restart in this folder, and
/// different everywhere else.
fn owner(state_dir: &Path) -> String {
    let folder = std::fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let inode = std::fs::metadata(&folder).map(|folder| (folder.dev(), folder.ino()));
    let (device, inode) = inode.unwrap_or_default();
    format!("{}:{device}:{inode}:{}", host::id(), folder.display())
}

/// Ends all ensured compute: the leader starts new compute for the sessions.
async fn end_all(provider: &impl ComputeProvider, ensured: &Ensured) {
    let all = std::mem::take(&mut *ensured.lock());
    if !all.is_empty() {
        tracing::warn!(
            children = all.len(),
            "leader lease lost; ending the child processes"
        );
    }
    for spec in all.into_values() {
        if let Err(error) = provider.release(&spec).await {
            tracing::warn!(session = %spec.key.id, %error, "ending a child process failed");
        }
    }
}

impl LeaderLease {
    /// The fencing number while this manager holds the lease.
    fn fence(&self) -> Option<u64> {
        let held = *self.held.lock();
        held.filter(|(until, _)| Instant::now() < *until)
            .map(|(_, fence)| fence)
    }

    fn set(&self, held: Option<(Instant, u64)>) {
        *self.held.lock() = held;
    }

    /// Acquires or renews the lease. False if another manager holds it.
    async fn renew(&self) -> bool {
        // Counted from before the request, so that it ends here before it ends in the store.
        let until = Instant::now() + LEASE_TERM;
        match self.store.acquire_lease(NAME, &self.owner, LEASE_TERM).await {
            Ok(Some(fence)) => {
                self.set(Some((until, fence)));
                self.warned.store(false, Ordering::Relaxed);
            }
            Ok(None) => {
                self.set(None);
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "leader lease held by another session-manager; this one takes over when that one ends"
                    );
                }
                return false;
            }
            Err(error) => tracing::warn!(%error, "renewing the leader lease failed"),
        }
        true
    }

    async fn keep_renewed(self: Arc<Self>, stop: CancellationToken, end_children: impl AsyncFn()) {
        while stop
            .run_until_cancelled(tokio::time::sleep(RENEWAL_INTERVAL))
            .await
            .is_some()
        {
            if !self.renew().await {
                end_children().await;
            }
        }
        self.set(None);
        if let Err(error) = self.store.release_lease(NAME, &self.owner).await {
            tracing::info!(%error, "releasing the leader lease failed; it expires");
        }
    }
}

#[async_trait]
impl<P: ComputeProvider> ComputeProvider for LeasedProvider<P> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn fence(&self) -> u64 {
        self.lease.fence().unwrap_or(0)
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let provider = self.as_leader()?;
        self.ensured()
            .insert((spec.key.clone(), spec.generation), spec.clone());
        provider.ensure(spec).await
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        self.as_leader()?.observe(spec).await
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        let provider = self.as_leader()?;
        self.ensured()
            .retain(|(key, generation), _| *key != spec.key || *generation > spec.generation);
        provider.release(spec).await
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        self.as_leader()?.inventory().await
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.inner.watch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use compute::SimCompute;
    use session_core::Timestamp;
    use session_core::time::ManualClock;
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;

    fn spec() -> ComputeSpec {
        fixtures::spec(1, fixtures::shared_cluster())
    }

    async fn join(
        store: &Arc<MemoryStore>,
        folder: &str,
        stop: &CancellationToken,
    ) -> Arc<LeasedProvider<SimCompute>> {
        let store: Arc<dyn SessionStore> = Arc::clone(store) as _;
        LeasedProvider::new(SimCompute::new(), store, Path::new(folder), stop.clone()).await
    }

    /// Advances both clocks in small steps.
    async fn pass(clock: &ManualClock, seconds: u64) {
        for _ in 0..seconds {
            clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_manager_leads_and_another_takes_over_when_it_ends() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let (stop_first, stop_second) = (CancellationToken::new(), CancellationToken::new());
        let first = join(&store, "/nowhere/a", &stop_first).await;
        let second = join(&store, "/nowhere/b", &stop_second).await;
        pass(&clock, 60).await;
        assert!(first.observe(&spec()).await.is_ok(), "renewed repeatedly");
        assert!(second.ensure(&spec()).await.is_err() && second.observe(&spec()).await.is_err());

        stop_first.cancel();
        pass(&clock, RENEWAL_INTERVAL.as_secs() + 1).await;
        assert!(first.observe(&spec()).await.is_err(), "released");
        assert!(second.observe(&spec()).await.is_ok(), "taken over");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_crash_the_same_folder_continues_at_once_and_another_waits() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        // A crashed manager leaves a lease that nobody renews.
        let crashed = owner(Path::new("/nowhere/a"));
        assert!(
            store
                .acquire_lease(NAME, &crashed, LEASE_TERM)
                .await
                .unwrap()
                .is_some()
        );
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

    /// An expired lease is not yet another manager's.
    #[tokio::test(start_paused = true)]
    async fn children_survive_an_expired_lease_that_no_other_manager_has() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let stop = CancellationToken::new();
        let first = join(&store, "/nowhere/a", &stop).await;
        let fence = first.fence();
        first.ensure(&spec()).await.unwrap();
        clock.advance(LEASE_TERM * 4);
        tokio::time::sleep(RENEWAL_INTERVAL + Duration::from_secs(1)).await;
        assert!(first.fence() > fence, "acquired again");
        assert_eq!(first.inner.live().len(), 1);
    }

    #[test]
    fn copies_of_a_host_have_different_owner_names() {
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
    async fn a_lease_that_another_manager_has_ends_the_children() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let stop = CancellationToken::new();
        let first = join(&store, "/nowhere/a", &stop).await;
        // The lease expires in the store, and another manager acquires it.
        clock.advance(LEASE_TERM + Duration::from_secs(1));
        first.ensure(&spec()).await.unwrap();
        let fence = first.fence();
        let higher = store
            .acquire_lease(NAME, "another", LEASE_TERM * 100)
            .await
            .unwrap();
        assert!(higher > Some(fence) && fence > 0, "{higher:?} {fence}");
        tokio::time::sleep(RENEWAL_INTERVAL + Duration::from_secs(1)).await;
        assert!(first.observe(&spec()).await.is_err());
        assert_eq!(
            (first.fence(), first.inner.live()),
            (0, Vec::new()),
            "the children end"
        );
    }
}
