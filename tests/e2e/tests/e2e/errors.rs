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

/// A text of CJK letters takes nine bytes a letter in `grpc-message`, and gRPC
/// clients drop trailers beyond 8 KiB.
#[tokio::test]
async fn long_texts_reach_clients_cut() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let target = format!("localhost:{}", stack.proxy_address.port());
    for letters in [10, 900, 20_000] {
        let table = "查".repeat(letters);
        let sql = format!("SELECT * FROM `{table}`");
        let args = [
            "execute",
            "--target",
            &target,
            "--token",
            &token,
            "--session",
            "6b1f7a52-43c1-4a43-9f0e-0d5ad3a3c016",
            "--sql",
            &sql,
        ];
        for client in [Client::Py41, Client::Py35] {
            let seen = client.run(stack.dir.path(), "raw.py", &args, None).await?;
            assert_eq!(seen["code"], "INTERNAL", "{letters}: {seen}");
            let text = seen["message"].as_str().unwrap_or_default();
            assert!(text.contains("查查查"), "{letters}: {seen}");
            assert_eq!(text.contains("[cut: "), letters > 800, "{letters}: {seen}");
            assert!(seen["details_error"].is_null(), "{letters}: {seen}");
            let classes = seen["info"]["classes"].as_str().unwrap_or_default();
            assert!(classes.contains("AnalysisException"), "{letters}: {seen}");
        }
    }
    Ok(())
}

/// Metadata beyond what the proxy takes, and beyond what HTTP/2 takes there.
#[tokio::test]
async fn too_much_metadata_is_refused() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let target = format!("localhost:{}", stack.proxy_address.port());
    let padding = format!("x-padding={}", "x".repeat(100 << 10));
    for (count, code, says) in [
        (1, "INVALID_ARGUMENT", "limits.header_list_bytes"),
        // Not a status of Berth: docs/known-limits.md.
        (3, "UNKNOWN", "431"),
    ] {
        let mut args = vec!["execute", "--target", &target, "--token", &token];
        args.extend([
            "--session",
            "6b1f7a52-43c1-4a43-9f0e-0d5ad3a3c016",
            "--sql",
            "SELECT 1",
        ]);
        for _ in 0..count {
            args.extend(["--md", &padding]);
        }
        let seen = Client::Py41.run(stack.dir.path(), "raw.py", &args, None).await?;
        assert_eq!(seen["code"], code, "{count}: {seen}");
        let text = seen["message"].as_str().unwrap_or_default();
        assert!(text.contains(says), "{count}: {seen}");
    }
    Ok(())
}
