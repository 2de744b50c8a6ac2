//! Many concurrent calls: every limit causes an error, never a silent wait, and calls that end work
//! are not limited.

use crate::common::{Client, Raw, Reply, Rig, Rpc, Running, flags, kinds, within};
use session_core::{Reason, SessionId, Timestamp};
use session_proto::internal::Route;
use session_token::Claims;
use std::time::{Duration, Instant};
use test_support::fake_spark::{FakeSpark, Shape, request};
use tonic::Code;

const EXECUTE: &str = "/spark.connect.SparkConnectService/ExecutePlan";
const ENDING: [&str; 3] = ["Interrupt", "ReleaseExecute", "ReleaseSession"];

/// Starts a call that does not end.
async fn hang(client: &Client, token: &str) -> Running {
    let rpc = Rpc::execute(token).shape(Shape::Hang);
    let mut running = within("a stream", client.begin(&rpc)).await.unwrap();
    running.finish(request(b"go"));
    running
}

async fn refused(running: Running, reason: Reason) -> Reply {
    let reply = within("it is refused at once", Reply::read(running.response))
        .await
        .unwrap();
    reply.refused(reason);
    reply
}

/// Checks that calls that end work pass on this connection without waiting.
async fn ending_calls_pass(client: &Client, token: &str) {
    for method in ENDING {
        let began = Instant::now();
        let reply = client.call(Rpc::spark(method).bearer(token)).await;
        assert_eq!(reply.code(), Code::Ok, "{method}: {reply:?}");
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{method}: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_calls_of_one_connection_run_and_can_be_interrupted() {
    let rig = Rig::start().await;
    let (client, token) = (rig.client().await, rig.token());
    let mut running = Vec::new();
    for _ in 0..200 {
        running.push(hang(&client, &token).await);
    }
    within("all run", rig.spark.until(|seen| seen.requests.len() == 200)).await;
    ending_calls_pass(&client, &token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_limit_rejects_calls_except_those_that_end_work() {
    let rig = Rig::with(|config| config.limits.calls_per_session = 150).await;
    let (client, token) = (rig.client().await, rig.token());
    let mut running = Vec::new();
    for _ in 0..150 {
        running.push(hang(&client, &token).await);
    }
    within("they run", rig.spark.until(|seen| seen.requests.len() == 150)).await;
    for _ in 0..50 {
        refused(hang(&client, &token).await, Reason::QuotaExceeded).await;
    }
    ending_calls_pass(&client, &token).await;
    running.clear();
    within("there is room again", async {
        while client.call(Rpc::execute(&token)).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_limit_rejects_calls_except_those_that_end_work() {
    let rig = Rig::with(|config| {
        config.limits.calls_per_session = 8;
        config.limits.streams_per_connection = 20;
    })
    .await;
    // Like grpc-core: several sessions of one program share a connection.
    let client = rig.client().await;
    let mut tokens = Vec::new();
    for serial in 0..3 {
        let session = SessionId::generate(Timestamp::from_millis(9), serial);
        rig.routes.set(Route {
            session_id: session.to_string(),
            ..rig.route()
        });
        tokens.push(rig.sign(&Claims {
            sid: session,
            ..rig.claims()
        }));
    }
    let mut running = Vec::new();
    for n in 0..20 {
        running.push(hang(&client, &tokens[n % 3]).await);
    }
    within("they run", rig.spark.until(|seen| seen.requests.len() == 20)).await;
    let reply = refused(hang(&client, &tokens[2]).await, Reason::QuotaExceeded).await;
    let text = reply.status().message().to_owned();
    assert!(text.contains("limits.streams_per_connection"), "{text}");
    for token in &tokens {
        ending_calls_pass(&client, token).await;
    }
}

/// Frames of rejected calls can arrive after the error; they are no violation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rejected_calls_do_not_end_their_connection() {
    const CALLS: u32 = 1500;
    let rig = Rig::with(|config| config.limits.calls_per_session = 1).await;
    let token = rig.token();
    let client = rig.client().await;
    let _open = hang(&client, &token).await;
    within("it runs", rig.spark.until(|seen| seen.requests.len() == 1)).await;

    let mut raw = Raw::connect(rig.address, &[]).await.unwrap();
    let block = Raw::headers(EXECUTE, &token, &[]);
    let streams = || (1..2 * CALLS).step_by(2);
    for stream in streams() {
        raw.send(kinds::HEADERS, flags::END_HEADERS, stream, &block)
            .await
            .unwrap();
        // One after the other, like a client that retries.
        within("it is refused", async {
            while raw.next().await.expect("the connection continues").kind != kinds::HEADERS {}
        })
        .await;
    }
    for stream in streams() {
        raw.send(kinds::DATA, flags::END_STREAM, stream, &request(b"late"))
            .await
            .unwrap();
    }
    raw.send(kinds::PING, flags::NONE, 0, &[5; 8]).await.unwrap();
    within("the answer to the ping", async {
        loop {
            let frame = raw.next().await.expect("the connection continues");
            assert_ne!(frame.kind, kinds::GOAWAY, "{frame:?}");
            if frame.kind == kinds::PING && frame.payload == [5; 8] {
                break;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_does_not_wait_for_a_place_at_the_backend() {
    let rig = Rig::with(|config| {
        config.listen.workers = 1;
        config.backend.connections_per_pool = 1;
        config.backend.stream_window_bytes = 65_536;
        config.backend.connection_window_bytes = 4 * 65_536;
        config.backend.connect_timeout = Duration::from_secs(1);
    })
    .await;
    let (client, token) = (rig.client().await, rig.token());
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(hang(&client, &token).await);
    }
    within("they run", rig.spark.until(|seen| seen.requests.len() == 4)).await;
    // More work waits for a place, and ends with an error within the time limit.
    let waiting = hang(&client, &token).await;
    ending_calls_pass(&client, &token).await;
    refused(waiting, Reason::BackendUnavailable).await;
    assert_eq!(
        rig.spark.seen().connections,
        2,
        "one of them for calls that end work"
    );
    ending_calls_pass(&client, &token).await;
}

/// The stream limit of a server is received before the first call, which would otherwise queue
/// without an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_stream_limit_of_the_server_causes_more_connections() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    let spark = FakeSpark::start_with_streams(2).await.unwrap();
    let mut route = rig.route();
    route.version = 2;
    if let Some(backend) = &mut route.backend {
        backend.endpoint = spark.address().to_string();
    }
    rig.routes.set(route);
    let (client, token) = (rig.client().await, rig.token());
    let mut running = Vec::new();
    for _ in 0..9 {
        running.push(hang(&client, &token).await);
    }
    within("all run", spark.until(|seen| seen.requests.len() == 9)).await;
    ending_calls_pass(&client, &token).await;
}
