//! What an operator does from outside: interrupts a query, tries a catalog,
//! shuts an organization out.

use anyhow::{Context as _, Result};
use e2e::{Client, Engine, RunningClient, Stack, wait};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Starts a query that nobody waits for, and returns its operation's id once
/// Berth knows it.
async fn endless(stack: &Stack, session: &str, url: &str) -> Result<(RunningClient, String)> {
    let args = [
        "stream",
        "--url",
        url,
        "--kind",
        "sum",
        "--rows",
        "1000000000000",
        "--limit",
        "200",
    ];
    let running = Client::Py41
        .start_until(stack.dir.path(), "client.py", &args, None, "asking")
        .await?;
    let operation = wait::until("the operation to be known", Duration::from_secs(30), async || {
        let operations = stack
            .berth("ada", &["ops", session])
            .map_err(|error| error.to_string())?;
        match operations[0]["operation_id"].as_str() {
            Some(id) if !id.is_empty() => Ok(id.to_owned()),
            Some(_) | None => Err(operations.to_string()),
        }
    })
    .await?;
    Ok((running, operation))
}

async fn interrupted(engine: Engine) -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", engine, &[])?;
    let url = stack.url("ada", &session)?;
    for named in [false, true] {
        let (running, operation) = endless(&stack, &session, &url).await?;
        let shown = stack.show("ada", &session)?;
        assert!(shown["active_operations"].as_u64() >= Some(1), "{shown}");
        let refused = stack.berth("bob", &["interrupt", &session, "--all"]).unwrap_err();
        assert!(refused.to_string().contains("no access"), "{refused}");
        let which: &[&str] = if named {
            &["--operation", &operation]
        } else {
            &["--all"]
        };
        // A manager of the organization does it; the session is not hers.
        let answer = stack.berth("olga", &[&["interrupt", &session], which].concat())?;
        let ids = answer.as_array().context("a list of ids")?;
        assert!(
            ids.contains(&Value::from(operation.as_str())),
            "{engine:?}: {answer}"
        );
        let seen = running.finish(Duration::from_secs(60)).await?;
        let said = seen["error"]["text"].as_str().unwrap_or_default().to_lowercase();
        assert!(
            said.contains("cancel") || said.contains("interrupt"),
            "{engine:?}: {seen}"
        );
        assert_eq!(stack.show("ada", &session)?["status"], "active");
    }
    let one = ["select1", "--url", &url];
    let one = Client::Py41
        .run(stack.dir.path(), "client.py", &one, None)
        .await?;
    assert_eq!(one["value"], 1, "the session lives on: {one}");
    Ok(())
}

#[tokio::test]
async fn a_query_is_interrupted_on_sail() -> Result<()> {
    interrupted(Engine::Sail).await
}

#[tokio::test]
async fn a_query_is_interrupted_on_spark() -> Result<()> {
    interrupted(Engine::Spark).await
}

#[tokio::test]
async fn a_catalog_is_tried_on_a_throw_away_engine() -> Result<()> {
    let stack = Stack::start().await?;
    let test = |name: &str| stack.berth("olga", &["catalogs", "test", name, "--cluster", "sail"]);
    let good = test("dev")?;
    assert_eq!(good["usable"], true, "{good}");
    let bad = test("broken").unwrap_err().to_string();
    assert!(bad.contains("broken") && bad.contains("nowhere"), "{bad}");
    wait::until(
        "the end of both engines",
        Duration::from_secs(30),
        async || match stack.children_matching("sail spark server") {
            Ok(left) if left.is_empty() => Ok(()),
            Ok(left) => Err(format!("{left:?} live")),
            Err(error) => Err(error.to_string()),
        },
    )
    .await?;
    let sessions = stack.berth("olga", &["list", "--all"])?;
    assert_eq!(sessions.as_array().map(Vec::len), Some(0), "{sessions}");
    Ok(())
}

#[tokio::test]
async fn disabling_an_organization_ends_its_streams() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("eve", Engine::Sail, &[])?;
    let url = stack.url("eve", &session)?;
    let args = ["stream", "--url", &url, "--kind", "range", "--seconds", "120"];
    let running = Client::Py41
        .start_until(stack.dir.path(), "client.py", &args, None, "streaming")
        .await?;
    let disabled = Instant::now();
    let answer = stack.berth("pat", &["orgs", "disable", "umbrella"])?;
    assert_eq!(answer["disabled"], true, "{answer}");
    let seen = running.finish(Duration::from_secs(15)).await?;
    let took = disabled.elapsed();
    assert!(
        seen["error"]["text"]
            .as_str()
            .is_some_and(|text| text.contains("closed")),
        "{seen}"
    );
    // Five seconds, and what Python needs to say so and to end.
    assert!(took < Duration::from_secs(8), "after {took:?}: {seen}");
    let refused = stack.berth("eve", &["list"]).unwrap_err().to_string();
    assert!(refused.contains("disabled"), "{refused}");

    stack.berth("pat", &["orgs", "enable", "umbrella"])?;
    let all = stack.berth("eve", &["list", "--all"])?;
    assert_eq!(all[0]["reason"], "ORG_DISABLED", "{all}");
    Ok(())
}
