//! Compute that was given back while its session was idle, and made anew:
//! settings are there again, and what is gone is said where it is missed.

use anyhow::Result;
use e2e::{Client, Engine, Repl, Stack, StackOptions, wait};
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const ZONE: &str = "spark.sql.session.timeZone";

async fn idle(stack: &Stack, session: &str) -> Result<()> {
    stack
        .shorten_idle_timeout(session, Duration::from_secs(5))
        .await?;
    wait::until("idle, its compute given back", LIMIT, async || {
        match stack.show("ada", session) {
            Ok(shown) if shown["status"] == "idle" && shown["phase"] == "released" => Ok(()),
            Ok(shown) => Err(shown.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

async fn good(notebook: &mut Repl, line: &str) -> Result<Value> {
    let answer = notebook.sql(line).await?;
    assert!(answer["error"].is_null(), "{line}: {answer}");
    Ok(answer["rows"].clone())
}

#[tokio::test]
async fn settings_are_there_again_and_lost_views_are_explained() -> Result<()> {
    let stack = Stack::start().await?;
    for client in [Client::Py41, Client::Py43] {
        let session = stack.session("ada", Engine::Sail, &[])?;
        let url = stack.url("ada", &session)?;
        let mut notebook = client.repl(stack.dir.path(), &url, None).await?;
        let before = good(&mut notebook, &format!(":get {ZONE}")).await?;
        assert_ne!(before[0][0], "Asia/Tokyo", "{before}");
        good(&mut notebook, &format!(":set {ZONE} Asia/Tokyo")).await?;
        let instant = "SELECT CAST(TIMESTAMP '2026-11-29 00:00:00' AS BIGINT)";
        let in_tokyo = good(&mut notebook, instant).await?;
        good(&mut notebook, "CREATE TEMP VIEW numbers AS SELECT 1 AS n").await?;
        good(&mut notebook, "SELECT * FROM numbers").await?;

        idle(&stack, &session).await?;
        assert_eq!(
            good(&mut notebook, instant).await?,
            in_tokyo,
            "{client:?}: the same value"
        );
        let after = good(&mut notebook, &format!(":get {ZONE}")).await?;
        assert_eq!(after[0][0], "Asia/Tokyo", "{client:?}: {after}");
        assert_eq!(stack.show("ada", &session)?["generation"], 2);
        let missing = notebook.sql("SELECT * FROM numbers").await?;
        let text = missing["error"]["text"].as_str().unwrap_or_default();
        assert!(
            text.contains("TABLE_OR_VIEW_NOT_FOUND") && text.contains("compute was replaced"),
            "{client:?}: {missing}"
        );
        stack.berth("ada", &["close", &session])?;
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_signals_has_each_older_spark_session_told_once() -> Result<()> {
    let sail = e2e::installed("venv-sail/bin/sail")?;
    let stack = Stack::start_with(StackOptions {
        manager: format!(
            "[[clusters]]\nname = \"signals\"\nengine = \"sail\"\nwake = \"signal\"\nprocess.program = \"{}\"\n",
            sail.display()
        ),
        ..StackOptions::default()
    })
    .await?;
    let session = stack.berth("ada", &["create", "--wait", "--cluster", "signals"])?;
    let session = session["id"].as_str().unwrap_or_default().to_owned();
    let url = stack.url("ada", &session)?;
    let mut notebook = Client::Py41.repl(stack.dir.path(), &url, None).await?;
    good(&mut notebook, "SELECT 1").await?;
    idle(&stack, &session).await?;
    let told = notebook.sql("SELECT 1").await?;
    let text = told["error"]["text"].as_str().unwrap_or_default();
    assert!(
        text.contains("SESSION_CHANGED") && text.contains("idle"),
        "{told}"
    );
    // What the text says, with the same string.
    let anew = good(&mut notebook, &format!(":connect {url}")).await?;
    assert_eq!(anew[0], "new", "PySpark 4 takes the old one for closed: {anew}");
    good(&mut notebook, "SELECT 1").await?;
    Ok(())
}
