//! `addArtifact` arrives whole. Sail has none, so this is Apache Spark's.

use anyhow::Result;
use e2e::{Client, Engine, Stack};

#[tokio::test]
async fn spark() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Spark, &[])?;
    let url = stack.url("ada", &session)?;
    let args = ["artifact", "--url", &url, "--size-mb", "50"];
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &args, None)
        .await?;
    assert_eq!(seen["same"], true, "{seen}");
    Ok(())
}
