//! Definitions for this crate's unit tests.

use crate::ComputeSpec;
use crate::resolver::Resolve;
use futures::future::BoxFuture;
use session_core::catalog::PropertyValue;
use session_core::cluster::StaticEndpoint;
use session_core::policy::PolicyRange;
use session_core::{
    Catalog, Cluster, ClusterStatus, Engine, KubernetesPods, KubernetesWorkers, Provider, SessionId,
    SessionKey, Timestamp,
};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A resolver with the names of a test. Clones share the names.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestResolver {
    known: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
    count: Arc<AtomicUsize>,
}

impl TestResolver {
    pub(crate) fn set(&self, host: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        self.known.lock().unwrap().insert(host.to_owned(), addresses);
    }

    /// Number of resolutions.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Resolve for TestResolver {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let known = self.known.lock().unwrap();
        let found = known.get(host).into_iter().flatten();
        let found = found.map(|ip| SocketAddr::new(*ip, port)).collect();
        Box::pin(async move { Ok(found) })
    }
}

fn cluster(engine: Engine, provider: Provider) -> Cluster {
    Cluster {
        name: "main".parse().unwrap(),
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

pub(crate) fn process_cluster(engine: Engine, program: &str, properties: &[(&str, &str)]) -> Cluster {
    cluster(
        engine,
        Provider::Process {
            program: program.to_owned(),
            java_home: None,
            properties: properties
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            python: None,
            driver_memory: None,
        },
    )
}

pub(crate) fn kubernetes_cluster(engine: Engine) -> Cluster {
    cluster(
        engine,
        Provider::Kubernetes(Box::new(KubernetesPods {
            namespace: "sessions".to_owned(),
            image: "registry.example/engine:1".to_owned(),
            cpu: "1".to_owned(),
            memory: "2Gi".to_owned(),
            ..KubernetesPods::default()
        })),
    )
}

/// A cluster of a driver and workers.
pub(crate) fn distributed_cluster(engine: Engine) -> Cluster {
    let mut cluster = kubernetes_cluster(engine);
    if let Provider::Kubernetes(pods) = &mut cluster.provider {
        pods.service_account = Some("driver".to_owned());
        pods.workers = Some(KubernetesWorkers {
            min: 1,
            max: 4,
            cpu: "1500m".to_owned(),
            memory: "2Gi".to_owned(),
            idle_seconds: Some(30),
            service_account: None,
        });
    }
    cluster
}

pub(crate) fn static_cluster(engine: Engine, addresses: &[&str]) -> Cluster {
    let endpoint = |address: &&str| StaticEndpoint {
        address: (*address).to_owned(),
        tls_server_name: None,
        token_env: None,
    };
    let provider = Provider::Static {
        endpoints: addresses.iter().map(endpoint).collect(),
        allow_shared_untrusted: false,
    };
    Cluster {
        granted_orgs: ["acme".parse().unwrap()].into(),
        ..cluster(engine, provider)
    }
}

pub(crate) fn catalog(engine: Engine, name: &str, properties: &[(&str, PropertyValue)]) -> Catalog {
    Catalog {
        name: name.parse().unwrap(),
        org: "acme".parse().unwrap(),
        default_database: None,
        engine,
        properties: properties
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect(),
        allowed_teams: Default::default(),
        managed_by_config: false,
        version: 0,
    }
}

pub(crate) fn key(n: u64) -> SessionKey {
    SessionKey {
        org: "acme".parse().unwrap(),
        id: SessionId::generate(Timestamp::from_millis(1_700_000_000_000), n),
    }
}

pub(crate) fn spec(cluster: Cluster, n: u64) -> ComputeSpec {
    ComputeSpec {
        key: key(n),
        generation: 1,
        cluster,
        catalog: None,
    }
}
