//! Latency that the proxy adds, measured by alternating direct and proxied calls. Run by hand with
//! `--release -- --ignored --nocapture`; `tests/load` measures the targets.

use crate::common::{Client, Rig, Rpc, within};
use std::time::{Duration, Instant};
use tonic::Code;

const ROUNDS: usize = 20;
const CALLS: usize = 500;

fn percentile(sorted: &[Duration], share: f64) -> u128 {
    sorted[((sorted.len() - 1) as f64 * share) as usize].as_micros()
}

async fn one_by_one(client: &Client, rpc: impl Fn() -> Rpc, into: &mut Vec<Duration>) {
    for _ in 0..CALLS {
        let began = Instant::now();
        assert_eq!(client.call(rpc()).await.code(), Code::Ok);
        into.push(began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn added_latency() {
    let _alone = crate::alone().await;
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    let direct = Client::plain(rig.spark.address()).await.unwrap();
    let proxied = rig.client().await;
    let token = rig.token();
    let rpc = || Rpc::execute(&token).header("x-session-id", rig.session.as_str());
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one_by_one(&direct, rpc, &mut without).await;
        one_by_one(&proxied, rpc, &mut with).await;
    }
    for (name, times) in [("direct", &mut without), ("through the proxy", &mut with)] {
        times.sort();
        println!(
            "{name}: p50 {} us, p99 {} us",
            percentile(times, 0.5),
            percentile(times, 0.99)
        );
    }

    for (name, address) in [
        ("direct", rig.spark.address()),
        ("through the proxy", rig.address),
    ] {
        let began = Instant::now();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let client = Client::plain(address).await.unwrap();
            for _ in 0..16 {
                let (client, token, session) = (client.clone(), token.clone(), rig.session.to_string());
                calls.spawn(async move {
                    for _ in 0..CALLS {
                        let rpc = Rpc::execute(&token).header("x-session-id", &session);
                        assert_eq!(client.call(rpc).await.code(), Code::Ok);
                    }
                });
            }
        }
        within("all calls", calls.join_all()).await;
        println!(
            "{name}, 4 x 16: {:.0} calls/s",
            (64 * CALLS) as f64 / began.elapsed().as_secs_f64()
        );
    }
}
