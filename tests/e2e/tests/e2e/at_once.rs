//! Hundreds of calls at once from one program, on one connection: limits are
//! errors, never silence, and the interrupt passes.

use anyhow::Result;
use e2e::{Client, Engine, Stack, StackOptions};

#[tokio::test]
async fn two_hundred_queries_and_an_interrupt() -> Result<()> {
    let options = StackOptions {
        proxy: "limits.calls_per_session = 150".to_owned(),
        ..StackOptions::default()
    };
    let stack = Stack::start_with(options).await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let target = format!("localhost:{}", stack.proxy_address.port());
    let args = [
        "--target",
        &target,
        "--token",
        &token,
        "--calls",
        "200",
        "--refused",
        "50",
    ];
    let seen = Client::Py41.run(stack.dir.path(), "many.py", &args, None).await?;
    assert_eq!(seen["refused"]["RESOURCE_EXHAUSTED"], 50, "{seen}");
    let text = seen["texts"]["RESOURCE_EXHAUSTED"].as_str().unwrap_or_default();
    assert!(text.contains("150 calls open"), "{seen}");
    assert_eq!(seen["running"], 150, "{seen}");
    assert_eq!(seen["interrupted"], 150, "{seen}");
    assert!(seen["interrupt_s"].as_f64().is_some_and(|s| s < 30.0), "{seen}");
    let ended: u64 = seen["ended"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| n.as_u64())
        .sum();
    assert_eq!(ended, 200, "{seen}");
    Ok(())
}
