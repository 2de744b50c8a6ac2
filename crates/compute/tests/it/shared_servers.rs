//! Spark sessions on a shared server, on both engines.

use crate::support::*;
use compute::connector::Target;
use compute::shared_servers::{end_spark_sessions, select_catalog, user_id};
use compute::{AllowList, CatalogSelection, ComputeProvider, ComputeSpec};
use session_core::{Engine, Provider, Route, SparkSessionId};
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

fn spark_id() -> SparkSessionId {
    uuid::Uuid::new_v4().to_string().parse().unwrap()
}

/// A client with the identity that the proxy uses for this session.
async fn client(route: &Route, spec: &ComputeSpec, id: &SparkSessionId) -> RawClient {
    RawClient::connect(route)
        .await
        .speaking_as(&user_id(&spec.key), id.as_str())
}

/// The server has a catalog `lake` with a database `dev`, which are not the initial
/// ones of a Spark session. Database names are upper-case on one engine.
async fn prepared_kept_apart_and_ended(route: &Route, database: &str) {
    let target = Target {
        address: route.endpoint.clone(),
        tls: None,
        credential: route.credential.clone(),
        allow: Some(Arc::new(AllowList::new([], [], true).unwrap())),
    };
    let (plain, mut with) = (spec(route.engine, 1), spec(route.engine, 2));
    let mut lake = catalog(route.engine, "lake", &[("type", "memory")]);
    lake.default_database = Some(database.to_owned());
    with.catalog = Some(lake);

    let (one, other) = (spark_id(), spark_id());
    for _ in 0..2 {
        let chosen = select_catalog(&target, &with, &one).await;
        assert_eq!(
            chosen,
            Ok(CatalogSelection::Current),
            "the first call of all, and safe to repeat"
        );
    }
    let mut first = client(route, &with, &one).await;
    assert!(has(&first.sql("SELECT current_catalog()").await.unwrap(), "lake"));
    assert!(has(
        &first.sql("SELECT current_database()").await.unwrap(),
        database
    ));
    first
        .sql("CREATE TEMPORARY VIEW secret AS SELECT 1 AS n")
        .await
        .unwrap();
    first.sql("SELECT n FROM secret").await.unwrap();

    // Another session with another id has neither the view nor the catalog.
    let mut second = client(route, &plain, &other).await;
    assert!(!has(
        &second.sql("SELECT current_catalog()").await.unwrap(),
        "lake"
    ));
    assert!(second.sql("SELECT n FROM secret").await.is_err());

    let mut wrong = with.clone();
    wrong.catalog = Some(catalog(route.engine, "nowhere", &[("type", "memory")]));
    let refused = select_catalog(&target, &wrong, &spark_id()).await.unwrap_err();
    assert_eq!(refused.text, "the server has no such catalog or database");
    assert!(refused.detail.contains("nowhere"), "{refused:?}");

    // Ends a used one, an unused one, and both again.
    let unused = spark_id();
    let ids = [one.clone(), unused.clone()];
    for _ in 0..2 {
        let ended = end_spark_sessions(&target, &with.key, &ids).await.unwrap();
        let (ended, all): (BTreeSet<_>, BTreeSet<_>) =
            (ended.into_iter().collect(), ids.iter().cloned().collect());
        assert_eq!(ended, all);
    }
    let gone = first.sql("SELECT n FROM secret").await.unwrap_err();
    let told = ["is not running", "SESSION_CLOSED"];
    assert!(told.iter().any(|told| gone.message().contains(told)), "{gone}");
    let again = select_catalog(&target, &with, &one).await;
    assert_eq!(again, Ok(CatalogSelection::Ended), "the server rejects the id");
    for id in [&one, &unused] {
        let mut late = client(route, &plain, id).await;
        match route.engine {
            // Sail identifies a Spark session by its id alone: the id cannot be used
            // again.
            Engine::Sail => {
                let refused = late.sql("SELECT 1").await.unwrap_err();
                assert!(refused.message().contains("is not running"), "{refused}");
            }
            // Spark also compares the user: this is another Spark session.
            Engine::Spark => assert!(late.sql("SELECT n FROM secret").await.is_err()),
        }
    }
    second.sql("SELECT 1").await.unwrap();
}

struct Sail {
    child: Child,
}

impl Drop for Sail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn spark_sessions_on_sail() {
    let port = test_support::ports::free_port().unwrap().port();
    let catalogs = r#"[{name="main", type="memory", initial_database=["default"]}, {name="lake", type="memory", initial_database=["dev"]}]"#;
    let _server = Sail {
        child: Command::new(sail())
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
            .unwrap(),
    };
    let endpoint = format!("127.0.0.1:{port}");
    let begun = Instant::now();
    while tokio::net::TcpStream::connect(&endpoint).await.is_err() {
        assert!(begun.elapsed() < LONG, "Sail does not listen");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let route = Route {
        endpoint,
        tls_server_name: None,
        credential: None,
        engine: Engine::Sail,
        engine_version: String::new(),
        dedicated: false,
        host: None,
    };
    prepared_kept_apart_and_ended(&route, "dev").await;
}

#[tokio::test]
async fn spark_sessions_on_apache_spark() {
    let dir = tempfile::tempdir().unwrap();
    let children = provider(dir.path());
    let mut spec = spec(Engine::Spark, 1000);
    if let Provider::Process { properties, .. } = &mut spec.cluster.provider {
        // The catalog that the released jars contain.
        let class = "org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog";
        for (key, value) in [
            ("", class),
            (".url", "jdbc:derby:memory:lake;create=true"),
            (".driver", "org.apache.derby.iapi.jdbc.AutoloadedDriver"),
        ] {
            properties.insert(format!("spark.sql.catalog.lake{key}"), value.to_owned());
        }
    }
    children.ensure(&spec).await.unwrap();
    let route = until_ready(&children, &spec).await;
    prepared_kept_apart_and_ended(&route, "APP").await;
}
