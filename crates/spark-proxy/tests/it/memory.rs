//! Memory of the proxy: messages of 128 MiB in both directions, and cached tokens. The proxy is a
//! process of its own, so that only its memory counts.

use crate::common;
use crate::common::{Client, OwnProcess, Rpc, send, within};
use session_core::Reason;
use session_proto::internal::{Route, RouteStatus};
use test_support::fake_spark::{Shape, request};
use tonic::Code;

const MESSAGE: usize = 128 << 20;
const MAX_MIB: u64 = 40;

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
