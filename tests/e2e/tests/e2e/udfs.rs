//! Temp views and Python user functions.

use anyhow::Result;
use e2e::{Client, Engine, Stack, StackOptions, Tls};

async fn views_and_udfs(client: Client, engine: Engine, tls: Tls) -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        tls,
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", engine, &[])?;
    let url = stack.url("ada", &session)?;
    let args = ["views-udfs", "--url", &url];
    let seen = client
        .run(stack.dir.path(), "client.py", &args, stack.ca())
        .await?;
    for what in ["view", "udf", "sql_udf", "pandas_udf"] {
        assert!(!seen[what].is_null() && seen[what] != false, "{what}: {seen}");
    }
    Ok(())
}

#[tokio::test]
async fn sail() -> Result<()> {
    views_and_udfs(Client::Py41, Engine::Sail, Tls::Off).await
}

#[tokio::test]
async fn spark() -> Result<()> {
    views_and_udfs(Client::Py41, Engine::Spark, Tls::Off).await
}

#[tokio::test]
async fn spark_with_pyspark_3_5() -> Result<()> {
    views_and_udfs(Client::Py35, Engine::Spark, Tls::Required).await
}
