//! A message of 128 MiB passes both ways through a proxy that stays small. The
//! proxy is a process of its own here, so that only its own memory counts.

#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "helpers of tests")]

mod common;

use common::{Client, OwnProcess, send, within};
use test_support::fake_spark::{Shape, request};
use tonic::Code;

const MESSAGE: usize = 128 << 20;
const MOST_MIB: u64 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_128_mib_pass_through_a_small_proxy() {
    let proxy = OwnProcess::start(|_| {}).await;
    let ask = |shape| proxy.ask().shape(shape);
    let client = Client::plain(proxy.address).await.unwrap();

    // Up: one message.
    let mut running = client.begin(&ask(Shape::Count)).await.unwrap();
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
    let reply = client.call(ask(Shape::Stream(1, MESSAGE))).await;
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, MESSAGE));
    // Down, a whole stream of large ones, read in pieces.
    let mut running = client.begin(&ask(Shape::Stream(512, 1 << 20))).await.unwrap();
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
    assert!(peak <= MOST_MIB, "the proxy took {peak} MiB");
}
