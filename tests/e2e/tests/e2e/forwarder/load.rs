//! Token lives of a minute under load, and a query that is twice as long.
//! `FORWARDER_SECONDS=1800` makes the load longer.

use anyhow::{Context, Result, ensure};
use e2e::{Client, Engine, Forwarder, Stack, StackOptions};
use serde_json::Value;
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{AnalyzePlanRequest, UserContext};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// The shortest life that token-issuer gives.
const TOKEN_LIFE: &str = "60s";
/// Longer than two lives of a token, and than the two minutes after which Spark ends a stream.
const QUERY: Duration = Duration::from_secs(130);
/// At most one token in this time.
const TOKEN_INTERVAL: u64 = 40;
const CALLERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(20);

/// A client without retries: each failed call counts.
pub(super) struct Caller {
    client: SparkConnectServiceClient<Channel>,
    secret: String,
    spark_session: String,
}

impl Caller {
    pub(super) fn new(forwarder: &Forwarder) -> Result<Self> {
        let (address, secret) = forwarder.parts()?;
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
        Ok(Self {
            client: SparkConnectServiceClient::new(channel),
            secret: secret.to_owned(),
            spark_session: uuid::Uuid::new_v4().to_string(),
        })
    }

    pub(super) async fn call(&mut self) -> Result<()> {
        let mut request = Request::new(AnalyzePlanRequest {
            session_id: self.spark_session.clone(),
            user_context: Some(UserContext::default()),
            analyze: Some(Analyze::SparkVersion(SparkVersion {})),
            ..AnalyzePlanRequest::default()
        });
        request
            .metadata_mut()
            .insert("x-berth-secret", self.secret.parse()?);
        self.client.analyze_plan(request).await?;
        Ok(())
    }

    /// Calls until `end`; returns the number of calls, and fails with the first failed one.
    async fn load(mut self, end: Instant) -> Result<u64> {
        let (begun, mut calls) = (Instant::now(), 0);
        while Instant::now() < end {
            self.call()
                .await
                .with_context(|| format!("call {calls}, after {:?}", begun.elapsed()))?;
            calls += 1;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(calls)
    }
}

fn load_time() -> Duration {
    let seconds = std::env::var("FORWARDER_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(QUERY.as_secs() + 10))
}

#[tokio::test]
async fn no_call_fails_while_tokens_live_for_a_minute() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        proxy: "tokens.leeway = \"0s\"".to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let (sail, spark) = (
        stack.session("ada", Engine::Sail, &[])?,
        stack.session("ada", Engine::Spark, &[])?,
    );
    let before = issued(&stack).await?;
    let begun = Instant::now();
    let loaded = Forwarder::start(&stack, "ada", &[&sail, "--ttl", TOKEN_LIFE]).await?;
    let querying = Forwarder::start(&stack, "ada", &[&spark, "--ttl", TOKEN_LIFE]).await?;

    let query = long_query(&stack, &querying);
    let calls = load(&stack, &loaded, begun + load_time());
    let (query, calls) = tokio::try_join!(query, calls)?;
    ensure!(query >= QUERY, "the query was too short: {query:?}");

    let elapsed = begun.elapsed().as_secs();
    let tokens = issued(&stack).await? - before;
    println!("{calls} calls in {elapsed} s without a failure, {tokens} tokens for two sessions");
    // The first token of each session is there from the start.
    let most = 2 * (1 + elapsed / TOKEN_INTERVAL);
    ensure!(tokens <= most, "{tokens} tokens in {elapsed} s, more than {most}");
    ensure!(
        tokens >= 2 * (elapsed / 60),
        "tokens outlived their lives: {tokens}"
    );
    let proxy = stack.proxy.admin("/metrics").await?;
    let rejected = value(&proxy, "spark_proxy_calls_total{outcome=\"unauthenticated\"}");
    ensure!(rejected == Some(0), "calls with an expired token: {rejected:?}");
    Ok(())
}

/// Raw callers, and a notebook with PySpark, until `end`; returns the number of calls.
async fn load(stack: &Stack, forwarder: &Forwarder, end: Instant) -> Result<u64> {
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(Caller::new(forwarder)?.load(end));
    }
    let mut calls = 0;
    let mut notebook = Client::Py41.repl(stack.dir.path(), &forwarder.url, None).await?;
    while Instant::now() < end {
        let answer = notebook.sql("SELECT count(*) FROM range(1000)").await?;
        ensure!(answer["rows"][0][0] == 1000, "{answer}");
        calls += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ensure!(notebook.stop().await?, "stop() raised an error");
    while let Some(done) = callers.join_next().await {
        calls += done??;
    }
    Ok(calls)
}

/// A query on Spark, which cuts its stream every two minutes: the client
/// reattaches with whatever token there is then. Returns its time.
async fn long_query(stack: &Stack, forwarder: &Forwarder) -> Result<Duration> {
    // Each core sleeps through one part per second, and there are two parts for each second.
    let cores = std::thread::available_parallelism()?.get() as u64;
    let seconds = ((QUERY.as_secs() + 5) * cores / 2).to_string();
    let begun = Instant::now();
    let args = [
        "--limit",
        "900",
        "stream",
        "--url",
        &forwarder.url,
        "--seconds",
        &seconds,
    ];
    let running = Client::Py43
        .start_until(stack.dir.path(), "client.py", &args, None, "streaming")
        .await?;
    let seen: Value = running.finish(Duration::from_secs(900)).await?;
    ensure!(seen["error"].is_null(), "{seen}");
    ensure!(
        seen["rows"] == seen["expected"] && seen["distinct"] == seen["expected"],
        "rows are missing or double: {seen}"
    );
    Ok(begun.elapsed())
}

pub(super) async fn issued(stack: &Stack) -> Result<u64> {
    let metrics = stack.issuer.admin("/metrics").await?;
    value(&metrics, "token_issuer_token_requests_total{outcome=\"issued\"}").context("no count of tokens")
}

fn value(metrics: &str, name: &str) -> Option<u64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}
