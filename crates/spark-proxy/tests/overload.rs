//! Overload: new work is rejected, running work continues. The test is alone in its process, whose
//! memory it uses.

#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "helpers of tests")]

#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "shared with the other test program"
)]
#[path = "it/common/mod.rs"]
mod common;

use common::{Reply, Rig, Rpc, within};
use session_core::Reason;
use std::time::Duration;
use test_support::fake_spark::{Shape, request};
use tonic::Code;

const MIB: u64 = 1 << 20;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_rejects_new_work_and_keeps_running_work() {
    let rig = Rig::with(|config| config.limits.shed_above_bytes = Some(resident() + 200 * MIB)).await;
    let client = rig.client().await;
    let mut running = client.begin(&rig.rpc().shape(Shape::Count)).await.unwrap();
    running.upload.send_data(request(b"begun"), false).unwrap();
    within("it runs", rig.spark.until(|seen| seen.requests.len() == 1)).await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);

    let hog = vec![1_u8; (300 * MIB) as usize];
    within(
        "it is noticed",
        rig.until_metric("spark_proxy_overloaded", |n| n == 1.0),
    )
    .await;
    let reply = client.call(rig.rpc()).await;
    reply.refused(Reason::RateLimited);
    let retry = tonic_types::StatusExt::get_details_retry_info(&reply.status());
    assert!(retry.is_some_and(|retry| retry.retry_delay > Some(Duration::ZERO)));
    assert_eq!(
        rig.metric("spark_proxy_calls_rejected_overloaded_total").await,
        1.0
    );
    // Calls that end or continue work pass, but not without a token.
    let release = Rpc::spark("ReleaseExecute").bearer(&rig.token());
    assert_eq!(client.call(release).await.code(), Code::Ok);
    client
        .call(Rpc::spark("ExecutePlan"))
        .await
        .refused(Reason::TokenMissing);
    running.upload.send_data(request(b"finished"), true).unwrap();
    let reply = within("the running call", Reply::read(running.response)).await;
    assert_eq!(reply.unwrap().code(), Code::Ok);

    drop(std::hint::black_box(hog));
    within(
        "it is over",
        rig.until_metric("spark_proxy_overloaded", |n| n == 0.0),
    )
    .await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
}
