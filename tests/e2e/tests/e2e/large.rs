//! A large upload and a large result pass whole, and the proxy stays small.

use anyhow::{Context, Result};
use e2e::{Client, Engine, Stack};

/// Of a debug build; the release build is measured by `make load`.
const MOST_MIB: u64 = 80;

/// The most memory the proxy had so far.
fn peak_mib(stack: &Stack) -> Result<u64> {
    let pid = stack.proxy.pid().context("no proxy")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .context("no VmHWM")?;
    Ok(kib.parse::<u64>()? / 1024)
}

#[tokio::test]
async fn a_file_of_200_mb_arrives_whole() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Spark, &[])?;
    let url = stack.url("ada", &session)?;
    let args = ["artifact", "--url", &url, "--size-mb", "200"];
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &args, None)
        .await?;
    assert_eq!(seen["same"], true, "{seen}");
    let peak = peak_mib(&stack)?;
    println!(
        "200 MB up in {} s; the proxy had {peak} MiB at most",
        seen["seconds"]
    );
    assert!(peak <= MOST_MIB, "{peak} MiB");
    Ok(())
}

#[tokio::test]
async fn a_result_of_1_gb_arrives_whole() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    let args = ["download", "--url", &url, "--rows", "1000000"];
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &args, None)
        .await?;
    assert!(
        seen["bytes"].as_u64().is_some_and(|bytes| bytes >= 1_000_000_000),
        "{seen}"
    );
    let peak = peak_mib(&stack)?;
    println!(
        "1 GB down in {} s; the proxy had {peak} MiB at most",
        seen["seconds"]
    );
    assert!(peak <= MOST_MIB, "{peak} MiB");
    Ok(())
}
