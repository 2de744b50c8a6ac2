//! Gauges that are read from the store: live sessions by status, the lag of the
//! due-queue, and the memory of the store.

use crate::definitions::DefinitionStore;
use crate::metrics::Metrics;
use session_core::{Cluster, OrgId, Status};
use session_store::{Error, SessionStore};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two measurements of the due-queue's lag.
const LAG_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two readings of the memory: as often as the store itself checks it.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// Lag measurements per count of sessions.
const MEASUREMENTS_PER_COUNT: u64 = 6;

/// Updates the gauges until `stop`.
pub(crate) async fn run(
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut measurement: u64 = 0;
    loop {
        let counted = async {
            let now = store.now().await?;
            let oldest = store.oldest_due().await?;
            metrics.due_lag(oldest.map_or(Duration::ZERO, |at| now.since(at)));
            if measurement.is_multiple_of(MEASUREMENTS_PER_COUNT) {
                metrics.sessions(&count(&*store, &definitions).await?);
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = counted.await {
            tracing::debug!(%error, "counting sessions failed");
        }
        measurement += 1;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LAG_INTERVAL) => {}
        }
    }
}

/// Updates the gauges of the store's memory until `stop`.
pub(crate) async fn memory(store: Arc<dyn SessionStore>, metrics: Arc<Metrics>, stop: CancellationToken) {
    loop {
        match store.memory().await {
            Ok(memory) => metrics.store_memory(memory),
            Err(error) => tracing::debug!(%error, "reading the memory of the store failed"),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(MEMORY_INTERVAL) => {}
        }
    }
}

/// Counts live sessions by status. Organizations need not be defined, so they are
/// found by the clusters that their sessions use.
async fn count(
    store: &dyn SessionStore,
    definitions: &DefinitionStore,
) -> Result<BTreeMap<Status, u64>, Error> {
    let mut orgs: BTreeSet<OrgId> = BTreeSet::new();
    for cluster in definitions.all::<Cluster>().await? {
        orgs.extend(store.list_orgs_on_cluster(&cluster.name).await?);
    }
    let mut all = BTreeMap::new();
    for org in orgs {
        for (status, count) in store.count_by_status(&org).await? {
            *all.entry(status).or_default() += count;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, NOW};
    use session_core::machine::{self, Event, NewSession, Transition};
    use session_core::time::ManualClock;
    use session_core::{Actor, ChangeReason, Session};
    use session_store::Commit;
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;

    async fn define(store: &MemoryStore, name: &str) -> Cluster {
        let cluster = Cluster {
            name: name.parse().unwrap(),
            ..fixtures::cluster()
        };
        fixtures::define(store, &cluster).await;
        cluster
    }

    async fn create(store: &MemoryStore, n: u64, org: &str, cluster: &Cluster) -> Session {
        let new = NewSession {
            org: org.parse().unwrap(),
            ..fixtures::new_session(n, cluster, NOW)
        };
        fixtures::create(store, new, NOW).await
    }

    #[tokio::test]
    async fn every_session_is_counted_once_wherever_its_organization_has_more() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let (one, two) = (define(&store, "one").await, define(&store, "two").await);
        // `acme` has sessions on both clusters; `gone` has no live session.
        for (n, org, cluster) in [(1, "acme", &one), (2, "acme", &two), (3, "other", &two)] {
            create(&store, n, org, cluster).await;
        }
        for (n, org) in [(4, "acme"), (5, "gone")] {
            let session = create(&store, n, org, &one).await;
            let close = Event::Close {
                reason: ChangeReason::CloseRequested,
            };
            let change = machine::apply(&session, &close, &Actor::System, NOW).unwrap();
            let Transition { session, record, .. } = change.unwrap();
            let commit = Commit {
                session,
                record,
                due: None,
            };
            store.commit(commit).await.unwrap();
        }
        let definitions = DefinitionStore::new(Arc::clone(&store) as _);
        let counts = count(&*store, &definitions).await.unwrap();
        assert_eq!((counts[&Status::Pending], counts[&Status::Active]), (3, 0));
    }
}
