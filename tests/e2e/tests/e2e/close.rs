//! Closing a session ends its streams and gives its compute back.

use anyhow::Result;
use e2e::{Client, Engine, Stack, wait};
use std::time::{Duration, Instant};

async fn close_ends_it(engine: Engine, kind: &str, process: &str) -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", engine, &[])?;
    let url = stack.url("ada", &session)?;
    let args = ["stream", "--url", &url, "--kind", kind, "--seconds", "120"];
    let running = Client::Py41
        .start_until(stack.dir.path(), "client.py", &args, None, "streaming")
        .await?;
    assert!(!stack.children_matching(process)?.is_empty());

    let closed = Instant::now();
    let session = stack.berth("ada", &["close", &session])?;
    assert_eq!(session["status"], "closed", "{session}");
    let seen = running.finish(Duration::from_secs(15)).await?;
    let took = closed.elapsed();
    assert!(
        seen["error"]["text"]
            .as_str()
            .is_some_and(|text| text.contains("closed")),
        "{seen}"
    );
    assert!(
        took < Duration::from_secs(8),
        "the client learnt of it after {took:?}: {seen}"
    );
    wait::until(
        "the end of the compute",
        Duration::from_secs(30),
        async || match stack.children_matching(process) {
            Ok(left) if left.is_empty() => Ok(()),
            Ok(left) => Err(format!("{left:?} live")),
            Err(error) => Err(error.to_string()),
        },
    )
    .await
}

#[tokio::test]
async fn sail() -> Result<()> {
    close_ends_it(Engine::Sail, "range", "sail spark server").await
}

#[tokio::test]
async fn spark() -> Result<()> {
    close_ends_it(Engine::Spark, "sleep", "SparkConnectServer").await
}

#[tokio::test]
async fn closing_twice_is_fine_and_frees_the_quota() -> Result<()> {
    let stack = Stack::start().await?;
    let first = stack.session("ada", Engine::Sail, &[])?;
    for _ in 0..2 {
        assert_eq!(stack.berth("ada", &["close", &first])?["status"], "closed");
    }
    let live = stack.berth("ada", &["list"])?;
    assert_eq!(live.as_array().map(Vec::len), Some(0), "{live}");
    let all = stack.berth("ada", &["list", "--all"])?;
    assert_eq!(all[0]["id"], first.as_str(), "{all}");
    Ok(())
}
