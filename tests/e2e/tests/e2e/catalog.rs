//! The default catalog works without qualified names.

use anyhow::Result;
use e2e::{Client, Engine, Stack};

async fn unqualified_names(engine: Engine, more: &[&str]) -> Result<serde_json::Value> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", engine, more)?;
    let url = stack.url("ada", &session)?;
    let args = ["catalog", "--url", &url, "--table", "trips"];
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &args, None)
        .await?;
    let after = seen["after"].to_string();
    assert!(after.contains("trips"), "SHOW TABLES does not list it: {seen}");
    Ok(seen)
}

#[tokio::test]
async fn sail_begins_in_the_catalog_and_database_of_the_session() -> Result<()> {
    let seen = unqualified_names(Engine::Sail, &["--catalog", "dev"]).await?;
    assert_eq!(
        (&seen["catalog"], &seen["schema"]),
        (&"dev".into(), &"lab".into()),
        "{seen}"
    );
    Ok(())
}

#[tokio::test]
async fn spark_begins_in_its_own_catalog() -> Result<()> {
    unqualified_names(Engine::Spark, &[]).await.map(|_| ())
}

#[tokio::test]
async fn a_catalog_that_cannot_be_used_fails_the_session_with_the_cause() -> Result<()> {
    let stack = Stack::start().await?;
    let refused = stack
        .session("ada", Engine::Sail, &["--catalog", "broken"])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("failed"), "{refused}");
    let failed = &stack.berth("ada", &["list", "--all"])?[0];
    assert_eq!(failed["status"], "failed", "{failed}");
    let message = failed["status_message"].as_str().unwrap_or_default();
    assert!(message.to_lowercase().contains("catalog"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_catalog_for_another_engine_is_refused() -> Result<()> {
    let stack = Stack::start().await?;
    let refused = stack
        .session("ada", Engine::Spark, &["--catalog", "dev"])
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("catalog") && refused.contains("sail"),
        "{refused}"
    );
    Ok(())
}
