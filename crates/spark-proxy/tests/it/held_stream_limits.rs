//! Limits of the bytes that queries on Sail retain for clients that may return.

use crate::common::{Client, Rig, read_metric, within};
use crate::held_streams::{
    BYTES, error_class, execute, execute_of, read, reattach, release, results, sail, until_held,
};
use h2::RecvStream;
use session_proto::spark::release_execute_request::{Release, ReleaseAll};
use std::time::Duration;
use test_support::fake_spark::{Shape, result};
use tonic::Code;

const MIB: usize = 1 << 20;

fn operation(number: usize) -> String {
    format!("{number:08x}-7654-3210-fedc-ba9876543210")
}

/// Starts a query with an operation of its own and returns its response.
async fn start(client: &Client, token: &str, number: usize, shape: Shape) -> RecvStream {
    let (rpc, body) = execute_of(token, &operation(number), shape);
    let mut call = client.begin(&rpc).await.unwrap();
    call.finish(body);
    within("headers", call.head()).await.unwrap().1.into_body()
}

/// Runs a query with an operation of its own to its end.
async fn run(rig: &Rig, token: &str, number: usize, shape: Shape) {
    let (rpc, body) = execute_of(token, &operation(number), shape);
    assert_eq!(rig.call(rpc.body(body)).await.code(), Code::Ok);
}

/// Clients that acknowledge nothing retain no more together than the limit of their session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_streams_share_the_limit_of_their_session() {
    const SIZE: usize = 100_000;
    const LIMIT: usize = 2 * MIB;
    let rig = sail(|config| {
        config.limits.unacknowledged_bytes_per_stream = MIB;
        config.limits.unacknowledged_bytes_per_session = LIMIT;
    })
    .await;
    let token = rig.token();
    let mut open = Vec::new();
    for number in 0..5 {
        let client = rig.client().await;
        let mut body = start(&client, &token, number, Shape::ResultsThenHang(20, SIZE)).await;
        read(&mut body, 20 * result(0, SIZE).len()).await;
        open.push(body);
    }
    let retained = rig.metric(BYTES).await;
    assert!(retained <= LIMIT as f64, "{retained}");
    assert!(retained >= LIMIT as f64 / 2.0, "{retained}");
}

/// Initial metadata is counted, and trailers are cut to what clients accept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_and_trailers_of_a_retained_result_are_bounded() {
    const HEAVY: usize = 400 << 10;
    let rig = sail(|_| {}).await;
    run(&rig, &rig.token(), 0, Shape::HeavyResult(HEAVY)).await;
    within(
        "the headers are counted",
        rig.until_metric(BYTES, |bytes| bytes >= HEAVY as f64),
    )
    .await;
    let retained = rig.metric(BYTES).await;
    assert!(retained < HEAVY as f64 + 64.0 * 1024.0, "{retained}");
}

/// Results that their clients probably have leave a quarter of each limit to streams that are needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delivered_results_give_way_before_a_limit_is_reached() {
    const LIMIT: usize = 4 * MIB;
    let rig = sail(|config| config.limits.unacknowledged_bytes_per_session = LIMIT).await;
    let token = rig.token();
    for number in 0..8 {
        run(&rig, &token, number, Shape::Results(5, 100_000)).await;
    }
    within(
        "results give way",
        rig.until_metric(BYTES, |bytes| bytes <= 0.75 * LIMIT as f64),
    )
    .await;
    assert!(rig.metric(BYTES).await >= 0.4 * LIMIT as f64, "not all of them");
}

/// A client that does not read its retained result does not keep what was sent of it either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_client_gives_back_what_was_sent() {
    const LIMIT: usize = 4 * MIB;
    let rig = sail(|config| config.limits.unacknowledged_bytes_per_session = LIMIT).await;
    let token = rig.token();
    let client = rig.client().await;
    let (rpc, body) = execute_of(
        &token,
        test_support::fake_spark::OPERATION,
        Shape::Results(20, 100_000),
    );
    assert_eq!(client.call(rpc.body(body)).await.code(), Code::Ok);
    // The client takes one window of the result, and no more.
    let rpc = reattach(&token, None);
    let mut call = client.begin(&rpc).await.unwrap();
    call.finish(rpc.body);
    let (_upload, _response) = within("headers", call.head()).await.unwrap();
    within(
        "all is retained",
        rig.until_metric(BYTES, |bytes| bytes > 2_000_000.0),
    )
    .await;
    let other = rig.client().await;
    let mut body = start(&other, &token, 1, Shape::ResultsThenHang(17, 100_000)).await;
    read(&mut body, 1).await;
    drop(body);
    until_held(&rig, 1.0).await;
    let sent: usize = [results(0, 20, 100_000).len(), 17 * result(0, 100_000).len()]
        .iter()
        .sum();
    within("all is read", rig.spark.until(|seen| seen.sent >= sent)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    within(
        "sent bytes are released",
        rig.until_metric(BYTES, |bytes| bytes <= 0.75 * LIMIT as f64),
    )
    .await;
    let retained = rig.metric(BYTES).await;
    assert!(
        retained > 2_500_000.0,
        "what was not sent is retained: {retained}"
    );
}

/// What a stopped stream had not read counts no longer once it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_continues_has_nothing_unread() {
    const LIMIT: usize = 3 * MIB;
    let rig = sail(|config| {
        config.limits.unacknowledged_bytes_per_session = LIMIT;
        // One window and a half.
        config.limits.unread_bytes_per_session = MIB + MIB / 2;
    })
    .await;
    let token = rig.token();
    let clients = [rig.client().await, rig.client().await];
    // The first stream takes the limit of the session, which stops the second one.
    let mut body = execute(&clients[0], &token, Shape::ResultsThenHang(25, 100_000)).await;
    read(&mut body, 1).await;
    drop(body);
    until_held(&rig, 1.0).await;
    within("it is read", rig.until_metric(BYTES, |bytes| bytes > 2_400_000.0)).await;
    let mut body = start(&clients[1], &token, 1, Shape::ResultsThenHang(30, 100_000)).await;
    read(&mut body, 1).await;
    drop(body);
    until_held(&rig, 2.0).await;
    // Unread bytes are counted at intervals.
    tokio::time::sleep(Duration::from_millis(700)).await;
    release(&clients[0], &token, Release::ReleaseAll(ReleaseAll {})).await;
    until_held(&rig, 1.0).await;
    within(
        "the second continues",
        rig.until_metric(BYTES, |bytes| bytes > 1_500_000.0),
    )
    .await;

    // A client that does not read has the session's share of unread bytes for itself.
    let slow = rig.client().await;
    let mut body = start(&slow, &token, 2, Shape::Results(100, 100_000)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all = results(0, 100, 100_000);
    assert!(read(&mut body, all.len()).await == all);
}

/// The engine is asked only for encodings that a stream can be resumed with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sail_is_asked_for_gzip_at_most() {
    let rig = sail(|_| {}).await;
    let token = rig.token();
    for (number, (sent, expected)) in [
        (Some("identity, deflate, gzip, zstd"), Some("identity,gzip")),
        (Some("zstd"), Some("identity")),
        (Some("gzip"), Some("gzip")),
        (None, None),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut rpc, body) = execute_of(&token, &operation(number), Shape::Results(1, 10));
        if let Some(sent) = sent {
            rpc = rpc.header("grpc-accept-encoding", sent);
        }
        assert_eq!(rig.call(rpc.body(body)).await.code(), Code::Ok);
        let seen = rig.spark.seen();
        let (_, headers) = seen.requests.last().unwrap();
        let accepted = headers.get("grpc-accept-encoding");
        let accepted = accepted.map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(accepted.as_deref(), expected, "{sent:?}");
    }
    let text = rig.get("/metrics").await.1;
    assert_eq!(read_metric(&text, "spark_proxy_reattaches_refused_total"), 0.0);
    let reply = rig.call(reattach(&token, Some(7))).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");
}
