//! What the proxy adds to a small call: `AnalyzePlan(spark_version)` on one
//! real Sail server, direct and through spark-proxy in turn, on one connection
//! each, one call at a time. The backend does real work, so the difference of
//! the two is the figure; the load rig compares proxies on a bare backend.

use anyhow::{Context, Result};
use e2e::{Engine, Stack, repo};
use serde_json::json;
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{AnalyzePlanRequest, UserContext};
use std::time::{Duration, Instant};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

const ROUNDS: usize = 12;
const CALLS: usize = 400;

struct Way {
    client: SparkConnectServiceClient<Channel>,
    bearer: Option<MetadataValue<Ascii>>,
    spark_session: String,
}

impl Way {
    async fn new(uri: String, bearer: Option<String>) -> Result<Self> {
        let channel = Endpoint::from_shared(uri)?.tcp_nodelay(true).connect().await?;
        let bearer = bearer
            .map(|token| format!("Bearer {token}").parse())
            .transpose()?;
        let spark_session = uuid::Uuid::new_v4().to_string();
        Ok(Self {
            client: SparkConnectServiceClient::new(channel),
            bearer,
            spark_session,
        })
    }

    async fn call(&mut self) -> Result<Duration> {
        let mut request = Request::new(AnalyzePlanRequest {
            session_id: self.spark_session.clone(),
            user_context: Some(UserContext::default()),
            analyze: Some(Analyze::SparkVersion(SparkVersion {})),
            ..AnalyzePlanRequest::default()
        });
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        let begun = Instant::now();
        self.client.analyze_plan(request).await?;
        Ok(begun.elapsed())
    }

    /// The median and the 99th percentile of some calls, in microseconds.
    async fn round(&mut self) -> Result<[f64; 2]> {
        let mut times = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            times.push(self.call().await?);
        }
        times.sort();
        Ok([times[CALLS / 2], times[CALLS * 99 / 100]].map(|time| time.as_secs_f64() * 1e6))
    }
}

fn spread(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| (values[place] * 10.0).round() / 10.0;
    json!({"min": at(0), "median": at(values.len() / 2), "max": at(values.len() - 1)})
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let direct = stack.backend_url(&session).await?;
    let direct = direct
        .strip_prefix("sc://localhost:")
        .context("a direct address")?;
    let mut direct = Way::new(format!("http://127.0.0.1:{direct}"), None).await?;
    let mut proxied = Way::new(format!("http://{}", stack.proxy_address), Some(token)).await?;

    direct.round().await?;
    proxied.round().await?;
    let (mut direct_rounds, mut proxied_rounds) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Turns change, so that drift of the machine favours nobody.
        if round % 2 == 0 {
            direct_rounds.push(direct.round().await?);
            proxied_rounds.push(proxied.round().await?);
        } else {
            proxied_rounds.push(proxied.round().await?);
            direct_rounds.push(direct.round().await?);
        }
    }
    let column =
        |rounds: &[[f64; 2]], place: usize| rounds.iter().map(|round| round[place]).collect::<Vec<_>>();
    let added: Vec<f64> = proxied_rounds
        .iter()
        .zip(&direct_rounds)
        .map(|(p, d)| p[0] - d[0])
        .collect();
    let result = json!({
        "what": "AnalyzePlan(spark_version) on Sail, one call at a time, plaintext, microseconds",
        "rounds": ROUNDS, "calls_per_round": CALLS,
        "direct_p50": spread(column(&direct_rounds, 0)), "direct_p99": spread(column(&direct_rounds, 1)),
        "proxied_p50": spread(column(&proxied_rounds, 0)), "proxied_p99": spread(column(&proxied_rounds, 1)),
        "added_p50": spread(added),
    });
    println!("{:<14}{:>10}{:>10}{:>10}", "µs", "min", "median", "max");
    for row in [
        "direct_p50",
        "proxied_p50",
        "added_p50",
        "direct_p99",
        "proxied_p99",
    ] {
        let of = |what: &str| result[row][what].as_f64().unwrap_or(0.0);
        println!(
            "{row:<14}{:>10.1}{:>10.1}{:>10.1}",
            of("min"),
            of("median"),
            of("max")
        );
    }
    let folder = repo().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("latency.json"), format!("{result:#}\n"))?;
    Ok(())
}
