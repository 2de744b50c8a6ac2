//! Connections to compute: lost peers, and clients that do not read.

use crate::common::{Relay, Reply, Rig, Rpc, within};
use session_core::Reason;
use session_proto::internal::Route;
use std::net::SocketAddr;
use std::time::Duration;
use test_support::fake_spark::{Shape, request};
use tonic::Code;

const SHORT: Duration = Duration::from_millis(150);

/// A route to a shared server.
fn through(rig: &Rig, address: SocketAddr, engine: &str) -> Route {
    let mut route = dedicated_through(rig, address, engine);
    if let Some(backend) = &mut route.backend {
        backend.dedicated = false;
    }
    route
}

fn dedicated_through(rig: &Rig, address: SocketAddr, engine: &str) -> Route {
    let mut route = rig.route();
    route.version = 2;
    if let Some(backend) = &mut route.backend {
        backend.endpoint = address.to_string();
        backend.engine = engine.to_owned();
        backend.dedicated = true;
    }
    route
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_shared_server_ends_its_calls_and_new_calls_reconnect() {
    for engine in ["spark", "sail"] {
        let rig = Rig::with(|config| {
            config.listen.workers = 1;
            config.backend.silence = SHORT;
            config.backend.ping_timeout = 4 * SHORT;
        })
        .await;
        let relay = Relay::to(rig.spark.address()).await;
        rig.routes.set(through(&rig, relay.address, engine));
        let client = rig.client().await;
        // One call waits for its response, one receives it.
        let mut waiting = client.begin(&rig.rpc().shape(Shape::Hang)).await.unwrap();
        waiting.finish(request(b"go"));
        let mut streaming = client.begin(&rig.rpc().shape(Shape::HangAfterOne)).await.unwrap();
        streaming.finish(request(b"go"));
        let (_upload, streaming) = within("headers", streaming.head()).await.unwrap();
        within("both run", rig.spark.until(|seen| seen.requests.len() == 2)).await;
        relay.freeze();
        for reply in [
            within("the first ends", Reply::read(waiting.response)).await,
            within("the second ends", Reply::rest(streaming)).await,
        ] {
            reply.unwrap().refused(Reason::BackendLost);
        }
        assert_eq!(
            rig.metric("spark_proxy_pings_lost_total{peer=\"backend\"}").await,
            1.0
        );
        assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
        assert_eq!(rig.spark.seen().connections, 2);
    }
}

/// A busy engine is silent for minutes. Its provider observes whether it runs; the next generation
/// ends the calls on this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_dedicated_compute_is_not_lost_until_it_is_replaced() {
    for engine in ["spark", "sail"] {
        let rig = Rig::with(|config| {
            config.listen.workers = 1;
            config.backend.silence = SHORT;
            config.backend.ping_timeout = SHORT;
            // These calls show that time has passed.
            config.limits.ping_interval = SHORT;
        })
        .await;
        let relay = Relay::to(rig.spark.address()).await;
        rig.routes.set(dedicated_through(&rig, relay.address, engine));
        let client = rig.client().await;
        let mut waiting = client.begin(&rig.rpc().shape(Shape::Hang)).await.unwrap();
        waiting.finish(request(b"go"));
        within("it runs", rig.spark.until(|seen| seen.requests.len() == 1)).await;
        relay.freeze();
        let pings = "spark_proxy_pings_total{peer=\"client\"}";
        within("time passes", rig.until_metric(pings, |n| n >= 10.0)).await;
        assert_eq!(rig.metric("spark_proxy_pings_lost_total").await, 0.0);
        let mut replaced = dedicated_through(&rig, rig.spark.address(), engine);
        replaced.version = 3;
        replaced.generation = 2;
        rig.routes.announce(replaced);
        let reply = within("it ends", Reply::read(waiting.response)).await.unwrap();
        reply.refused(Reason::BackendLost);
        assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_backend_that_answers_pings_is_kept() {
    let rig = Rig::with(|config| {
        config.listen.workers = 1;
        config.backend.silence = SHORT;
        config.backend.ping_timeout = 50 * SHORT;
    })
    .await;
    rig.routes.set(through(&rig, rig.spark.address(), "sail"));
    // A call without data, and a client that does not read.
    let client = rig.client().await;
    let mut quiet = client.begin(&rig.rpc().shape(Shape::Count)).await.unwrap();
    quiet.upload.send_data(request(b"begun"), false).unwrap();
    let mut slow = client
        .begin(&rig.rpc().shape(Shape::Stream(32, 1 << 20)))
        .await
        .unwrap();
    slow.finish(request(b"go"));
    let (_upload, slow) = within("headers", slow.head()).await.unwrap();
    within(
        "it is pinged many times",
        rig.until_metric("spark_proxy_pings_total{peer=\"backend\"}", |n| n >= 8.0),
    )
    .await;
    assert!(rig.spark.seen().sent < 32 << 20, "the client reads after all");
    quiet.finish(request(b"done"));
    let reply = within("the quiet call", Reply::read(quiet.response))
        .await
        .unwrap();
    assert_eq!(reply.code(), Code::Ok);
    let reply = within("the slow call", Reply::rest(slow)).await.unwrap();
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 32 << 20));
    assert_eq!(rig.metric("spark_proxy_pings_lost_total").await, 0.0);
    assert_eq!(rig.spark.seen().connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spark_is_pinged_once_in_five_minutes_and_not_without_calls() {
    let rig = Rig::with(|config| {
        config.listen.workers = 1;
        config.backend.silence = SHORT;
        config.backend.ping_timeout = 50 * SHORT;
        // These calls show that time has passed.
        config.limits.ping_interval = SHORT;
        config.limits.idle_ping_interval = SHORT;
    })
    .await;
    rig.routes.set(through(&rig, rig.spark.address(), "spark"));
    let client = rig.client().await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    let pings = "spark_proxy_pings_total{peer=\"client\"}";
    within("time passes", rig.until_metric(pings, |n| n >= 4.0)).await;
    let to_backend = "spark_proxy_pings_total{peer=\"backend\"}";
    assert_eq!(rig.metric(to_backend).await, 0.0);
    let mut quiet = client.begin(&rig.rpc().shape(Shape::Count)).await.unwrap();
    quiet.upload.send_data(request(b"begun"), false).unwrap();
    let before = rig.metric(pings).await;
    within("time passes", rig.until_metric(pings, |n| n >= before + 8.0)).await;
    assert_eq!(rig.metric(to_backend).await, 1.0);
    quiet.finish(request(b"done"));
    let reply = within("the call", Reply::read(quiet.response)).await.unwrap();
    assert_eq!(reply.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_do_not_affect_others() {
    let rig = Rig::with(|config| {
        config.listen.workers = 1;
        config.backend.stream_window_bytes = 256 << 10;
        config.backend.connection_window_bytes = 1 << 20;
    })
    .await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let client = rig.client().await;
        let mut running = client
            .begin(&rig.rpc().shape(Shape::Stream(32, 1 << 20)))
            .await
            .unwrap();
        running.finish(request(b"go"));
        stalled.push((within("headers", running.head()).await.unwrap(), client));
    }
    // Until no byte is forwarded.
    let mut before = 0;
    within("all are stalled", async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let sent = rig.spark.seen().sent;
            if sent > 0 && sent == before {
                return;
            }
            before = sent;
        }
    })
    .await;
    let reply = rig.call(rig.rpc().shape(Shape::Stream(8, 1 << 20))).await;
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 8 << 20));
    // Four calls per connection, and one more connection for the call.
    assert_eq!(rig.spark.seen().connections, 6);
    // Stalled calls continue when they are read.
    let ((_upload, response), _client) = stalled.swap_remove(0);
    let reply = within("the rest", Reply::rest(response)).await.unwrap();
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 32 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_a_full_pool_is_limited() {
    let rig = Rig::with(|config| {
        config.listen.workers = 1;
        config.backend.stream_window_bytes = 1 << 20;
        config.backend.connection_window_bytes = 2 << 20;
        config.backend.connections_per_pool = 2;
        config.backend.connect_timeout = Duration::from_millis(500);
    })
    .await;
    let client = rig.client().await;
    let mut open = Vec::new();
    for count in 1..=4 {
        let mut running = client.begin(&rig.rpc().shape(Shape::Count)).await.unwrap();
        running.upload.send_data(request(b"x"), false).unwrap();
        within("it runs", rig.spark.until(|seen| seen.requests.len() == count)).await;
        open.push(running);
    }
    rig.call(rig.rpc()).await.refused(Reason::BackendUnavailable);
    assert!(rig.metric("spark_proxy_backend_pool_full_total").await >= 1.0);
    assert_eq!(rig.spark.seen().connections, 2);

    // A waiting call gets the place of an ended one.
    let waited = rig.metric("spark_proxy_backend_pool_full_total").await;
    let mut waiting = client.begin(&rig.rpc()).await.unwrap();
    waiting.finish(request(b"waits"));
    within(
        "it waits",
        rig.until_metric("spark_proxy_backend_pool_full_total", |n| n > waited),
    )
    .await;
    let mut ends = open.swap_remove(0);
    ends.upload.send_data(request(b"y"), true).unwrap();
    let reply = within("it ends", Reply::read(ends.response)).await.unwrap();
    assert_eq!(reply.code(), Code::Ok);
    let reply = within("the waiting one", Reply::read(waiting.response))
        .await
        .unwrap();
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(rig.spark.seen().connections, 2);
}

/// Apache Spark 4.1 never answers for an unknown operation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_interrupt_times_out() {
    let rig = Rig::with(|config| config.backend.interrupt_timeout = SHORT).await;
    let interrupt = Rpc::spark("Interrupt")
        .bearer(&rig.token())
        .shape(Shape::Hang)
        .body(request(b""));
    let reply = within("it ends", rig.call(interrupt)).await;
    assert_eq!(reply.code(), Code::DeadlineExceeded);
    assert!(reply.status().message().contains("did not answer the interrupt"));
    within(
        "the upstream stream is reset",
        rig.spark.until(|seen| seen.resets == 1),
    )
    .await;
}
