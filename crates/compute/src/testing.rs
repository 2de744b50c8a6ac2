//! Definitions for this crate's unit tests.

use crate::ComputeSpec;
use crate::resolver::Resolve;
use futures::future::BoxFuture;
use session_core::{Cluster, Engine, KubernetesWorkers, Provider};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use test_support::fixtures;
pub(crate) use test_support::fixtures::{catalog, session_key as key};

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

pub(crate) fn process_cluster(engine: Engine, program: &str, properties: &[(&str, &str)]) -> Cluster {
    fixtures::cluster("main", engine, fixtures::processes(program, properties))
}

pub(crate) fn kubernetes_cluster(engine: Engine) -> Cluster {
    fixtures::cluster("main", engine, fixtures::pods("sessions"))
}

/// A configuration for pods of no API server.
pub(crate) fn kubernetes_config() -> crate::KubernetesConfig {
    crate::KubernetesConfig {
        namespaces: vec!["sessions".to_owned()],
        anchor: None,
        max_pods: 100,
        max_starting: 10,
        warm_max_age: None,
        install_id: "install".to_owned(),
        pool_secret: session_core::route::Secret::new("secret of this installation".to_owned()),
        is_isolated: false,
    }
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
    Cluster {
        granted_orgs: ["acme".parse().unwrap()].into(),
        ..fixtures::cluster("main", engine, fixtures::static_servers(addresses))
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
