//! What spark-proxy and `berth connect` add to a small call:
//! `AnalyzePlan(spark_version)` on one real Sail server, direct, through
//! spark-proxy, through a process that only copies bytes and spark-proxy, and
//! through `berth connect` and spark-proxy, on one connection each, one call at
//! a time. The backend does real work, so the differences are the figures; the
//! load rig compares proxies on a bare backend. The process that only copies
//! shows what the two wake-ups of any process on the way cost on the machine.

use anyhow::{Context, Result};
use e2e::{Engine, Forwarder, Relay, Stack, repo};
use serde_json::json;
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{AnalyzePlanRequest, UserContext};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

const ROUNDS: usize = 12;
const CALLS: usize = 400;

struct Way {
    client: SparkConnectServiceClient<Channel>,
    /// Name and value of the credential.
    credential: Option<(&'static str, MetadataValue<Ascii>)>,
    spark_session: String,
}

impl Way {
    async fn new(uri: String, credential: Option<(&'static str, String)>) -> Result<Self> {
        let channel = Endpoint::from_shared(uri)?.tcp_nodelay(true).connect().await?;
        let credential = match credential {
            Some((name, value)) => Some((name, value.parse()?)),
            None => None,
        };
        let spark_session = uuid::Uuid::new_v4().to_string();
        Ok(Self {
            client: SparkConnectServiceClient::new(channel),
            credential,
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
        if let Some((name, value)) = &self.credential {
            request.metadata_mut().insert(*name, value.clone());
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

/// Names of the ways, in the order of [`ways`].
const WAYS: [&str; 4] = ["direct", "proxied", "relayed", "forwarded"];

/// Serves as a process that only copies bytes, until its end.
async fn relay(target: &str) -> Result<()> {
    let relay = Relay::start(target.parse()?).await?;
    println!("{}", relay.address);
    std::future::pending().await
}

/// Starts this program as [`relay`]; it ends with the returned child.
async fn start_relay(target: SocketAddr) -> Result<(Child, SocketAddr)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["relay", &target.to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let address = BufReader::new(output).lines().next_line().await?;
    Ok((child, address.context("the relay ended")?.parse()?))
}

/// Straight to Sail, through spark-proxy, and through a relay or `berth connect` before it.
async fn ways(stack: &Stack, session: &str, relay: SocketAddr, forwarder: &Forwarder) -> Result<[Way; 4]> {
    let token = stack.token("ada", session)?;
    let direct = stack.backend_url(session).await?;
    let direct = direct
        .strip_prefix("sc://localhost:")
        .context("a direct address")?;
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let (address, secret) = forwarder.parts()?;
    Ok([
        Way::new(format!("http://127.0.0.1:{direct}"), None).await?,
        Way::new(format!("http://{}", stack.proxy_address), Some(bearer(&token))).await?,
        Way::new(format!("http://{relay}"), Some(bearer(&token))).await?,
        Way::new(
            format!("http://{address}"),
            Some(("x-berth-secret", secret.to_owned())),
        )
        .await?,
    ])
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if let [_, how, target] = &std::env::args().collect::<Vec<_>>()[..]
        && how == "relay"
    {
        return relay(target).await;
    }
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let forwarder = Forwarder::start(&stack, "ada", &[&session]).await?;
    let (_relay, relay) = start_relay(stack.proxy_address).await?;
    let mut ways = ways(&stack, &session, relay, &forwarder).await?;

    for way in &mut ways {
        way.round().await?;
    }
    let mut rounds = [const { Vec::new() }; WAYS.len()];
    for round in 0..ROUNDS {
        // Turns change, so that drift of the machine favours nobody.
        for turn in 0..WAYS.len() {
            let place = (round + turn) % WAYS.len();
            rounds[place].push(ways[place].round().await?);
        }
    }
    report(&rounds)
}

fn report(rounds: &[Vec<[f64; 2]>; WAYS.len()]) -> Result<()> {
    let column = |way: usize, place: usize| rounds[way].iter().map(|round| round[place]).collect::<Vec<_>>();
    let added = |way: usize, to: usize| -> Vec<f64> {
        let pairs = rounds[way].iter().zip(&rounds[to]);
        pairs.map(|(with, without)| with[0] - without[0]).collect()
    };
    let mut result = json!({
        "what": "AnalyzePlan(spark_version) on Sail, one call at a time, plaintext, microseconds",
        "rounds": ROUNDS, "calls_per_round": CALLS,
        "added_p50": spread(added(1, 0)), "relay_added_p50": spread(added(2, 1)),
        "forwarder_added_p50": spread(added(3, 1)),
        "forwarder_to_relay": spread(
            added(3, 1).iter().zip(added(2, 1)).map(|(forwarder, relay)| forwarder / relay).collect(),
        ),
    });
    for (way, name) in WAYS.iter().enumerate() {
        result[format!("{name}_p50")] = spread(column(way, 0));
        result[format!("{name}_p99")] = spread(column(way, 1));
    }
    println!("{:<20}{:>10}{:>10}{:>10}", "µs", "min", "median", "max");
    for row in [
        "direct_p50",
        "proxied_p50",
        "relayed_p50",
        "forwarded_p50",
        "added_p50",
        "relay_added_p50",
        "forwarder_added_p50",
        "forwarder_to_relay",
        "direct_p99",
        "proxied_p99",
        "relayed_p99",
        "forwarded_p99",
    ] {
        let of = |what: &str| result[row][what].as_f64().unwrap_or(0.0);
        println!(
            "{row:<20}{:>10.1}{:>10.1}{:>10.1}",
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
