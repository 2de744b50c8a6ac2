//! Addresses in routes: those that a server's name resolves to now, and only if all
//! of them are permitted.

use crate::support;
use crate::support::{Manager, on, until};
use async_trait::async_trait;
use compute::address::AddressError;
use compute::connector::Target;
use compute::resolver::Resolve;
use compute::{
    AllowList, Capabilities, CatalogSelection, ComputeChanged, ComputeProvider, ComputeSpec, Error, Found,
    Placements, SharedCompute, SimCompute, StaticConfig, StaticProvider,
};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use session_core::ProviderKind;
use session_core::machine::{Cause, Observation};
use session_core::{Cluster, Route, SessionKey, SparkSessionId};
use session_manager::Providers;
use session_proto::internal as wire;
use session_proto::v1::SessionStatus;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

/// The present addresses of the only name.
#[derive(Debug, Clone, Default)]
struct Name(Arc<Mutex<Vec<IpAddr>>>);

impl Name {
    fn is(&self, addresses: &[&str]) {
        *self.0.lock().unwrap() = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    }
}

impl Resolve for Name {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        assert_eq!(host, "spark.internal");
        let found = self.0.lock().unwrap().clone();
        Box::pin(async move { Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()) })
    }
}

#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl Placements for Nowhere {
    async fn place(&self, _: &[String], _: &SessionKey, _: bool) -> Result<Option<String>, Error> {
        Ok(None)
    }

    async fn remove(&self, _: &str, _: &SessionKey) -> Result<(), Error> {
        Ok(())
    }

    async fn list(&self, _: &SessionKey) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
}

/// Simulated compute at servers whose addresses are checked as in production.
#[derive(Debug)]
struct Servers {
    sim: SimCompute,
    real: StaticProvider,
}

#[async_trait]
impl ComputeProvider for Servers {
    fn capabilities(&self) -> Capabilities {
        self.real.capabilities()
    }

    fn shared(&self) -> Option<&dyn SharedCompute> {
        Some(self)
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        self.sim.ensure(spec).await
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        self.sim.observe(spec).await
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        self.sim.release(spec).await
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        self.sim.inventory().await
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.sim.watch()
    }
}

#[async_trait]
impl SharedCompute for Servers {
    fn servers(&self, cluster: &Cluster) -> Vec<String> {
        self.real.servers(cluster)
    }

    fn target_at(&self, cluster: &Cluster, server: &str) -> Result<Target, Cause> {
        self.sim.target_at(cluster, server)
    }

    async fn addresses(&self, server: &str) -> Result<Arc<[SocketAddr]>, AddressError> {
        self.real.addresses(server).await
    }

    async fn select_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<CatalogSelection, Cause> {
        self.sim.select_catalog(spec, server, id).await
    }

    async fn end_spark_sessions(
        &self,
        spec: &ComputeSpec,
        server: &str,
        ids: &[SparkSessionId],
    ) -> Result<Vec<SparkSessionId>, Error> {
        self.sim.end_spark_sessions(spec, server, ids).await
    }
}

async fn start(name: &Name) -> Manager {
    let allow = AllowList::new(["10.1.0.0/16", "fd12::/16"], [8081], false).unwrap();
    let config = StaticConfig {
        allow: Arc::new(allow.with_resolver(Arc::new(name.clone()))),
        tls: None,
    };
    let sim = SimCompute::new();
    let servers = Servers {
        sim: sim.clone(),
        real: StaticProvider::new(config, Arc::new(Nowhere)),
    };
    let computes = Providers::new(sim.registry().with(ProviderKind::Static, Arc::new(servers)));
    let more = "[[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\"]\n\
                static.endpoints = [{ address = \"Spark.Internal:15002\" }]\n";
    Manager::start_on(computes, sim, more).await
}

async fn until_addresses(manager: &Manager, key: &SessionKey, addresses: &[&str]) {
    until(&format!("the addresses {addresses:?}"), async || {
        manager.route_of(key).await.backend.unwrap().addresses == addresses
    })
    .await;
}

#[tokio::test]
async fn a_route_has_the_present_addresses_of_a_name_or_none() {
    let name = Name::default();
    name.is(&["10.1.0.1"]);
    let manager = start(&name).await;
    let request = on("shared");
    let key = manager.create_as("ada", request).await;
    let route = Route {
        dedicated: false,
        ..support::route("Spark.Internal:15002")
    };
    manager.sim.ready(&key, 1, route);
    manager.until_status(&key, SessionStatus::Active).await;

    until_addresses(&manager, &key, &["10.1.0.1:15002"]).await;
    let first = manager.route_of(&key).await;
    assert_eq!(first.backend.as_ref().unwrap().endpoint, "Spark.Internal:15002");
    // Several addresses of both families; the rest of the route is unchanged.
    name.is(&["10.1.0.2", "fd12::2"]);
    until_addresses(&manager, &key, &["10.1.0.2:15002", "[fd12::2]:15002"]).await;
    let second = manager.route_of(&key).await;
    assert_eq!(
        (second.version, second.generation, second.status),
        (first.version, first.generation, first.status)
    );
    // One address that is not permitted excludes all.
    name.is(&["10.1.0.1", "169.254.169.254"]);
    until_addresses(&manager, &key, &[]).await;
    name.is(&["10.1.0.3"]);
    until_addresses(&manager, &key, &["10.1.0.3:15002"]).await;
}

#[tokio::test]
async fn the_address_of_dedicated_compute_is_returned_unchanged() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    until_addresses(&manager, &key, &["127.0.0.1:1"]).await;
}

/// A loopback address leads to other processes on other hosts.
#[tokio::test]
async fn a_proxy_on_another_host_gets_no_loopback_address() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let here = service_kit::host::id();
    let route = Route {
        host: Some(here.to_owned()),
        ..support::route("127.0.0.1:1")
    };
    manager.sim.ready(&key, 1, route);
    manager.until_status(&key, SessionStatus::Active).await;
    let addresses_at = async |host: &'static str| {
        let mut request = tonic::Request::new(wire::ResolveRouteRequest {
            session_token: manager.token(&key),
            ..Default::default()
        });
        let metadata = request.metadata_mut();
        metadata.insert(service_kit::host::HOST_ID, host.parse().unwrap());
        let answer = manager.routes().resolve_route(request).await.unwrap();
        answer.into_inner().route.unwrap().backend.unwrap().addresses
    };
    assert_eq!(addresses_at(here).await, ["127.0.0.1:1"]);
    assert!(addresses_at("another").await.is_empty());
}
