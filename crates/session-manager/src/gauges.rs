//! Numbers for the metrics: live sessions by status, and how late the
//! due-queue is.

use crate::definitions::DefinitionStore;
use crate::metrics::Metrics;
use session_core::{Cluster, OrgId, Status};
use session_store::{Error, SessionStore};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the due-queue is asked.
const LAG: Duration = Duration::from_secs(10);
/// Sessions are counted once in so many of those.
const COUNT: u64 = 6;

/// Counts until `stop`.
pub(crate) async fn run(
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut turn: u64 = 0;
    loop {
        let counted = async {
            let now = store.now().await?;
            let oldest = store.oldest_due().await?;
            metrics.due_lag(oldest.map_or(Duration::ZERO, |at| now.since(at)));
            if turn.is_multiple_of(COUNT) {
                metrics.sessions(&count(&*store, &definitions).await?);
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = counted.await {
            tracing::debug!(%error, "sessions cannot be counted");
        }
        turn += 1;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LAG) => {}
        }
    }
}

/// Organizations need not be defined anywhere: those that have live sessions
/// are found by them.
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
    use session_core::machine::{self, Event, NewSession, Transition};
    use session_core::policy::{PolicyRange, PolicyRequest};
    use session_core::time::ManualClock;
    use session_core::{
        Actor, ChangeReason, ClusterStatus, Engine, Limits, Provider, Session, SessionId, SessionPolicy,
        Timestamp,
    };
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;
    use session_store::{Commit, Create, Kind};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    async fn define(store: &MemoryStore, name: &str) -> Cluster {
        let cluster = Cluster {
            name: name.parse().unwrap(),
            status: ClusterStatus::Active,
            engine: Engine::Sail,
            engine_version: None,
            client_versions: Vec::new(),
            granted_orgs: BTreeSet::default(),
            provider: Provider::Process {
                program: "/opt/sail".to_owned(),
                java_home: None,
                properties: BTreeMap::default(),
                python: None,
                driver_memory: None,
            },
            idle_policy: None,
            wake: Default::default(),
            policy: PolicyRange::default(),
            managed_by_config: false,
            version: 0,
        };
        let json = serde_json::to_string(&cluster).unwrap();
        store.put_definition(Kind::Cluster, name, 0, &json).await.unwrap();
        cluster
    }

    async fn create(store: &MemoryStore, n: u64, org: &str, cluster: &Cluster) -> Session {
        let new = NewSession {
            id: SessionId::generate(NOW, n),
            org: org.parse().unwrap(),
            owner: "sa|ada".parse().unwrap(),
            name: None,
            team: None,
            labels: BTreeMap::default(),
            cluster: cluster.name.clone(),
            catalog: None,
            policy: SessionPolicy::resolve(cluster, &PolicyRequest::default()).unwrap(),
        };
        let Transition { session, record, .. } = machine::create(new, NOW);
        let create = Create {
            session,
            record,
            due: NOW,
            request: None,
            limits: Limits::default(),
        };
        store.create(create).await.unwrap().session
    }

    #[tokio::test]
    async fn every_session_is_counted_once_wherever_its_organization_has_more() {
        let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::at(NOW))));
        let (one, two) = (define(&store, "one").await, define(&store, "two").await);
        // `acme` lives on both clusters; `gone` has nothing that lives.
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
