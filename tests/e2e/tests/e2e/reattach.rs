//! Clients that lose their connections in the middle of results of Sail: every row arrives once, or
//! the query ends with an error.

use anyhow::{Context as _, Result};
use e2e::{Client, Engine, Relay, Stack, StackOptions};
use serde_json::Value;
use std::time::Duration;

/// Cuts in a run; `CUTS=500` for more.
const CUTS: &str = "40";
/// The default of `limits.unacknowledged_bytes_per_session`.
const MAX_UNACKNOWLEDGED: f64 = 64.0 * 1024.0 * 1024.0;
/// Memory of a proxy in a debug build without results.
const MAX_IDLE_MIB: u64 = 80;

/// The sum of the series of a metric whose lines begin so.
async fn metric(stack: &Stack, name: &str) -> Result<f64> {
    let text = stack.proxy.admin("/metrics").await?;
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{'])
            .then(|| line.rsplit_once(' '))??
            .1
            .parse::<f64>()
            .ok()
    });
    Ok(values.sum())
}

/// Largest value of a metric, sampled until dropped.
async fn largest(
    stack: &Stack,
    name: &str,
    until: impl Future<Output = Result<Value>>,
) -> Result<(Value, f64)> {
    let mut max: f64 = 0.0;
    let mut until = std::pin::pin!(until);
    loop {
        tokio::select! {
            seen = &mut until => return Ok((seen?, max)),
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                max = max.max(metric(stack, name).await.unwrap_or_default());
            }
        }
    }
}

fn peak_mib(stack: &Stack) -> Result<u64> {
    let pid = stack.proxy.pid().context("no proxy")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .context("no VmHWM")?;
    Ok(kib.parse::<u64>()? / 1024)
}

/// Connections go to both workers of the proxy, so that streams are resumed across threads too.
#[tokio::test]
async fn random_cuts_lose_and_repeat_nothing() -> Result<()> {
    let cuts = std::env::var("CUTS").unwrap_or_else(|_| CUTS.to_owned());
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    let seed = std::env::var("SEED").unwrap_or_else(|_| "1".to_owned());
    println!("{cuts} cuts, SEED={seed}");
    let mut left: u32 = cuts.parse()?;
    let (mut all, mut queries, mut max_bytes) = (0, 0, 0.0_f64);
    while left > 0 {
        // A program has a time limit.
        let (count, seed) = (
            left.min(60).to_string(),
            format!("{}", seed.parse::<u32>()? + left),
        );
        let args = ["cuts", "--url", &url, "--cuts", &count, "--seed", &seed];
        let run = Client::Py41.run(stack.dir.path(), "cuts.py", &args, None);
        let (seen, largest) = largest(&stack, "spark_proxy_unacknowledged_bytes", run).await?;
        println!(
            "{seen}, {:.1} MiB unacknowledged at most",
            largest / 1024.0 / 1024.0
        );
        assert!(seen["wrong"].as_array().is_some_and(Vec::is_empty), "{seen}");
        assert!(seen["errors"].as_array().is_some_and(Vec::is_empty), "{seen}");
        all += seen["cuts"].as_u64().context("cuts")?;
        queries += seen["queries"].as_u64().context("queries")?;
        max_bytes = max_bytes.max(largest);
        left = left.saturating_sub(60);
    }
    let resumed = metric(&stack, "spark_proxy_streams_resumed_total").await?;
    let peak = peak_mib(&stack)?;
    println!("{all} cuts in {queries} queries, {resumed} resumed, peak memory {peak} MiB");
    assert!(resumed >= all as f64 / 2.0, "{resumed} of {all}");
    assert!(max_bytes <= MAX_UNACKNOWLEDGED, "{max_bytes}");
    assert!(peak <= MAX_IDLE_MIB, "{peak}");
    assert_eq!(metric(&stack, "spark_proxy_reattaches_refused_total").await?, 0.0);
    Ok(())
}

/// Reads with PySpark 4.3, whose streams end after `deadline`: rows for longer than that with a pause
/// after each batch, then one number after `job` seconds of nothing.
async fn read_beyond_deadlines(proxy: &str, rows: &str, deadline: f64, pause: f64, job: f64) -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        proxy: proxy.to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    let [within, pause, lasts] = [deadline, pause, job].map(|seconds| seconds.to_string());
    let limit = (60.0 + 3.0 * (deadline + job)).to_string();
    let args = [
        "--limit",
        &limit,
        "deadline",
        "--url",
        &url,
        "--rows",
        rows,
        "--deadline",
        &within,
        "--pause",
        &pause,
        "--job",
        &lasts,
    ];
    let began = Client::Py43.start_until(stack.dir.path(), "cuts.py", &args, None, "reading");
    let seen = began
        .await?
        .finish(Duration::from_secs_f64(60.0 + 3.0 * (deadline + job)))
        .await?;
    println!("{seen}");
    assert!(seen["wrong"].is_null(), "{seen}");
    assert_eq!(seen["right"], true, "{seen}");
    for of in ["streamed", "job"] {
        let seconds = seen[of].as_f64().unwrap_or_default();
        assert!(seconds > deadline, "shorter than the deadline: {seen}");
    }
    let resumed = metric(&stack, "spark_proxy_streams_resumed_total").await?;
    assert!(resumed >= 2.0, "{resumed}");
    Ok(())
}

/// The result is delivered long before it is read. It is retained while its client acknowledges
/// responses, even if the client's stream ends later than `held_stream_timeout` after its delivery.
#[tokio::test]
async fn the_deadline_of_pyspark_43_ends_no_query() -> Result<()> {
    read_beyond_deadlines("limits.held_stream_timeout = \"3s\"", "30000", 6.0, 0.5, 8.0).await
}

/// The same with PySpark's own deadline.
#[tokio::test]
#[ignore = "make long-queries runs it: 25 minutes"]
async fn queries_of_twelve_minutes_with_pyspark_43() -> Result<()> {
    read_beyond_deadlines("", "20000", 600.0, 36.0, 720.0).await
}

/// What the client has received and not acknowledged exceeds the limit: an error, never a loss.
#[tokio::test]
async fn beyond_the_limit_a_cut_is_an_error() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        proxy: "limits.unacknowledged_bytes_per_stream = 1048576".to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    let args = [
        "cuts",
        "--url",
        &url,
        "--cuts",
        "6",
        "--rows",
        "400000",
        "--pause",
        "0.4",
        "--max-bytes",
        "9000000",
        "--max-errors",
        "20",
    ];
    let seen = Client::Py41.run(stack.dir.path(), "cuts.py", &args, None).await?;
    println!("{seen}");
    assert!(seen["wrong"].as_array().is_some_and(Vec::is_empty), "{seen}");
    let errors = seen["errors"].as_array().context("errors")?;
    assert!(!errors.is_empty(), "no cut was beyond the limit: {seen}");
    for error in errors {
        let text = error.as_str().unwrap_or_default();
        assert!(text.contains("RESPONSE_ALREADY_RECEIVED"), "{text}");
    }
    Ok(())
}

/// At another proxy nothing can be continued, and nothing is lost without an error.
#[tokio::test]
async fn at_another_proxy_a_cut_is_an_error() -> Result<()> {
    let stack = Stack::start().await?;
    let (_next, next_address) = stack.another_proxy().await?;
    let relay = Relay::start(stack.proxy_address).await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.via(&stack.url("ada", &session)?, relay.address);
    let args = [
        "stream",
        "--url",
        &url,
        "--seconds",
        "12",
        "--kind",
        "range",
        "--rows",
        "20000000",
        "--pause",
        "0.01",
    ];
    let running = Client::Py41
        .start_until(stack.dir.path(), "client.py", &args, None, "streaming")
        .await?;
    relay.point_at(next_address);
    relay.cut();
    let seen = running.finish(Duration::from_secs(120)).await?;
    assert!(
        !seen["error"].is_null(),
        "rows were lost without an error: {seen}"
    );
    Ok(())
}
