//! Clients that compress their requests with gzip.

use anyhow::Result;
use e2e::{Client, Engine, Stack};

async fn queries_arrive(engine: Engine) -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", engine, &[])?;
    let url = stack.url("ada", &session)?;
    let args = ["compressed", "--url", &url];
    let found = Client::Py41
        .run(stack.dir.path(), "client.py", &args, stack.ca())
        .await?;
    assert_eq!(found["one"], 1, "{found}");
    assert_eq!(found["sums"], found["expected"], "{found}");
    // For Spark PySpark splits large data into short messages, which it does not for Sail.
    let refused = found["refused"].to_string();
    let names_limit = refused.contains("limits.stream_window_bytes");
    assert_eq!(names_limit, engine == Engine::Sail, "{found}");
    assert_eq!(found["after"], 3, "{found}");
    Ok(())
}

#[tokio::test]
async fn on_sail() -> Result<()> {
    queries_arrive(Engine::Sail).await
}

#[tokio::test]
async fn on_spark() -> Result<()> {
    queries_arrive(Engine::Spark).await
}
