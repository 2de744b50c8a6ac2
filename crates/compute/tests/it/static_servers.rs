//! The static provider with a real Sail server.

use crate::support::*;
use async_trait::async_trait;
use compute::{
    AllowList, CatalogSelection, ComputeProvider, ComputeSpec, Error, Placements, SharedCompute,
    StaticConfig, StaticProvider,
};
use futures::StreamExt;
use session_core::machine::Observation;
use session_core::{Cluster, Engine, Provider, SessionKey, SparkSessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use test_support::fixtures;

#[derive(Debug, Default)]
struct MemoryPlacements(Mutex<BTreeMap<String, BTreeSet<SessionKey>>>, AtomicBool);

impl MemoryPlacements {
    fn all(&self) -> Vec<(String, SessionKey)> {
        let places = self.0.lock().unwrap();
        let all = places
            .iter()
            .flat_map(|(server, of)| of.iter().map(|key| (server.clone(), key.clone())));
        all.collect()
    }
}

#[async_trait]
impl Placements for MemoryPlacements {
    async fn place(
        &self,
        servers: &[String],
        key: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error> {
        let mut places = self.0.lock().unwrap();
        let holders = |server: &String| places.get(server).cloned().unwrap_or_default();
        let free = servers
            .iter()
            .filter(|server| !org_alone || holders(server).iter().all(|holder| holder.org == key.org));
        let best = free.min_by_key(|server| holders(server).len()).cloned();
        if let Some(server) = &best {
            places.entry(server.clone()).or_default().insert(key.clone());
        }
        Ok(best)
    }

    async fn remove(&self, server: &str, key: &SessionKey) -> Result<(), Error> {
        if self.1.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("the store is away".to_owned()));
        }
        if let Some(of) = self.0.lock().unwrap().get_mut(server) {
            of.remove(key);
        }
        Ok(())
    }

    async fn list(&self, key: &SessionKey) -> Result<Vec<String>, Error> {
        let held = self.all().into_iter().filter(|(_, holder)| holder == key);
        Ok(held.map(|(server, _)| server).collect())
    }
}

fn at(addresses: &[&str]) -> Cluster {
    Cluster {
        granted_orgs: ["acme".parse().unwrap()].into(),
        ..cluster(Engine::Sail, fixtures::static_servers(addresses))
    }
}

fn session(cluster: &Cluster, n: u64) -> ComputeSpec {
    spec_on(cluster.clone(), n)
}

fn provider_with(places: &Arc<MemoryPlacements>, allow: &[&str], dev: bool) -> StaticProvider {
    let allow = Arc::new(AllowList::new(allow.iter().copied(), [], dev).unwrap());
    StaticProvider::new(StaticConfig { allow, tls: None }, places.clone())
}

/// An existing Sail server.
struct Existing {
    _dir: tempfile::TempDir,
    _children: compute::ProcessProvider,
    address: String,
}

async fn existing() -> Existing {
    let dir = tempfile::tempdir().unwrap();
    let children = provider(dir.path());
    let spec = spec(Engine::Sail, 1000);
    children.ensure(&spec).await.unwrap();
    let address = until_ready(&children, &spec).await.endpoint;
    Existing {
        _dir: dir,
        _children: children,
        address,
    }
}

#[tokio::test]
async fn an_endpoint_serves_many_sessions_of_one_organization() {
    let server = existing().await;
    let places = Arc::new(MemoryPlacements::default());
    let provider = provider_with(&places, &[], true);
    let cluster = at(&[&server.address]);
    let (first, second) = (session(&cluster, 1), session(&cluster, 2));
    let mut changes = provider.watch();
    provider.ensure(&first).await.unwrap();
    provider.ensure(&first).await.unwrap();
    let route = until_ready(&provider, &first).await;
    assert_eq!(changes.next().await.unwrap().key, first.key);
    assert!(!route.dedicated && route.endpoint == server.address && !route.engine_version.is_empty());
    provider.ensure(&second).await.unwrap();
    until_ready(&provider, &second).await;
    assert_eq!(places.all().len(), 2);

    let mut foreign = session(&cluster, 3);
    foreign.key.org = "other".parse().unwrap();
    provider.ensure(&foreign).await.unwrap();
    let (cause, permanent) = until_failed(&provider, &foreign).await;
    assert!(
        permanent && cause.starts_with("every endpoint of cluster local serves another organization"),
        "{cause}"
    );

    // A new generation keeps the placement when the previous one is released.
    let next = ComputeSpec {
        generation: 2,
        ..first.clone()
    };
    provider.ensure(&next).await.unwrap();
    provider.release(&first).await.unwrap();
    until_ready(&provider, &next).await;
    let place = places.list(&first.key).await.unwrap();
    assert_eq!(place, std::slice::from_ref(&server.address));

    provider.release(&next).await.unwrap();
    assert_eq!(provider.observe(&next).await.unwrap(), Observation::Missing);
    assert!(places.list(&first.key).await.unwrap().is_empty());
    provider.ensure(&next).await.unwrap();
    assert_eq!(provider.observe(&next).await.unwrap(), Observation::Missing);
    until_ready(&provider, &second).await;
}

#[tokio::test]
async fn sessions_go_where_the_fewest_are() {
    let places = Arc::new(MemoryPlacements::default());
    let provider = provider_with(&places, &[], true);
    let cluster = at(&["127.0.0.1:9", "127.0.0.1:10"]);
    for n in 1..=4 {
        provider.ensure(&session(&cluster, n)).await.unwrap();
    }
    let mut servers: Vec<_> = places.all().into_iter().map(|(server, _)| server).collect();
    servers.sort();
    servers.dedup_by(|a, b| a == b);
    assert_eq!(servers.len(), 2, "{servers:?}");
}

#[tokio::test]
async fn a_new_manager_reads_the_placement_and_probes_again() {
    let server = existing().await;
    let places = Arc::new(MemoryPlacements::default());
    let cluster = at(&["127.0.0.1:9", &server.address]);
    let spec = session(&cluster, 1);
    let taken = places
        .place(std::slice::from_ref(&server.address), &spec.key, true)
        .await;
    assert!(taken.unwrap().is_some());
    let provider = provider_with(&places, &[], true);
    assert!(matches!(
        provider.observe(&spec).await.unwrap(),
        Observation::Starting { .. }
    ));
    assert_eq!(until_ready(&provider, &spec).await.endpoint, server.address);
    // Released by a manager without state about it.
    provider_with(&places, &[], true).release(&spec).await.unwrap();
    assert!(places.all().is_empty());
}

#[tokio::test]
async fn unhealthy_endpoints_are_taken_last_and_forbidden_ones_never() {
    let server = existing().await;
    let places = Arc::new(MemoryPlacements::default());
    let cluster = at(&["127.0.0.1:9", &server.address]);
    let provider = provider_with(&places, &[], true);
    let unlucky = session(&cluster, 1);
    provider.ensure(&unlucky).await.unwrap();
    let told =
        |o: &Observation| matches!(o, Observation::Starting { cause } if cause.text == "it does not answer");
    until(&provider, &unlucky, told).await;
    provider.release(&unlucky).await.unwrap();
    let spec = session(&cluster, 2);
    provider.ensure(&spec).await.unwrap();
    assert_eq!(until_ready(&provider, &spec).await.endpoint, server.address);

    let strict = provider_with(&Arc::default(), &["0.0.0.0/0"], false);
    strict.ensure(&spec).await.unwrap();
    let (cause, permanent) = until_failed_with(&strict, &spec).await;
    assert!(permanent && cause.detail.contains("127.0.0.1"), "{cause:?}");
    assert_eq!(
        cause.text,
        "the address of its server may not be used: loopback addresses are Berth's own machine"
    );
}

#[tokio::test]
async fn catalogs_are_selected_by_calls_and_checked() {
    let server = existing().await;
    let provider = provider_with(&Arc::default(), &[], true);
    let mut spec = session(&at(&[&server.address]), 1);
    spec.catalog = Some(catalog(Engine::Sail, "nowhere", &[("type", "memory")]));
    provider.ensure(&spec).await.unwrap();
    let (cause, permanent) = until_failed(&provider, &spec).await;
    assert!(
        permanent && cause.contains("catalog nowhere cannot be used"),
        "{cause}"
    );
    provider.release(&spec).await.unwrap();

    let mut spec = session(&spec.cluster, 2);
    let mut present = catalog(Engine::Sail, "sail", &[("type", "memory")]);
    present.default_database = Some("default".into());
    spec.catalog = Some(present);
    provider.ensure(&spec).await.unwrap();
    until_ready(&provider, &spec).await;
}

#[tokio::test]
async fn tls_is_verified_against_the_endpoint_s_name() {
    let server = existing().await;
    let made = rcgen::generate_simple_self_signed(["spark.example.org".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut serving = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    serving.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut asking = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    asking.alpn_protocols = vec![b"h2".to_vec()];

    // Terminates TLS in front of Sail.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(serving));
    let behind = server.address.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else {
                continue;
            };
            let mut plain = tokio::net::TcpStream::connect(&behind).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut tls, &mut plain).await });
        }
    });

    let allow = Arc::new(AllowList::new([], [], true).unwrap());
    let config = StaticConfig {
        allow,
        tls: Some(Arc::new(asking)),
    };
    let provider = StaticProvider::new(config, Arc::<MemoryPlacements>::default());
    let mut cluster = at(&[&address]);
    let mut name = |text: &str| {
        if let Provider::Static { endpoints, .. } = &mut cluster.provider {
            endpoints[0].tls_server_name = Some(text.to_owned());
        }
        cluster.clone()
    };
    let wrong = session(&name("other.example.org"), 1);
    provider.ensure(&wrong).await.unwrap();
    let told =
        |o: &Observation| matches!(o, Observation::Starting { cause } if cause.text.contains("certificate"));
    until(&provider, &wrong, told).await;
    provider.release(&wrong).await.unwrap();

    let right = session(&name("spark.example.org"), 2);
    provider.ensure(&right).await.unwrap();
    let route = until_ready(&provider, &right).await;
    assert_eq!(route.tls_server_name.as_deref(), Some("spark.example.org"));
}

#[tokio::test]
async fn a_missing_backend_token_is_reported() {
    let provider = provider_with(&Arc::default(), &[], true);
    let mut spec = session(&at(&["127.0.0.1:9"]), 1);
    if let Provider::Static { endpoints, .. } = &mut spec.cluster.provider {
        endpoints[0].token_env = Some("BERTH_SECRET_NOT_SET_ANYWHERE".to_owned());
    }
    provider.ensure(&spec).await.unwrap();
    let (cause, permanent) = until_failed(&provider, &spec).await;
    assert!(
        permanent && cause.contains("BERTH_SECRET_NOT_SET_ANYWHERE is not set"),
        "{cause}"
    );
}

#[tokio::test]
async fn a_placement_that_could_not_be_removed_is_removed_later() {
    let places = Arc::new(MemoryPlacements::default());
    let provider = provider_with(&places, &[], true);
    let spec = session(&at(&["127.0.0.1:9"]), 1);
    provider.ensure(&spec).await.unwrap();
    places.1.store(true, Ordering::SeqCst);
    assert!(provider.release(&spec).await.is_err());
    assert!(matches!(
        provider.observe(&spec).await.unwrap(),
        Observation::Starting { .. }
    ));
    places.1.store(false, Ordering::SeqCst);
    provider.release(&spec).await.unwrap();
    assert_eq!(provider.observe(&spec).await.unwrap(), Observation::Missing);
    assert!(places.all().is_empty());
}

#[tokio::test]
async fn a_placement_is_removed_although_the_endpoints_changed() {
    let places = Arc::new(MemoryPlacements::default());
    let provider = provider_with(&places, &[], true);
    let before = session(&at(&["127.0.0.1:9"]), 1);
    provider.ensure(&before).await.unwrap();
    assert_eq!(places.all().len(), 1);
    let after = ComputeSpec {
        cluster: at(&["127.0.0.1:10"]),
        ..before.clone()
    };
    provider.release(&after).await.unwrap();
    assert_eq!(provider.observe(&after).await.unwrap(), Observation::Missing);
    assert!(places.all().is_empty());

    // The next generation moves to an existing endpoint.
    let (first, moved) = (
        session(&at(&["127.0.0.1:11"]), 3),
        session(&at(&["127.0.0.1:12"]), 3),
    );
    provider.ensure(&first).await.unwrap();
    let next = ComputeSpec {
        generation: 2,
        ..moved
    };
    provider.ensure(&next).await.unwrap();
    assert_eq!(places.list(&next.key).await.unwrap(), ["127.0.0.1:12"]);
}

#[tokio::test]
async fn what_another_manager_gave_back_is_let_go() {
    let places = Arc::new(MemoryPlacements::default());
    let (here, there) = (
        provider_with(&places, &[], true),
        provider_with(&places, &[], true),
    );
    let cluster = at(&["127.0.0.1:9"]);
    let (first, second) = (session(&cluster, 1), session(&cluster, 2));
    here.ensure(&first).await.unwrap();
    here.ensure(&second).await.unwrap();
    there.release(&first).await.unwrap();
    until_missing(&here, &first).await;
    assert!(
        matches!(here.observe(&second).await.unwrap(), Observation::Starting { .. }),
        "its neighbour stays"
    );
}

fn spark_id() -> SparkSessionId {
    uuid::Uuid::new_v4().to_string().parse().unwrap()
}

#[tokio::test]
async fn a_catalog_is_selected_and_spark_sessions_end_on_the_server_of_the_session() {
    let server = existing().await;
    let provider = provider_with(&Arc::default(), &[], true);
    let mut spec = session(&at(&[&server.address]), 1);
    spec.catalog = Some(catalog(Engine::Sail, "sail", &[("type", "memory")]));
    let id = spark_id();
    let chosen = provider.select_catalog(&spec, &server.address, &id).await;
    assert_eq!(chosen, Ok(CatalogSelection::Current));
    let ids = std::slice::from_ref(&id);
    let ended = provider.end_spark_sessions(&spec, &server.address, ids).await;
    assert_eq!(ended.unwrap(), ids);
    let chosen = provider.select_catalog(&spec, &server.address, &id).await;
    assert_eq!(chosen, Ok(CatalogSelection::Ended));
}

#[tokio::test]
async fn an_unavailable_or_removed_server_is_reported() {
    let provider = provider_with(&Arc::default(), &[], true);
    let mut spec = session(&at(&["127.0.0.1:9"]), 1);
    spec.catalog = Some(catalog(Engine::Sail, "lake", &[("type", "memory")]));
    let id = spark_id();
    let refused = provider
        .select_catalog(&spec, "127.0.0.1:9", &id)
        .await
        .unwrap_err();
    assert_eq!(refused.text, "it does not answer");
    for server in ["127.0.0.1:9", "127.0.0.1:10"] {
        let ids = std::slice::from_ref(&id);
        assert!(provider.end_spark_sessions(&spec, server, ids).await.is_err());
    }
    let refused = provider
        .select_catalog(&spec, "127.0.0.1:10", &id)
        .await
        .unwrap_err();
    assert_eq!(refused.text, "its server is no longer one of cluster local");
}
