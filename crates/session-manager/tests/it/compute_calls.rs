//! Calls of the manager to compute: interrupts, catalog tests, settings.

use crate::support::{Manager, on, route, until};
use compute::{Capabilities, ComputeChanged, ComputeProvider, ComputeSpec, SimCompute};
use futures::stream::BoxStream;
use session_core::ProviderKind;
use session_core::machine::Observation;
use session_core::{Reason, SessionKey};
use session_manager::Providers;
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::spark as sc;
use session_proto::spark::spark_connect_service_server::{SparkConnectService, SparkConnectServiceServer};
use session_proto::v1::{self, SessionStatus};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

const A: &str = "0b5c2e9e-1f3a-4c6d-8e7f-00000000000a";
const B: &str = "0b5c2e9e-1f3a-4c6d-8e7f-00000000000b";

/// A server that records interrupts and settings, and confirms the interrupt of
/// `op-…`.
#[derive(Debug, Clone, Default)]
struct Server {
    got: Arc<Mutex<Vec<sc::InterruptRequest>>>,
    configs: Arc<Mutex<Vec<sc::ConfigRequest>>>,
    /// The server rejects this setting.
    refused: &'static str,
}

type Answers = BoxStream<'static, Result<sc::ExecutePlanResponse, Status>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::internal("not in this test"))
}

#[tonic::async_trait]
impl SparkConnectService for Server {
    type ExecutePlanStream = Answers;
    type ReattachExecuteStream = Answers;

    async fn interrupt(
        &self,
        request: Request<sc::InterruptRequest>,
    ) -> Result<Response<sc::InterruptResponse>, Status> {
        let request = request.into_inner();
        let id = match &request.interrupt {
            Some(sc::interrupt_request::Interrupt::OperationId(id)) => id.clone(),
            _ => format!("all-of-{}", request.session_id),
        };
        self.got.lock().unwrap().push(request);
        Ok(Response::new(sc::InterruptResponse {
            interrupted_ids: vec![id],
            ..Default::default()
        }))
    }

    async fn execute_plan(&self, _: Request<sc::ExecutePlanRequest>) -> Result<Response<Answers>, Status> {
        no()
    }
    async fn analyze_plan(
        &self,
        _: Request<sc::AnalyzePlanRequest>,
    ) -> Result<Response<sc::AnalyzePlanResponse>, Status> {
        no()
    }
    async fn config(
        &self,
        request: Request<sc::ConfigRequest>,
    ) -> Result<Response<sc::ConfigResponse>, Status> {
        let request = request.into_inner();
        if pairs(&request).iter().any(|(name, _)| name == self.refused) {
            return Err(Status::internal("no such setting"));
        }
        self.configs.lock().unwrap().push(request);
        Ok(Response::new(sc::ConfigResponse::default()))
    }
    async fn add_artifacts(
        &self,
        _: Request<tonic::Streaming<sc::AddArtifactsRequest>>,
    ) -> Result<Response<sc::AddArtifactsResponse>, Status> {
        no()
    }
    async fn reattach_execute(
        &self,
        _: Request<sc::ReattachExecuteRequest>,
    ) -> Result<Response<Answers>, Status> {
        no()
    }
    async fn release_execute(
        &self,
        _: Request<sc::ReleaseExecuteRequest>,
    ) -> Result<Response<sc::ReleaseExecuteResponse>, Status> {
        no()
    }
    async fn release_session(
        &self,
        _: Request<sc::ReleaseSessionRequest>,
    ) -> Result<Response<sc::ReleaseSessionResponse>, Status> {
        no()
    }
}

/// What a request sets.
fn pairs(request: &sc::ConfigRequest) -> Vec<(String, String)> {
    use sc::config_request::operation::OpType;
    match request.operation.clone().and_then(|operation| operation.op_type) {
        Some(OpType::Set(set)) => set
            .pairs
            .into_iter()
            .map(|pair| (pair.key, pair.value.unwrap_or_default()))
            .collect(),
        _ => Vec::new(),
    }
}

impl Server {
    async fn start() -> (Self, String) {
        Self::refusing("-").await
    }

    async fn refusing(refused: &'static str) -> (Self, String) {
        let server = Self {
            refused,
            ..Self::default()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let service = SparkConnectServiceServer::new(server.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        (server, address)
    }

    fn got(&self) -> Vec<sc::InterruptRequest> {
        std::mem::take(&mut self.got.lock().unwrap())
    }
}

async fn ready_at(manager: &Manager, key: &SessionKey, address: &str) {
    manager.sim.ready(key, 1, route(address));
    manager.until_status(key, SessionStatus::Active).await;
}

/// A proxy reports that these operations run.
async fn running(manager: &Manager, key: &SessionKey, operations: &[(&str, &str)]) {
    let operations: Vec<_> = operations
        .iter()
        .map(|(spark, id)| wire::OpenOperation {
            spark_session_id: (*spark).to_owned(),
            operation_id: (*id).to_owned(),
            method: "ExecutePlan".to_owned(),
            started_at: None,
            user_id: format!("user-of-{spark}"),
        })
        .collect();
    let report = wire::SessionActivity {
        session_id: key.id.to_string(),
        org: key.org.to_string(),
        generation: 1,
        open_calls: u32::try_from(operations.len()).unwrap(),
        operations,
        ..Default::default()
    };
    let request = wire::ReportActivityRequest {
        proxy_id: format!("proxy-{}", key.id),
        sessions: vec![report],
        sequence: 1,
    };
    manager.routes().report_activity(request).await.unwrap();
}

async fn interrupt(
    manager: &Manager,
    who: &str,
    key: &SessionKey,
    ids: &[&str],
) -> Result<Vec<String>, Status> {
    let request = v1::InterruptOperationsRequest {
        session_id: key.id.to_string(),
        operation_ids: ids.iter().map(ToString::to_string).collect(),
    };
    let answer = manager.sessions(who).interrupt_operations(request).await?;
    Ok(answer.into_inner().interrupted_operation_ids)
}

#[tokio::test]
async fn operations_are_listed_and_interrupted_in_the_session_s_name() {
    let manager = Manager::start().await;
    let (server, address) = Server::start().await;
    let key = manager.create("ada").await;
    ready_at(&manager, &key, &address).await;
    assert_eq!(interrupt(&manager, "ada", &key, &[]).await.unwrap(), [""; 0]);
    assert!(server.got().is_empty(), "nothing runs, nothing is asked");

    running(&manager, &key, &[(A, "op-1"), (A, "op-2"), (B, "op-3")]).await;
    let request = v1::ListOperationsRequest {
        session_id: key.id.to_string(),
    };
    let listed = manager.sessions("ada").list_operations(request).await.unwrap();
    assert_eq!(listed.into_inner().operations.len(), 3);
    assert_eq!(manager.show(&key).await.active_operations, 3);

    let all = interrupt(&manager, "olga", &key, &[]).await.unwrap();
    assert_eq!(all, [format!("all-of-{A}"), format!("all-of-{B}")]);
    let got = server.got();
    assert_eq!(got.len(), 2, "once for each Spark session");
    for request in got {
        let user = request.user_context.unwrap();
        // The user id in the proxy's report, by which Apache Spark finds the session.
        assert_eq!(
            (user.user_id, user.user_name.as_str()),
            (format!("user-of-{}", request.session_id), "sa|olga")
        );
        assert_eq!(
            request.interrupt_type,
            i32::from(sc::interrupt_request::InterruptType::All)
        );
    }
    let one = interrupt(&manager, "ada", &key, &["op-2", "unknown"])
        .await
        .unwrap();
    assert_eq!(one, ["op-2"]);
    let got = server.got();
    assert_eq!((got.len(), got[0].session_id.as_str()), (1, A));
}

#[tokio::test]
async fn interrupts_are_rejected_where_nothing_can_run() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let refused = interrupt(&manager, "ada", &key, &[]).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionWarming));
    // An unreachable server.
    ready_at(&manager, &key, "127.0.0.1:1").await;
    running(&manager, &key, &[(A, "op-1")]).await;
    let refused = interrupt(&manager, "ada", &key, &[]).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::Unavailable, Some(Reason::BackendUnavailable))
    );
    assert!(!refused.message().contains("127.0.0.1"), "{}", refused.message());

    let foreign = interrupt(&manager, "bob", &key, &[]).await.unwrap_err();
    assert_eq!(reason_of(&foreign), Some(Reason::NotAuthorized));
    let foreign = interrupt(&manager, "eve", &key, &[]).await.unwrap_err();
    assert_eq!(reason_of(&foreign), Some(Reason::NotAuthorized));
    for bad in ["", &"x".repeat(129)] {
        let refused = interrupt(&manager, "ada", &key, &[bad]).await.unwrap_err();
        assert!(refused.message().starts_with("operation_ids"), "{refused}");
    }
    manager.close("ada", &key).await;
    let refused = interrupt(&manager, "ada", &key, &[]).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionClosed));
}

/// On a shared server, a report alone does not authorize an interrupt.
#[tokio::test]
async fn only_bound_spark_sessions_are_interrupted_on_shared_servers() {
    let (server, address) = Server::start().await;
    let manager = Manager::start_with(&format!(
        "compute.static.dev = true\ncompute.static.allow = [\"127.0.0.0/8\"]\n\
         [[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\"]\n\
         static.endpoints = [{{ address = \"{address}\" }}]\n"
    ))
    .await;
    let request = on("shared");
    let key = manager.create_as("ada", request).await;
    let shared = session_core::Route {
        dedicated: false,
        ..route(&address)
    };
    manager.sim.ready(&key, 1, shared);
    manager.until_status(&key, SessionStatus::Active).await;
    assert!(manager.bind(&key, A).await.unwrap());
    running(&manager, &key, &[(A, "op-1"), (B, "op-2")]).await;
    assert_eq!(
        interrupt(&manager, "ada", &key, &["op-1", "op-2"]).await.unwrap(),
        ["op-1"]
    );
    assert_eq!(server.got().len(), 1);
}

/// A provider that records its requests.
#[derive(Debug, Clone, Default)]
struct Noting {
    sim: SimCompute,
    known: Arc<Mutex<BTreeSet<(SessionKey, u64)>>>,
    /// Requested compute, each once until it is taken.
    specs: Arc<Mutex<Vec<ComputeSpec>>>,
    /// Whether another manager is the leader.
    elsewhere: Arc<AtomicBool>,
}

impl Noting {
    fn here(&self) -> Result<(), compute::Error> {
        match self.elsewhere.load(Ordering::Relaxed) {
            true => Err(compute::Error::NotLeader("another manager runs it".to_owned())),
            false => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl ComputeProvider for Noting {
    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }
    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
        self.here()?;
        self.sim.ensure(spec).await?;
        let id = (spec.key.clone(), spec.generation);
        if self.known.lock().unwrap().insert(id) {
            self.specs.lock().unwrap().push(spec.clone());
        }
        Ok(())
    }
    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, compute::Error> {
        self.here()?;
        self.sim.observe(spec).await
    }
    async fn release(&self, spec: &ComputeSpec) -> Result<(), compute::Error> {
        self.here()?;
        self.sim.release(spec).await
    }
    async fn inventory(&self) -> Result<Vec<compute::Found>, compute::Error> {
        self.here()?;
        self.sim.inventory().await
    }
    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.sim.watch()
    }
}

impl Noting {
    /// Waits for the next requested compute.
    async fn next(&self) -> ComputeSpec {
        until("compute to be requested", async || {
            !self.specs.lock().unwrap().is_empty()
        })
        .await;
        self.specs.lock().unwrap().remove(0)
    }
}

async fn start() -> (Manager, Noting) {
    let noting = Noting::default();
    let computes = Providers::new(
        noting
            .sim
            .servers_only()
            .with(ProviderKind::Process, Arc::new(noting.clone())),
    );
    let manager = Manager::start_on(computes, noting.sim.clone(), "").await;
    let mut catalogs = manager.catalogs("olga");
    let request = v1::CreateCatalogRequest {
        catalog: Some(lake("memory", 0)),
    };
    catalogs.create_catalog(request).await.unwrap();
    (manager, noting)
}

fn lake(kind: &str, version: u64) -> v1::Catalog {
    let text = v1::PropertyValue {
        value: Some(v1::property_value::Value::Text(kind.to_owned())),
    };
    v1::Catalog {
        name: "lake".to_owned(),
        engine: v1::Engine::Sail.into(),
        properties: [("type".to_owned(), text)].into(),
        version,
        ..Default::default()
    }
}

fn kind_of(spec: &ComputeSpec) -> String {
    format!("{:?}", spec.catalog.as_ref().unwrap().properties["type"])
}

fn test(
    manager: &Manager,
    who: &str,
    cluster: &str,
) -> impl Future<Output = Result<v1::TestCatalogResponse, Status>> + Send + 'static {
    let mut catalogs = manager.catalogs(who);
    let request = v1::TestCatalogRequest {
        name: "lake".to_owned(),
        cluster: cluster.to_owned(),
    };
    async move { Ok(catalogs.test_catalog(request).await?.into_inner()) }
}

#[tokio::test]
async fn a_catalog_test_starts_compute_and_always_releases_it() {
    let (manager, noting) = start().await;
    let trial = tokio::spawn(test(&manager, "olga", "c"));
    let spec = noting.next().await;
    assert_eq!(spec.catalog.as_ref().unwrap().name.as_str(), "lake");
    manager.sim.ready(&spec.key, 1, route("127.0.0.1:1"));
    let good = trial.await.unwrap().unwrap();
    assert_eq!((good.usable, good.message.as_str()), (true, "sail 4.1 answered"));
    until("the compute to be released", async || {
        manager.sim.live().is_empty()
    })
    .await;

    let trial = tokio::spawn(test(&manager, "olga", "c"));
    let spec = noting.next().await;
    manager
        .sim
        .fail_with(&spec.key, 1, "catalog lake cannot be used", "bucket not found");
    let bad = trial.await.unwrap().unwrap();
    assert_eq!(
        (bad.usable, bad.message.as_str()),
        (false, "catalog lake cannot be used: bucket not found")
    );
    until("the compute to be released", async || {
        manager.sim.live().is_empty()
    })
    .await;

    // The caller disconnects: the test still releases its compute.
    let trial = tokio::spawn(test(&manager, "olga", "c"));
    let spec = noting.next().await;
    trial.abort();
    manager.sim.ready(&spec.key, 1, route("127.0.0.1:1"));
    until("the compute to be released", async || {
        manager.sim.live().is_empty()
    })
    .await;
    // A test has no record.
    let all = v1::ListSessionsRequest::default();
    let listed = manager.sessions("olga").list_sessions(all).await.unwrap();
    assert!(listed.into_inner().sessions.is_empty());
}

/// A cluster's provisioning deadline limits a test; here it is 10 s.
#[tokio::test]
async fn a_catalog_test_ends_at_the_deadline_and_two_may_run() {
    let (manager, noting) = start().await;
    let first = tokio::spawn(test(&manager, "olga", "c"));
    let spec = noting.next().await;
    manager.sim.waits(&spec.key, 1, "its turn");
    let second = tokio::spawn(test(&manager, "olga", "c"));
    noting.next().await;
    let refused = test(&manager, "olga", "c").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::ResourceExhausted, Some(Reason::RateLimited))
    );
    let late = first.await.unwrap().unwrap();
    assert_eq!(
        (late.usable, late.message.as_str()),
        (false, "not usable within 10 s: its turn")
    );
    second.await.unwrap().unwrap();
    until("both to be released", async || manager.sim.live().is_empty()).await;
}

/// A manager that is not the leader fails at once and holds no permit.
#[tokio::test]
async fn a_catalog_test_at_another_manager_than_the_leader_ends_at_once() {
    let (manager, noting) = start().await;
    noting.elsewhere.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    for _ in 0..5 {
        let refused = test(&manager, "olga", "c").await.unwrap_err();
        assert_eq!(
            (refused.code(), reason_of(&refused)),
            (Code::Unavailable, Some(Reason::ControlPlaneUnavailable))
        );
        assert!(refused.message().contains("Try again"), "{refused}");
        assert!(refused.get_details_retry_info().is_some());
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    // The lease is lost during a test.
    noting.elsewhere.store(false, Ordering::Relaxed);
    let trial = tokio::spawn(test(&manager, "olga", "c"));
    noting.next().await;
    noting.elsewhere.store(true, Ordering::Relaxed);
    let refused = trial.await.unwrap().unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::ControlPlaneUnavailable));
}

#[tokio::test]
async fn catalog_tests_are_for_org_admins_on_clusters_they_may_use() {
    let (manager, _noting) = start().await;
    for who in ["ada", "pat", "eve"] {
        let refused = test(&manager, who, "c").await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::NotAuthorized), "{who}");
    }
    let refused = test(&manager, "olga", "gone").await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::ClusterNotActive));
    let refused = test(&manager, "olga", "").await.unwrap_err();
    assert!(refused.message().starts_with("cluster"), "{refused}");
    assert!(manager.sim.live().is_empty());
}

/// A change of a catalog applies when compute is started, not before.
#[tokio::test]
async fn catalog_changes_reach_new_and_restarted_compute_only() {
    let (manager, noting) = start().await;
    let with_lake = v1::CreateSessionRequest {
        catalog: "lake".to_owned(),
        ..on("c")
    };
    let key = manager.create_as("ada", with_lake.clone()).await;
    assert!(kind_of(&noting.next().await).contains("memory"));
    ready_at(&manager, &key, "127.0.0.1:1").await;

    let request = v1::UpdateCatalogRequest {
        catalog: Some(lake("rest", 1)),
    };
    let refused = manager.catalogs("olga").update_catalog(request).await;
    assert!(refused.is_ok(), "{refused:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let shown = manager.show(&key).await;
    assert_eq!((shown.status(), shown.generation), (SessionStatus::Active, 1));
    assert!(
        noting.specs.lock().unwrap().is_empty(),
        "running compute is left alone"
    );

    manager.create_as("ada", with_lake).await;
    assert!(kind_of(&noting.next().await).contains("rest"), "a new session");
    manager.sim.vanish(&key, 1);
    let again = noting.next().await;
    assert_eq!((again.key.clone(), again.generation), (key, 2));
    assert!(kind_of(&again).contains("rest"), "new compute of an old session");
}

#[tokio::test]
async fn a_catalog_in_use_is_deleted_only_with_force() {
    let (manager, _noting) = start().await;
    let request = v1::CreateSessionRequest {
        catalog: "lake".to_owned(),
        ..on("c")
    };
    let key = manager.create_as("ada", request).await;
    let delete = |force| {
        let mut catalogs = manager.catalogs("olga");
        let request = v1::DeleteCatalogRequest {
            name: "lake".to_owned(),
            force,
        };
        async move { catalogs.delete_catalog(request).await }
    };
    let refused = delete(false).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::FailedPrecondition, Some(Reason::InUse))
    );
    assert!(refused.message().contains(key.id.as_str()), "{refused}");
    manager.close("ada", &key).await;
    delete(false).await.unwrap();
}

async fn bind(
    manager: &Manager,
    key: &SessionKey,
    generation: u64,
    set: &[(&str, &str)],
) -> Result<wire::BindSparkSessionResponse, Status> {
    let request = wire::BindSparkSessionRequest {
        session_token: manager.token(key),
        spark_session_id: A.to_owned(),
        generation,
        set: set
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Default::default()
    };
    let answer = manager.routes().bind_spark_session(request).await?;
    Ok(answer.into_inner())
}

/// The session gets a second generation of compute, at `address`.
async fn replace(manager: &Manager, key: &SessionKey, address: &str) {
    manager.sim.vanish(key, 1);
    until("the second generation to be requested", async || {
        manager.sim.made(key, 2) > 0
    })
    .await;
    manager.sim.ready(key, 2, route(address));
    manager.until_status(key, SessionStatus::Active).await;
}

#[tokio::test]
async fn settings_are_applied_again_on_replaced_compute() {
    let manager = Manager::start().await;
    let (_first, first_address) = Server::start().await;
    let key = manager.create("ada").await;
    ready_at(&manager, &key, &first_address).await;
    let taken = bind(&manager, &key, 1, &[("spark.a", "1"), ("spark.gone", "2")])
        .await
        .unwrap();
    assert!(taken.bound && !taken.not_kept);
    let long = "x".repeat(9000);
    assert!(
        bind(&manager, &key, 1, &[("spark.b", &long)])
            .await
            .unwrap()
            .not_kept
    );
    assert!(manager.route_of(&key).await.kept_spark_sessions.is_empty());

    let (second, address) = Server::refusing("spark.gone").await;
    replace(&manager, &key, &address).await;
    let route = manager.route_of(&key).await;
    assert_eq!(route.generation, 2);
    assert_eq!(route.kept_spark_sessions, [A]);
    assert!(route.compute_replaced_at.is_some() && !route.signals_replacement);
    // Both managers bind at once; settings that the engine rejects are omitted.
    let other = manager.another().await;
    let (one, two) = tokio::join!(bind(&manager, &key, 2, &[]), bind(&other, &key, 2, &[]));
    let replaced = [one.unwrap().replaced, two.unwrap().replaced];
    assert_eq!(replaced.iter().filter(|replaced| **replaced).count(), 1);
    let configs = std::mem::take(&mut *second.configs.lock().unwrap());
    let set: Vec<_> = configs.iter().flat_map(pairs).collect();
    assert_eq!(set, [("spark.a".to_owned(), "1".to_owned())], "once");
    assert_eq!(configs[0].session_id, A);
    assert_eq!(configs[0].user_context.clone().unwrap().user_id, "sa|ada");
    assert!(manager.route_of(&key).await.kept_spark_sessions.is_empty());
    assert!(
        bind(&manager, &key, 1, &[]).await.is_err(),
        "of the generation before"
    );
}

#[tokio::test]
async fn a_call_fails_if_its_settings_cannot_be_applied() {
    let manager = Manager::start().await;
    let (_first, address) = Server::start().await;
    let key = manager.create("ada").await;
    ready_at(&manager, &key, &address).await;
    bind(&manager, &key, 1, &[("spark.a", "1")]).await.unwrap();
    replace(&manager, &key, "127.0.0.1:1").await;
    let refused = bind(&manager, &key, 2, &[]).await.unwrap_err();
    assert_eq!(
        reason_of(&refused),
        Some(Reason::BackendUnavailable),
        "{refused:?}"
    );
    assert_eq!(
        manager.route_of(&key).await.kept_spark_sessions,
        [A],
        "not taken for done"
    );
}
