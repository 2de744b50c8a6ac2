//! Memory of the proxy: messages of 128 MiB in both directions, and cached tokens. The proxy is a
//! process of its own, so that only its memory counts.

use crate::common;
use crate::common::{Client, OwnProcess, Rpc, http_get, read_metric, send, within};
use crate::held_streams::{ABANDONED, BYTES, HELD, execute_of, on_sail, read, reattach, results};
use prost::Message as _;
use session_core::Reason;
use session_proto::internal::{Route, RouteStatus};
use session_proto::spark::ReattachExecuteRequest;
use std::time::Duration;
use test_support::fake_spark::{SPARK_SESSION, Shape, framed, request};
use tonic::Code;

const MESSAGE: usize = 128 << 20;
const MAX_MIB: u64 = 40;
/// Streams that are cut.
const STREAMS: usize = 500;
/// Size of a message of a result.
const RESULT: usize = 50_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_128_mib_pass_in_little_memory() {
    let proxy = OwnProcess::start(|_| {}).await;
    let rpc = |shape| proxy.rpc().shape(shape);
    let client = Client::plain(proxy.address).await.unwrap();

    // Up: one message.
    let mut running = client.begin(&rpc(Shape::Count)).await.unwrap();
    within(
        "the upload",
        send(&mut running.upload, request(&vec![7; MESSAGE])),
    )
    .await
    .unwrap();
    running.finish(bytes::Bytes::new());
    let reply = within("the count", common::Reply::read(running.response))
        .await
        .unwrap();
    let count: usize = std::str::from_utf8(&reply.body[5..]).unwrap().parse().unwrap();
    assert!((MESSAGE..MESSAGE + 200).contains(&count), "{count}");
    // Down: one message.
    let reply = client.call(rpc(Shape::Stream(1, MESSAGE))).await;
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, MESSAGE));
    // Down: a stream of large messages, read in pieces.
    let mut running = client.begin(&rpc(Shape::Stream(512, 1 << 20))).await.unwrap();
    running.finish(request(b"go"));
    let (_upload, response) = within("headers", running.head()).await.unwrap();
    let mut body = response.into_body();
    let mut count = 0;
    while let Some(data) = within("data", body.data()).await {
        let data = data.unwrap();
        count += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(count, 512 << 20);
    let peak = proxy.peak_mib();
    println!("peak memory of the proxy: {peak} MiB");
    assert!(peak <= MAX_MIB, "the proxy took {peak} MiB");
}

/// The spelling of the header does not multiply cached tokens, and tokens of closed sessions are not
/// cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spellings_of_a_token_are_cached_once() {
    const SPELLINGS: usize = 4000;
    let proxy = OwnProcess::start(|config| config.limits.calls_per_second_per_org = 0).await;
    let client = Client::plain(proxy.address).await.unwrap();
    let token = proxy.token();
    let spelled = |number: usize| {
        let bearer: String = "bearer"
            .chars()
            .enumerate()
            .map(|(place, letter)| match number >> place & 1 {
                0 => letter,
                _ => letter.to_ascii_uppercase(),
            })
            .collect();
        let spaces = " ".repeat(10_000 + number);
        Rpc::spark("Config").header("authorization", &format!("{bearer}{spaces}{token}"))
    };
    let flood = async |code| {
        for number in 0..SPELLINGS {
            let reply = client.call(spelled(number)).await;
            assert!(
                reply.code() == code || reply.code() == Code::ResourceExhausted,
                "{reply:?}"
            );
        }
    };
    flood(Code::Ok).await;
    let active = proxy.peak_mib();
    proxy.routes.announce(Route {
        status: RouteStatus::Closed.into(),
        version: 2,
        backend: None,
        ..proxy.route()
    });
    within("it is closed", async {
        while client.call(spelled(0)).await.code() == Code::Ok {}
    })
    .await;
    client.call(spelled(0)).await.refused(Reason::SessionClosed);
    flood(Code::FailedPrecondition).await;
    let closed = proxy.peak_mib();
    println!("peak memory of the proxy: {active} MiB, of a closed session {closed} MiB");
    assert!(closed <= MAX_MIB, "the proxy took {closed} MiB");
}

/// 500 clients leave in the middle of results that fit into the limits: all are held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_streams_of_500_clients_stay_within_the_memory_limits() {
    let (held, _proxy) = hold_streams(Shape::ResultsThenHang(2, RESULT)).await;
    assert!(held >= 490.0, "{held}");
}

/// Cuts 500 results; returns how many are held. The held bytes stay within the limits, and so does the
/// memory of the process.
async fn hold_streams(shape: Shape) -> (f64, OwnProcess) {
    const LIMIT: usize = 64 << 20;
    let proxy = OwnProcess::start(|config| {
        let limits = &mut config.limits;
        limits.unacknowledged_bytes_per_session = LIMIT;
        limits.unread_bytes_per_session = LIMIT;
    })
    .await;
    proxy.routes.set(on_sail(proxy.route()));
    let token = proxy.token();
    let mut client = Client::plain(proxy.address).await.unwrap();
    let metric = async |name: &str| read_metric(&http_get(proxy.admin, "/metrics").await.1, name);
    let begun = proxy.peak_mib();
    let mut reading = Vec::new();
    for number in 0..STREAMS {
        // A connection has a window for a few streams that are not read; it is cut with them.
        if number % 2 == 0 {
            reading.clear();
            client = Client::plain(proxy.address).await.unwrap();
        }
        let operation = format!("{number:08x}-7654-3210-fedc-ba9876543210");
        let (rpc, body) = execute_of(&token, &operation, shape);
        let mut call = client.begin(&rpc).await.unwrap();
        call.finish(body);
        let (_upload, response) = within("headers", call.head()).await.unwrap();
        let mut body = response.into_body();
        read(&mut body, 1).await;
        reading.push(body);
    }
    reading.clear();
    drop(client);
    within("all are held or ended", async {
        while metric(HELD).await + metric(ABANDONED).await < STREAMS as f64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    })
    .await;
    let (held, bytes) = (metric(HELD).await, metric(BYTES).await);
    let peak = proxy.peak_mib();
    println!(
        "{held} streams held with {:.1} MiB; peak memory {peak} MiB, before {begun} MiB",
        bytes / f64::from(1 << 20)
    );
    // A frame that has arrived is kept.
    assert!(bytes <= (LIMIT + (64 << 10)) as f64, "{bytes}");
    let max = begun + 2 * (LIMIT as u64 >> 20) + 40;
    assert!(peak <= max, "the proxy took {peak} MiB");
    (held, proxy)
}

/// 500 clients leave in the middle of results that are larger than the limits together: what has no
/// room ends with an error, and what was held is complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_streams_beyond_the_memory_limits_end() {
    const MESSAGES: usize = 2000;
    let (held, proxy) = hold_streams(Shape::Results(MESSAGES, RESULT)).await;
    assert!((3.0..490.0).contains(&held), "{held}");
    let (token, client) = (proxy.token(), Client::plain(proxy.address).await.unwrap());
    let mut exact = 0;
    for number in 0..STREAMS {
        let request = ReattachExecuteRequest {
            session_id: SPARK_SESSION.to_owned(),
            operation_id: format!("{number:08x}-7654-3210-fedc-ba9876543210"),
            ..ReattachExecuteRequest::default()
        };
        let rpc = reattach(&token, None).body(framed(&request.encode_to_vec()));
        if exact == 3 {
            break;
        }
        let reply = client.call(rpc).await;
        if reply.code() == Code::Ok {
            assert!(reply.body == results(0, MESSAGES, RESULT), "{number}");
            exact += 1;
        } else {
            reply.refused(Reason::OperationLost);
        }
    }
    assert!(exact > 0);
}
