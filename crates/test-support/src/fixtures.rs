//! Definitions and sessions with usual values. A test changes the fields that it is about:
//! `Cluster { granted_orgs, ..fixtures::cluster("c", Engine::Sail, provider) }`.

use session_core::catalog::PropertyValue;
use session_core::cluster::StaticEndpoint;
use session_core::machine::NewSession;
use session_core::policy::PolicyRange;
use session_core::{
    Catalog, Cluster, ClusterStatus, Engine, IdlePolicy, KubernetesPods, Provider, Route, SessionId,
    SessionKey, SessionPolicy, Timestamp, WakePolicy,
};
use std::time::Duration;

/// The organization of all sessions and catalogs here.
pub const ORG: &str = "acme";

/// An active cluster for all organizations, without limits of its own.
///
/// # Panics
/// If the name is not valid.
pub fn cluster(name: &str, engine: Engine, provider: Provider) -> Cluster {
    Cluster {
        name: name.parse().expect("a name of a cluster"),
        status: ClusterStatus::Active,
        engine,
        engine_version: None,
        client_versions: Vec::new(),
        granted_orgs: Default::default(),
        provider,
        idle_policy: None,
        wake: Default::default(),
        policy: PolicyRange::default(),
        managed_by_config: false,
        version: 0,
    }
}

/// Processes of `program` with these engine properties.
pub fn processes(program: &str, properties: &[(&str, &str)]) -> Provider {
    Provider::Process {
        program: program.to_owned(),
        java_home: None,
        properties: properties
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        python: None,
        driver_memory: None,
    }
}

/// Shared servers at these addresses.
pub fn static_servers(addresses: &[&str]) -> Provider {
    let endpoint = |address: &&str| StaticEndpoint {
        address: (*address).to_owned(),
        tls_server_name: None,
        token_env: None,
    };
    Provider::Static {
        endpoints: addresses.iter().map(endpoint).collect(),
        allow_shared_untrusted: false,
    }
}

/// Pods of one image in a namespace.
pub fn pods(namespace: &str) -> Provider {
    Provider::Kubernetes(Box::new(KubernetesPods {
        namespace: namespace.to_owned(),
        image: "registry.example/engine:1".to_owned(),
        cpu: "1".to_owned(),
        memory: "2Gi".to_owned(),
        ..KubernetesPods::default()
    }))
}

/// A catalog of all teams of [`ORG`].
///
/// # Panics
/// If the name is not valid.
pub fn catalog(engine: Engine, name: &str, properties: &[(&str, PropertyValue)]) -> Catalog {
    Catalog {
        name: name.parse().expect("a name of a catalog"),
        org: ORG.parse().expect("an organization"),
        default_database: None,
        engine,
        properties: properties
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect(),
        allowed_teams: Default::default(),
        managed_by_config: false,
        version: 0,
    }
}

/// The key of the `n`th session of [`ORG`]; always the same for the same `n`.
///
/// # Panics
/// Never.
pub fn session_key(n: u64) -> SessionKey {
    SessionKey {
        org: ORG.parse().expect("an organization"),
        id: SessionId::generate(Timestamp::from_millis(1_700_000_000_000), n),
    }
}

/// Idle after 15 min, closed after 1 h idle, at most 100 days; compute of its own.
pub const fn policy() -> SessionPolicy {
    SessionPolicy {
        idle_timeout: Duration::from_secs(15 * 60),
        close_after_idle: Duration::from_secs(3600),
        max_lifetime: Duration::from_secs(100 * 24 * 3600),
        provisioning_deadline: Duration::from_secs(120),
        on_idle: IdlePolicy::Release,
        wake: WakePolicy::Restore,
        dedicated: true,
    }
}

/// The `n`th session of `ada` of [`ORG`] on this cluster.
///
/// # Panics
/// If the cluster's name is not valid.
pub fn new_session(n: u64, cluster: &str, policy: SessionPolicy, at: Timestamp) -> NewSession {
    NewSession {
        id: SessionId::generate(at, n),
        org: ORG.parse().expect("an organization"),
        owner: "sa|ada".parse().expect("a principal"),
        name: None,
        team: None,
        labels: Default::default(),
        cluster: cluster.parse().expect("a name of a cluster"),
        catalog: None,
        profile: None,
        policy,
    }
}

/// The route to ready Sail compute of one session.
pub fn route() -> Route {
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
