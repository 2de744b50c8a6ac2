//! What Sail says is said as Apache Spark would, where clients act on it.

use anyhow::Result;
use e2e::{Client, Engine, Stack};
use serde_json::Value;

const SPARK_SESSION: &str = "6b1f7a52-43c1-4a43-9f0e-0d5ad3a3c001";
const OPERATION: &str = "6b1f7a52-43c1-4a43-9f0e-0d5ad3a3c0ff";

async fn raw(stack: &Stack, token: &str, rpc: &str, more: &[&str]) -> Result<Value> {
    let target = format!("localhost:{}", stack.proxy_address.port());
    let common = [
        rpc,
        "--target",
        &target,
        "--token",
        token,
        "--session",
        SPARK_SESSION,
    ];
    Client::Py41
        .run(stack.dir.path(), "raw.py", &[&common[..], more].concat(), None)
        .await
}

fn class(answer: &Value) -> Option<&str> {
    answer["info"]["errorClass"].as_str()
}

#[tokio::test]
async fn unknown_operations_and_ended_sessions() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let one = raw(&stack, &token, "execute", &["--sql", "SELECT 1"]).await?;
    assert_eq!(one["code"], "OK", "{one}");

    for more in [
        &["--operation", OPERATION][..],
        &["--operation", OPERATION, "--last-response", OPERATION],
    ] {
        let answer = raw(&stack, &token, "reattach", more).await?;
        assert_eq!(
            class(&answer),
            Some("INVALID_HANDLE.OPERATION_NOT_FOUND"),
            "{more:?}: {answer}"
        );
        assert!(
            answer["message"]
                .as_str()
                .is_some_and(|text| text.contains(OPERATION)),
            "{answer}"
        );
    }
    let released = raw(&stack, &token, "release-session", &[]).await?;
    assert_eq!(released["code"], "OK", "{released}");
    let ended = raw(&stack, &token, "execute", &["--sql", "SELECT 1"]).await?;
    assert_eq!(class(&ended), Some("INVALID_HANDLE.SESSION_CHANGED"), "{ended}");
    Ok(())
}
