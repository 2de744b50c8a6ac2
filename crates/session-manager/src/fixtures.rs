//! Fixtures of the unit tests and of the simulation.

use compute::ComputeSpec;
use session_core::machine::{self, NewSession};
use session_core::policy::{PolicyRange, PolicyRequest};
use session_core::{
    Cluster, ClusterStatus, Engine, Limits, Provider, Route, Session, SessionId, SessionPolicy, Timestamp,
};
use session_store::memory::MemoryStore;
use session_store::prelude::*;
use session_store::{Create, Kind};
use std::collections::{BTreeMap, BTreeSet};

/// The time of tests without another clock.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// The active Sail cluster `c` with dedicated compute.
pub(crate) fn cluster() -> Cluster {
    Cluster {
        name: "c".parse().unwrap(),
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
    }
}

/// The same with static servers.
pub(crate) fn shared_cluster() -> Cluster {
    Cluster {
        provider: Provider::Static {
            endpoints: Vec::new(),
            allow_shared_untrusted: false,
        },
        ..cluster()
    }
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
    NewSession {
        id: SessionId::generate(now, n),
        org: "acme".parse().unwrap(),
        owner: "sa|ada".parse().unwrap(),
        name: None,
        team: None,
        labels: BTreeMap::default(),
        cluster: cluster.name.clone(),
        catalog: None,
        profile: None,
        policy: SessionPolicy::resolve(cluster, &PolicyRequest::default()).unwrap(),
    }
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
        key: session_core::SessionKey {
            org: "acme".parse().unwrap(),
            id: SessionId::generate(Timestamp::ZERO, n),
        },
        generation: 1,
        cluster,
        catalog: None,
    }
}

/// The route of ready dedicated compute.
pub(crate) fn route() -> Route {
    Route {
        endpoint: "127.0.0.1:1".to_owned(),
        tls_server_name: None,
        credential: None,
        engine: Engine::Sail,
        engine_version: "1".to_owned(),
        dedicated: true,
        host: None,
    }
}
