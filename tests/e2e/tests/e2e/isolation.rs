//! Two sessions on one machine see nothing of each other.

use anyhow::Result;
use e2e::{Client, Engine, Stack};

async fn isolated(engine: Engine, files: bool) -> Result<()> {
    let stack = Stack::start().await?;
    let mine = stack.session("ada", engine, &[])?;
    let other = stack.session("bob", engine, &[])?;
    let (mine, other) = (stack.url("ada", &mine)?, stack.url("bob", &other)?);
    let mut args = vec!["isolation", "--url", &mine, "--other-url", &other];
    if files {
        args.push("--files");
    }
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &args, None)
        .await?;
    assert!(seen["own_rows"].as_u64().is_some_and(|rows| rows > 0), "{seen}");
    assert_eq!(
        seen["error"]["class"], "AnalysisException",
        "the other session sees the view: {seen}"
    );
    if files {
        assert!(seen["own_file"] == true, "{seen}");
        assert!(
            seen["other_file"] == false || seen["other_file"].is_null(),
            "{seen}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn sail() -> Result<()> {
    isolated(Engine::Sail, false).await
}

#[tokio::test]
async fn spark_and_files() -> Result<()> {
    isolated(Engine::Spark, true).await
}
