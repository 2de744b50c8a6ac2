//! Client connections: the client IP that limits count, and time limits of every phase.

use crate::common::{Client, Relay, Reply, Rig, Rpc, within};
use session_core::Reason;
use spark_proxy::config::Config;
use std::time::Duration;
use test_support::fake_spark::{Shape, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

const SHORT: Duration = Duration::from_millis(100);

fn trusting(config: &mut Config) {
    config.listen.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
}

/// A PROXY v2 header about TCP over IPv4, with a TLV.
fn header(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x11".to_vec();
    header.extend(source);
    header.extend([10, 0, 0, 1, 0x30, 0x39, 0x1f, 0x95]);
    header.extend([0x04, 0, 2, 0xaa, 0xbb]);
    header
}

/// A connection that starts with `first`.
async fn beginning(rig: &Rig, first: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(rig.address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(first).await.unwrap();
    tcp
}

async fn from(rig: &Rig, source: [u8; 4]) -> anyhow::Result<Client> {
    let client = Client::over(beginning(rig, &header(source)).await).await?;
    // The settings of the proxy may be missing; a call shows that it serves.
    client.try_call(Rpc::to("/grpc.health.v1.Health/Check")).await?;
    Ok(client)
}

/// Waits until this many connections were closed for this reason.
async fn refused(rig: &Rig, reason: &str, count: f64) {
    let metric = format!("spark_proxy_connections_refused_total{{reason=\"{reason}\"}}");
    within("it is counted", rig.until_metric(&metric, |n| n == count)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_of_a_trusted_proxy_is_read_in_any_chunks() {
    let rig = Rig::with(trusting).await;
    let accepted = Client::over(beginning(&rig, &header([192, 0, 2, 1])).await)
        .await
        .unwrap();
    assert_eq!(accepted.call(rig.rpc()).await.code(), Code::Ok);

    let mut tcp = beginning(&rig, b"").await;
    for byte in header([192, 0, 2, 1]) {
        tcp.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let bytes = Client::over(tcp).await.unwrap();
    assert_eq!(bytes.call(rig.rpc()).await.code(), Code::Ok);

    let local = Client::over(beginning(&rig, b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00").await)
        .await
        .unwrap();
    assert_eq!(local.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_without_a_valid_header_is_rejected() {
    let rig = Rig::with(|config| {
        trusting(config);
        config.limits.handshake = Duration::from_millis(500);
    })
    .await;
    for first in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\nPRI * HTTP/2.0\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\x00",
    ] {
        let mut tcp = beginning(&rig, first).await;
        let _ = within("it is closed", tcp.read_to_end(&mut Vec::new())).await;
    }
    refused(&rig, "proxy_protocol", 4.0).await;
    // An incomplete header is limited by the handshake timeout.
    let mut tcp = beginning(&rig, b"\r\n\r\n\0").await;
    let _ = within("it is closed", tcp.read_to_end(&mut Vec::new())).await;
    within(
        "it is counted",
        rig.until_metric("spark_proxy_handshakes_failed_total", |n| n == 1.0),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_of_an_untrusted_peer_is_rejected() {
    let rig = Rig::with(|config| {
        config.listen.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
        config.limits.connections_per_address = 2;
    })
    .await;
    assert!(from(&rig, [192, 0, 2, 1]).await.is_err());
    within(
        "it is counted",
        rig.until_metric("spark_proxy_handshakes_failed_total", |n| n == 1.0),
    )
    .await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_limited_by_client_ip_over_all_workers() {
    let rig = Rig::with(|config| {
        trusting(config);
        config.limits.connections_per_address = 3;
    })
    .await;
    let (a, b) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let mut places = Vec::new();
    for _ in 0..3 {
        places.push(from(&rig, a).await.unwrap());
    }
    assert!(from(&rig, a).await.is_err());
    refused(&rig, "per_ip_limit", 1.0).await;
    let other = from(&rig, b).await.unwrap();
    assert_eq!(other.call(rig.rpc()).await.code(), Code::Ok);
    places.pop();
    within("its place is free again", async {
        while from(&rig, a).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_client_is_dropped_and_its_call_reset() {
    let rig = Rig::with(|config| {
        config.limits.ping_interval = SHORT;
        config.limits.ping_timeout = 5 * SHORT;
        config.limits.idle_ping_interval = Duration::from_secs(100);
    })
    .await;
    // Before the response, and within one.
    for (index, shape) in [Shape::Hang, Shape::HangAfterOne].into_iter().enumerate() {
        let relay = Relay::to(rig.address).await;
        let client = Client::plain(relay.address).await.unwrap();
        let mut running = client.begin(&rig.rpc().shape(shape)).await.unwrap();
        running.finish(request(b"go"));
        within(
            "it arrives",
            rig.spark.until(|seen| seen.requests.len() == index + 1),
        )
        .await;
        relay.freeze();
        within("the reset", rig.spark.until(|seen| seen.resets == index + 1)).await;
        let lost = rig.metric("spark_proxy_pings_lost_total{peer=\"client\"}").await;
        assert_eq!(lost, (index + 1) as f64);
        within(
            "its place is free",
            rig.until_metric("spark_proxy_connections", |n| n == 0.0),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_client_without_calls_is_dropped_later() {
    let rig = Rig::with(|config| {
        config.limits.ping_interval = SHORT;
        config.limits.ping_timeout = 5 * SHORT;
        config.limits.idle_ping_interval = 3 * SHORT;
    })
    .await;
    let relay = Relay::to(rig.address).await;
    let client = Client::plain(relay.address).await.unwrap();
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    relay.freeze();
    within(
        "its place is free",
        rig.until_metric("spark_proxy_connections", |n| n == 0.0),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_client_that_answers_pings_keeps_its_call() {
    let rig = Rig::with(|config| {
        config.limits.ping_interval = SHORT;
        config.limits.ping_timeout = 50 * SHORT;
    })
    .await;
    let client = rig.client().await;
    let mut running = client.begin(&rig.rpc().shape(Shape::Count)).await.unwrap();
    within(
        "it is pinged many times",
        rig.until_metric("spark_proxy_pings_total{peer=\"client\"}", |n| n >= 10.0),
    )
    .await;
    running.finish(request(b"done"));
    let reply = within("the call", Reply::read(running.response)).await.unwrap();
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(rig.metric("spark_proxy_pings_lost_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_held_call_is_pinged() {
    let rig = Rig::with(|config| config.limits.ping_interval = SHORT).await;
    rig.routes.set(session_proto::internal::Route {
        status: session_proto::internal::RouteStatus::Pending.into(),
        backend: None,
        ..rig.route()
    });
    let client = rig.client().await;
    let mut held = client.begin(&rig.rpc()).await.unwrap();
    held.finish(request(b"go"));
    within(
        "it is pinged",
        rig.until_metric("spark_proxy_pings_total{peer=\"client\"}", |n| n >= 2.0),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aged_connection_accepts_no_new_calls_and_finishes_its_own() {
    let rig = Rig::with(|config| config.limits.connection_age = 3 * SHORT).await;
    let client = rig.client().await;
    let mut running = client.begin(&rig.rpc().shape(Shape::Count)).await.unwrap();
    running.upload.send_data(request(b"begun"), false).unwrap();
    within("it runs", rig.spark.until(|seen| seen.requests.len() == 1)).await;
    within(
        "it gets old",
        rig.until_metric("spark_proxy_connections_expired_total", |n| n == 1.0),
    )
    .await;
    within("no new calls on it", async {
        while client.begin(&rig.rpc()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    running.upload.send_data(request(b"finished"), true).unwrap();
    let reply = within("the running call", Reply::read(running.response))
        .await
        .unwrap();
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_long_headers_get_a_grpc_status() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    let rpc = |bytes: usize| rig.rpc().header("x-padding", &"x".repeat(bytes));
    assert_eq!(client.call(rpc(14 << 10)).await.code(), Code::Ok);
    for bytes in [16 << 10, 60 << 10, 70 << 10, 250 << 10] {
        let reply = client.call(rpc(bytes)).await;
        reply.refused(Reason::InvalidArgument);
        assert!(
            reply.status().message().contains("limits.header_list_bytes"),
            "{reply:?}"
        );
    }
    assert_eq!(rig.spark.seen().requests.len(), 1);
    // The connection continues.
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
}
