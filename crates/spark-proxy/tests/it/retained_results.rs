//! Results on Sail that are retained after the engine has ended: who receives them, and when they end.

use crate::common::{Rig, within};
use crate::held_streams::{
    BYTES, error_class, execute, execute_of, on_sail, read, reattach, release, results, sail, until,
    until_held,
};
use session_proto::internal::{ReportActivityRequest, Route};
use std::time::Duration;
use test_support::fake_spark::{OPERATION, Shape};
use tonic::Code;

/// Runs a query to its end; its result stays for a client whose connection was lost.
async fn delivered(rig: &Rig, token: &str) {
    let (rpc, body) = execute_of(token, OPERATION, Shape::Results(3, 10_000));
    assert_eq!(rig.call(rpc.body(body)).await.code(), Code::Ok);
    within(
        "it is retained",
        rig.until_metric(BYTES, |bytes| bytes > 30_000.0),
    )
    .await;
}

/// Without an open call of the session, nothing else checks its route.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_result_ends_with_its_token_and_its_compute() {
    for change in [
        (|route| Route {
            token_epoch: 2,
            ..route
        }) as fn(Route) -> Route,
        |route| Route {
            org_disabled: true,
            ..route
        },
        |route| Route {
            generation: 2,
            ..route
        },
    ] {
        let rig = sail(|_| {}).await;
        delivered(&rig, &rig.token()).await;
        rig.routes.announce(change(Route {
            version: 2,
            ..on_sail(rig.route())
        }));
        within("it is freed", rig.until_metric(BYTES, |bytes| bytes == 0.0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_result_outlives_a_change_of_its_route() {
    let rig = sail(|_| {}).await;
    let token = rig.token();
    delivered(&rig, &token).await;
    rig.routes.announce(Route {
        version: 2,
        ..on_sail(rig.route())
    });
    // Longer than the interval of checks.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let reply = rig.call(reattach(&token, None)).await;
    assert!(reply.body == results(0, 3, 10_000), "{reply:?}");
}

/// PySpark acknowledges a response when it reads it, which may be long after it received it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_result_waits_for_a_client_that_still_reads() {
    let rig = sail(|config| config.limits.held_stream_timeout = Duration::from_secs(2)).await;
    let token = rig.token();
    delivered(&rig, &token).await;
    let client = rig.client().await;
    for number in [0, 1] {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        release(&client, &token, until(number)).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let reply = rig.call(reattach(&token, Some(1))).await;
    assert!(reply.body == results(2, 3, 10_000), "{reply:?}");
    within("it is freed", rig.until_metric(BYTES, |bytes| bytes == 0.0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_a_retained_result_uses_the_session() {
    let rig = sail(|_| {}).await;
    let token = rig.token();
    delivered(&rig, &token).await;
    let client = rig.client().await;
    let last_activity = |reports: &[ReportActivityRequest]| {
        let sessions = reports.iter().flat_map(|report| &report.sessions);
        let times = sessions.filter_map(|session| session.last_activity_at);
        times.map(|at| (at.seconds, at.nanos)).max()
    };
    let reported = rig
        .routes
        .until_reported(|reports| last_activity(reports).is_some());
    within("the query is reported", reported).await;
    let before = last_activity(&rig.routes.reports());
    rig.clock.advance(Duration::from_secs(10));
    release(&client, &token, until(0)).await;
    let reported = rig
        .routes
        .until_reported(|reports| last_activity(reports) > before);
    within("the use is reported", reported).await;
}

/// The operation id is the client's choice, so another subject may choose the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_subject_does_not_displace_a_stream() {
    // More than the windows take, so that its end is not sent before the cut.
    const SIZE: usize = 100_000;
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let client = rig.client().await;
    let mut body = execute(&client, &token, Shape::Results(100, SIZE)).await;
    read(&mut body, 1).await;
    drop(body);
    until_held(&rig, 1.0).await;

    let mut other = rig.claims();
    other.sub = "sa|other".parse().unwrap();
    let other = rig.sign(&other);
    let (rpc, body) = execute_of(&other, OPERATION, Shape::Results(2, 10));
    let reply = rig.call(rpc.body(body)).await;
    assert!(reply.body == results(0, 2, 10), "{reply:?}");
    let reply = rig.call(reattach(&other, Some(0))).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");

    let reply = rig.call(reattach(&token, None)).await;
    assert!(reply.body == results(0, 100, SIZE), "{reply:?}");
}
