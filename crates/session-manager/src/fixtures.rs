//! Fixtures of the unit tests and of the simulation.

use compute::ComputeSpec;
use session_core::machine::{self, NewSession};
use session_core::policy::PolicyRequest;
use session_core::{Cluster, Engine, Limits, Session, SessionPolicy, Timestamp};
use session_store::memory::MemoryStore;
use session_store::prelude::*;
use session_store::{Create, Kind};
use test_support::fixtures;
pub(crate) use test_support::fixtures::route;

/// The time of tests without another clock.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// The active Sail cluster `c` with dedicated compute.
pub(crate) fn cluster() -> Cluster {
    fixtures::cluster("c", Engine::Sail, fixtures::processes("/opt/sail", &[]))
}

/// The same with static servers.
pub(crate) fn shared_cluster() -> Cluster {
    fixtures::cluster("c", Engine::Sail, fixtures::static_servers(&[]))
}

/// Defines a cluster, unless it is defined already.
pub(crate) async fn define(store: &MemoryStore, cluster: &Cluster) {
    let name = cluster.name.as_str();
    let defined = store.get_definition(Kind::Cluster, name).await.unwrap();
    if defined.is_none() {
        let json = serde_json::to_string(cluster).unwrap();
        store.put_definition(Kind::Cluster, name, 0, &json).await.unwrap();
    }
}

/// The `n`th session of `ada` of `acme` on this cluster.
pub(crate) fn new_session(n: u64, cluster: &Cluster, now: Timestamp) -> NewSession {
    let policy = SessionPolicy::resolve(cluster, &PolicyRequest::default()).unwrap();
    fixtures::new_session(n, cluster.name.as_str(), policy, now)
}

/// Creates a session in the store; it is due at once.
pub(crate) async fn create(store: &MemoryStore, new: NewSession, now: Timestamp) -> Session {
    let created = machine::create(new, now);
    let create = Create {
        session: created.session,
        record: created.record,
        due: now,
        request: None,
        limits: Limits::default(),
    };
    store.create(create).await.unwrap().session
}

/// The specification of the first generation of the `n`th session of `acme`.
pub(crate) fn spec(n: u64, cluster: Cluster) -> ComputeSpec {
    ComputeSpec {
        key: fixtures::session_key(n),
        generation: 1,
        cluster,
        catalog: None,
    }
}
