//! The process provider with the Connect server of Apache Spark.

use crate::support::*;
use compute::ComputeProvider;
use session_core::Engine;
use session_core::machine::Observation;
use std::time::Instant;

/// A catalog that the released jars contain: JDBC over Derby, in memory.
fn derby(name: &str) -> session_core::Catalog {
    catalog(
        Engine::Spark,
        name,
        &[
            (
                "",
                "org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog",
            ),
            ("url", "jdbc:derby:memory:demo;create=true"),
            ("driver", "org.apache.derby.iapi.jdbc.AutoloadedDriver"),
        ],
    )
}

#[tokio::test]
async fn a_session_starts_answers_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let mut spec = spec(Engine::Spark, 1);
    spec.catalog = Some(derby("demo-db"));
    let begun = Instant::now();
    provider.ensure(&spec).await.unwrap();
    let route = until_ready(&provider, &spec).await;
    println!("measured: Spark with a catalog ready in {:?}", begun.elapsed());
    assert!(route.engine_version.starts_with('4'), "{route:?}");
    let refused = RawClient::connect(&route)
        .await
        .without_token()
        .sql("SELECT 1")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");

    let mut client = RawClient::connect(&route).await;
    let current = client.sql("SELECT current_catalog()").await.unwrap();
    assert!(has(&current, "demo-db"));
    client.sql("CREATE TABLE APP.orders (id INT)").await.unwrap();
    assert!(has(&client.sql("SHOW TABLES IN APP").await.unwrap(), "orders"));
    client.sql("SHOW TABLES").await.unwrap();

    provider.release(&spec).await.unwrap();
    until_missing(&provider, &spec).await;
    assert!(Running::below(dir.path()).is_none());
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, ["lock"]);
}

#[tokio::test]
async fn without_a_catalog_tables_are_files_of_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let spec = spec(Engine::Spark, 1);
    let begun = Instant::now();
    provider.ensure(&spec).await.unwrap();
    let route = until_ready(&provider, &spec).await;
    println!("measured: Spark ready in {:?}", begun.elapsed());
    let mut client = RawClient::connect(&route).await;
    client
        .sql("CREATE TABLE orders USING parquet AS SELECT 1 AS id")
        .await
        .unwrap();
    assert!(has(&client.sql("SHOW TABLES").await.unwrap(), "orders"));
    let outside = tempfile::tempdir().unwrap();
    python_udf_runs(&spark_python(), &route, outside.path());
    let work = dir.path().join(format!("{}-g1/work", spec.key.id));
    assert!(work.join("spark-warehouse/orders").is_dir());

    kill(Running::below(dir.path()).engines[0]);
    let (cause, permanent) = until_failed(&provider, &spec).await;
    assert!(
        !permanent && cause.starts_with("spark was killed by signal 9"),
        "{cause}"
    );
    provider.release(&spec).await.unwrap();
    until_missing(&provider, &spec).await;
    assert!(Running::below(dir.path()).is_none());
}

#[tokio::test]
async fn wrong_catalogs_have_different_errors() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let mut no_class = spec(Engine::Spark, 1);
    no_class.catalog = Some(catalog(
        Engine::Spark,
        "lake",
        &[("", "org.example.NoSuchCatalog")],
    ));
    provider.ensure(&no_class).await.unwrap();
    let (cause, permanent) = until_failed_with(&provider, &no_class).await;
    assert!(
        permanent
            && cause.text.contains("catalog lake cannot be used")
            && cause.detail.contains("NoSuchCatalog"),
        "{cause:?}"
    );
    provider.release(&no_class).await.unwrap();
    until_missing(&provider, &no_class).await;

    let mut no_database = spec(Engine::Spark, 2);
    let mut derby = derby("demo");
    derby.properties.insert(
        "url".into(),
        session_core::catalog::PropertyValue::Text("jdbc:derby:memory:none".into()),
    );
    no_database.catalog = Some(derby);
    provider.ensure(&no_database).await.unwrap();
    let told = |o: &Observation| matches!(o, Observation::Starting { cause } if cause.text.contains("catalog demo cannot be used"));
    until(&provider, &no_database, told).await;
    provider.shutdown().await;
    assert!(Running::below(dir.path()).is_none());
}
