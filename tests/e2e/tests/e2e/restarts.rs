//! kill -9 of any service and its restart lose no session.

use anyhow::Result;
use e2e::{Client, Engine, Repl, Stack, wait};
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

async fn connected() -> Result<(Stack, String, Repl)> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    let mut repl = Client::Py41.repl(stack.dir.path(), &url, None).await?;
    assert_one(&repl.sql("SELECT 1").await?);
    Ok((stack, session, repl))
}

fn assert_one(answer: &Value) {
    assert!(
        answer["error"].is_null() && answer["rows"].to_string().contains('1'),
        "{answer}"
    );
}

/// A client that knows nothing of what was before.
async fn fresh_client(stack: &Stack, session: &str) -> Result<()> {
    let url = stack.url("ada", session)?;
    let args = ["select1", "--url", &url];
    let seen = Client::Py43
        .run(stack.dir.path(), "client.py", &args, None)
        .await?;
    assert_eq!(seen["value"], 1, "{seen}");
    Ok(())
}

async fn is_active(stack: &Stack, session: &str) -> Result<Value> {
    wait::until("the session to be active", LIMIT, async || {
        match stack.show("ada", session) {
            Ok(shown) if shown["status"] == "active" => Ok(shown),
            Ok(shown) => Err(shown.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn spark_proxy() -> Result<()> {
    let (mut stack, session, mut repl) = connected().await?;
    stack.proxy.kill9().await?;
    stack.proxy.start_ready().await?;
    fresh_client(&stack, &session).await?;
    assert_one(&repl.sql("SELECT 1").await?);
    assert_eq!(is_active(&stack, &session).await?["generation"], 1);
    Ok(())
}

#[tokio::test]
async fn token_issuer() -> Result<()> {
    let (mut stack, session, mut repl) = connected().await?;
    stack.issuer.kill9().await?;
    assert_one(&repl.sql("SELECT 1").await?);
    let refused = stack.token("ada", &session).unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
    stack.issuer.start_ready().await?;
    stack.token("ada", &session)?;
    assert_one(&repl.sql("SELECT 1").await?);
    Ok(())
}

/// Child processes die with their manager: the session gets new compute under
/// a new generation, and the same client goes on.
#[tokio::test]
async fn session_manager() -> Result<()> {
    let (mut stack, session, mut repl) = connected().await?;
    let before = stack.children_matching("sail spark server")?;
    stack.manager.kill9().await?;
    wait::until("the children to end with their manager", LIMIT, async || {
        let left = stack
            .children_matching("sail spark server")
            .map_err(|error| error.to_string())?;
        if left.iter().any(|pid| before.contains(pid)) {
            Err(format!("{left:?}"))
        } else {
            Ok(())
        }
    })
    .await?;
    stack.manager.start_ready().await?;
    fresh_client(&stack, &session).await?;
    let shown = is_active_again(&stack, &session).await?;
    assert_eq!(shown["generation"], 2, "{shown}");
    assert_one(&repl.sql("SELECT 1").await?);
    let events = stack.berth("ada", &["events", &session])?.to_string();
    assert!(events.contains("COMPUTE_LOST"), "{events}");
    Ok(())
}

async fn is_active_again(stack: &Stack, session: &str) -> Result<Value> {
    wait::until("the session to be active again", LIMIT, async || {
        match stack.show("ada", session) {
            Ok(shown) if shown["status"] == "active" && shown["generation"] != 1 => Ok(shown),
            Ok(shown) => Err(shown.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn redis() -> Result<()> {
    let (mut stack, session, mut repl) = connected().await?;
    stack.redis.kill9()?;
    // What is known already goes on without it.
    assert_one(&repl.sql("SELECT 1").await?);
    let refused = stack.show("ada", &session).unwrap_err().to_string();
    assert!(refused.contains("try again"), "{refused}");
    stack.redis.restart().await?;
    let shown = is_active(&stack, &session).await?;
    assert_eq!(shown["generation"], 1, "{shown}");
    assert_one(&repl.sql("SELECT 1").await?);
    stack.session("ada", Engine::Sail, &[])?;
    Ok(())
}

#[tokio::test]
async fn a_lost_child_is_replaced() -> Result<()> {
    let (stack, session, mut repl) = connected().await?;
    for pid in stack.children_matching("sail spark server")? {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // The supervisor's command line matches too; either end is a loss.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    is_active_again(&stack, &session).await?;
    fresh_client(&stack, &session).await?;
    assert_one(&repl.sql("SELECT 1").await?);
    Ok(())
}
