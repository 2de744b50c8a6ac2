//! An error from the engine arrives with its class, and the session goes on.

use anyhow::Result;
use e2e::{Client, Engine, Stack};

#[tokio::test]
async fn sail() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &["errors", "--url", &url], None)
        .await?;
    assert_eq!(seen["missing_table"]["class"], "AnalysisException", "{seen}");
    // Sail's own classes, as on a direct connection.
    assert_eq!(seen["parse"]["class"], "IllegalArgumentException", "{seen}");
    assert_eq!(seen["runtime"]["class"], "NumberFormatException", "{seen}");
    assert!(seen["alive"] == true || seen["alive"] == 1, "{seen}");
    Ok(())
}

#[tokio::test]
async fn spark() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Spark, &[])?;
    let url = stack.url("ada", &session)?;
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &["errors", "--url", &url], None)
        .await?;
    assert_eq!(seen["missing_table"]["class"], "AnalysisException", "{seen}");
    assert_eq!(
        seen["missing_table"]["error_class"], "TABLE_OR_VIEW_NOT_FOUND",
        "{seen}"
    );
    assert_eq!(seen["missing_table"]["sql_state"], "42P01", "{seen}");
    assert_eq!(seen["parse"]["class"], "ParseException", "{seen}");
    assert!(seen["alive"] == true || seen["alive"] == 1, "{seen}");
    Ok(())
}
