//! Two sessions on one real Sail server: isolation and release of their Spark
//! sessions, checked with the calls of a proxy.

use crate::support;
use crate::support::{Manager, on, until};
use session_core::{Reason, SessionKey};
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::spark as sc;
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::v1::{self, SessionStatus};
use session_store::prelude::*;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tonic::Status;

const ONE: &str = "0b5c2e9e-1f3a-4c6d-8e7f-000000000001";
const TWO: &str = "0b5c2e9e-1f3a-4c6d-8e7f-000000000002";
const THREE: &str = "0b5c2e9e-1f3a-4c6d-8e7f-000000000003";

struct Sail {
    child: Child,
    address: String,
}

impl Sail {
    fn start() -> Self {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.berth/venv-sail/bin/sail");
        let program = std::env::var_os("BERTH_SAIL").map_or(default, PathBuf::from);
        let port = test_support::ports::free_port().unwrap().port();
        let catalogs = r#"[{name="main", type="memory", initial_database=["default"]}, {name="lake", type="memory", initial_database=["dev"]}]"#;
        let child = Command::new(program)
            .args([
                "spark",
                "server",
                "--ip",
                "127.0.0.1",
                "--port",
                &port.to_string(),
            ])
            .env("SAIL_CATALOG__LIST", catalogs)
            .env("SAIL_CATALOG__DEFAULT_CATALOG", "main")
            .env("SAIL_CATALOG__DEFAULT_DATABASE", r#"["default"]"#)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run deploy/local/setup.sh test, or set BERTH_SAIL");
        Self {
            child,
            address: format!("127.0.0.1:{port}"),
        }
    }
}

impl Drop for Sail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn active(manager: &Manager, who: &str, catalog: &str) -> SessionKey {
    let request = v1::CreateSessionRequest {
        catalog: catalog.to_owned(),
        ..on("shared")
    };
    let created = manager.sessions(who).create_session(request).await.unwrap();
    let key = support::key(&created.into_inner().session.unwrap().id);
    let shown = manager.until_status(&key, SessionStatus::Active).await;
    assert!(!shown.engine_version.is_empty());
    key
}

/// Runs a plan as a proxy sends it: with the route's user id.
async fn run(route: &wire::Route, id: &str, plan: sc::plan::OpType) -> Result<Vec<u8>, Status> {
    use sc::execute_plan_response::ResponseType;
    let address = &route.backend.as_ref().unwrap().endpoint;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = SparkConnectServiceClient::new(endpoint.connect().await.unwrap());
    let message = sc::ExecutePlanRequest {
        session_id: id.to_owned(),
        user_context: Some(sc::UserContext {
            user_id: route.user_id.clone(),
            user_name: "another".to_owned(),
        }),
        plan: Some(sc::Plan { op_type: Some(plan) }),
        ..Default::default()
    };
    let mut answers = client.execute_plan(message).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(answer) = answers.message().await? {
        if let Some(ResponseType::ArrowBatch(batch)) = answer.response_type {
            bytes.extend(batch.data);
        }
    }
    Ok(bytes)
}

fn relation(of: sc::relation::RelType) -> sc::Relation {
    sc::Relation {
        common: Some(sc::RelationCommon { plan_id: Some(0) }),
        rel_type: Some(of),
    }
}

fn sql(query: &str) -> sc::Relation {
    relation(sc::relation::RelType::Sql(sc::Sql {
        query: query.to_owned(),
    }))
}

/// A command is complete when its response arrives.
async fn command(route: &wire::Route, id: &str, query: &str) -> Result<Vec<u8>, Status> {
    let command = sc::SqlCommand {
        input: Some(sql(query)),
        ..Default::default()
    };
    let command_type = Some(sc::command::CommandType::SqlCommand(command));
    run(route, id, sc::plan::OpType::Command(sc::Command { command_type })).await
}

async fn query(route: &wire::Route, id: &str, text: &str) -> Result<Vec<u8>, Status> {
    run(route, id, sc::plan::OpType::Root(sql(text))).await
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn two_sessions_on_one_server_are_isolated_and_leave_nothing() {
    let server = Sail::start();
    let manager = Manager::start_on_servers(&format!(
        r#"
[[clusters]]
name = "shared"
engine = "sail"
granted_orgs = ["acme"]
static.endpoints = [{{ address = "{}" }}]
[[catalogs]]
name = "lake"
org = "acme"
engine = "sail"
default_database = "dev"
properties = {{ type = "memory" }}
"#,
        server.address
    ))
    .await;
    let first = active(&manager, "ada", "lake").await;
    let second = active(&manager, "bob", "").await;

    // The same id: it belongs to the first session, whose catalog is current.
    assert!(manager.bind(&first, ONE).await.unwrap());
    assert!(!manager.bind(&second, ONE).await.unwrap(), "taken");
    let of_first = manager.route_of(&first).await;
    let bound: Vec<_> = of_first
        .bindings
        .iter()
        .map(|of| of.spark_session_id.as_str())
        .collect();
    assert_eq!(bound, [ONE]);
    assert!(has(
        &query(&of_first, ONE, "SELECT current_catalog()").await.unwrap(),
        "lake"
    ));
    assert!(has(
        &query(&of_first, ONE, "SELECT current_database()").await.unwrap(),
        "dev"
    ));

    // Different ids: isolated. The second session has no default catalog.
    assert!(manager.bind(&second, TWO).await.unwrap());
    let of_second = manager.route_of(&second).await;
    command(&of_first, ONE, "CREATE TEMPORARY VIEW secret AS SELECT 42 AS n")
        .await
        .unwrap();
    query(&of_first, ONE, "SELECT n FROM secret").await.unwrap();
    assert!(query(&of_second, TWO, "SELECT n FROM secret").await.is_err());
    assert!(has(
        &query(&of_second, TWO, "SELECT current_catalog()").await.unwrap(),
        "main"
    ));

    // A repeated bind of the same id does not change the user's current catalog.
    command(&of_first, ONE, "SET CATALOG main").await.unwrap();
    assert!(manager.bind(&first, ONE).await.unwrap());
    assert!(has(
        &query(&of_first, ONE, "SELECT current_catalog()").await.unwrap(),
        "main"
    ));

    // The end of a session: its views are gone, its ids are free and empty.
    assert!(manager.bind(&first, THREE).await.unwrap());
    manager.close("ada", &first).await;
    until("everything to be released", async || {
        manager.store.list_bindings(&first).await.unwrap().is_empty()
            && manager.store.list_placements(&first).await.unwrap().is_empty()
    })
    .await;
    for id in [ONE, THREE] {
        assert!(manager.bind(&second, id).await.unwrap(), "free again");
        let refused = query(&of_second, id, "SELECT n FROM secret").await.unwrap_err();
        assert!(refused.message().contains("is not running"), "{refused}");
    }
    query(&of_second, TWO, "SELECT 1").await.unwrap();
    let place = manager.store.list_placements(&second).await.unwrap();
    assert_eq!(place, std::slice::from_ref(&server.address));
}

#[tokio::test]
async fn an_unreachable_server_is_reported_and_does_not_prevent_a_close() {
    let server = Sail::start();
    let manager = Manager::start_on_servers(&format!(
        r#"
[[clusters]]
name = "shared"
engine = "sail"
granted_orgs = ["acme"]
static.endpoints = [{{ address = "{}" }}]
[[catalogs]]
name = "lake"
org = "acme"
engine = "sail"
properties = {{ type = "memory" }}
"#,
        server.address
    ))
    .await;
    let key = active(&manager, "ada", "lake").await;
    assert!(manager.bind(&key, ONE).await.unwrap());
    drop(server);
    let refused = manager.bind(&key, TWO).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::CatalogUnavailable), "{refused}");
    assert!(!refused.message().contains("127.0.0.1"), "{refused}");
    assert_eq!(
        manager.route_of(&key).await.bindings.len(),
        1,
        "only valid bindings are returned"
    );
    let closed = manager.close("ada", &key).await;
    assert_eq!(closed.status(), SessionStatus::Closed, "at once");
}

/// A catalog test on static servers: a catalog of the server is usable, an unknown
/// one is not, and the test leaves nothing.
#[tokio::test]
async fn catalogs_are_tested_on_a_running_server() {
    let server = Sail::start();
    let manager = Manager::start_on_servers(&format!(
        r#"
[[clusters]]
name = "shared"
engine = "sail"
granted_orgs = ["acme"]
static.endpoints = [{{ address = "{}" }}]
[[catalogs]]
name = "lake"
org = "acme"
engine = "sail"
default_database = "dev"
properties = {{ type = "memory" }}
[[catalogs]]
name = "swamp"
org = "acme"
engine = "sail"
properties = {{ type = "memory" }}
"#,
        server.address
    ))
    .await;
    let test = async |name: &str| {
        let request = v1::TestCatalogRequest {
            name: name.to_owned(),
            cluster: "shared".to_owned(),
        };
        let tested = manager.catalogs("olga").test_catalog(request).await.unwrap();
        tested.into_inner()
    };
    until("the server to answer", async || test("lake").await.usable).await;
    let good = test("lake").await;
    assert!(good.message.starts_with("sail "), "{}", good.message);
    let bad = test("swamp").await;
    assert!(!bad.usable, "{}", bad.message);
    assert!(
        bad.message.contains("catalog swamp cannot be used"),
        "{}",
        bad.message
    );
    drop(server);
    let away = test("lake").await;
    assert!(!away.usable && !away.message.is_empty(), "{}", away.message);
}
