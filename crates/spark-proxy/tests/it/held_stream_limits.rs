//! Limits of the bytes that queries on Sail retain for clients that may return.

use crate::common::{Client, Rig, read_metric, within};
use crate::held_streams::{BYTES, error_class, execute_of, read, reattach, sail};
use h2::RecvStream;
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
