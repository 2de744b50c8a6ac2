//! A connection without a valid token is closed after `limits.first_token`, whatever it carries, and
//! a drain does not wait for it.

use crate::common::{Client, Raw, Reply, Rig, Rpc, Running, flags, kinds, within};
use session_core::Reason;
use session_proto::internal::{RevokedToken, RouteStatus};
use spark_proxy::config::LimitConfig;
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, framed, request};
use tonic::Code;

const TIME: Duration = Duration::from_millis(500);
const HEALTH: &str = "/grpc.health.v1.Health/Check";

async fn rig() -> Rig {
    Rig::with(|config| config.limits.first_token = TIME).await
}

/// Checks that the connection ends, and not before its time limit.
async fn closes(raw: &mut Raw, began: Instant) {
    assert_eq!(
        within("it is closed", raw.ended()).await,
        Some(0),
        "with a GOAWAY"
    );
    assert!(began.elapsed() >= TIME, "{:?}", began.elapsed());
}

/// A health check whose request does not end.
async fn unfinished_check(client: &Client) -> Running {
    within("a stream", client.begin(&Rpc::to(HEALTH))).await.unwrap()
}

/// With the defaults such a connection ends within 30 s, its handshakes included.
#[test]
fn the_default_limits_are_short() {
    let limits = LimitConfig::default();
    assert!(limits.handshake + limits.first_token <= Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_valid_token_is_closed() {
    let rig = rig().await;
    let began = Instant::now();
    let mut idle = Raw::connect(rig.address, &[]).await.unwrap();
    closes(&mut idle, began).await;

    let began = Instant::now();
    let mut checking = Raw::connect(rig.address, &[]).await.unwrap();
    let block = Raw::headers(HEALTH, "x", &[]);
    checking
        .send(kinds::HEADERS, flags::END_HEADERS, 1, &block)
        .await
        .unwrap();
    closes(&mut checking, began).await;

    // Invalid tokens, and a revoked one that verifies.
    let claims = rig.claims();
    let revoked = rig.sign(&claims);
    let mut route = rig.route();
    route.revoked_tokens.push(RevokedToken {
        token_id: claims.jti.to_string(),
        until: None,
    });
    rig.routes.set(route);
    for (token, reason) in [
        ("nonsense", Reason::TokenMalformed),
        (revoked.as_str(), Reason::TokenRevoked),
    ] {
        let client = rig.client().await;
        let began = Instant::now();
        client.call(Rpc::execute(token)).await.refused(reason);
        within("it is closed", async {
            while client.begin(&Rpc::execute(token)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert!(began.elapsed() >= TIME / 2, "{:?}", began.elapsed());
    }
    let closed = "spark_proxy_connections_refused_total{reason=\"no_valid_token\"}";
    within("all are counted", rig.until_metric(closed, |n| n == 4.0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_valid_token_keeps_the_connection() {
    let rig = rig().await;
    let client = rig.client().await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    tokio::time::sleep(3 * TIME).await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    // A held call has shown a valid token too.
    let mut route = rig.route();
    route.version = 2;
    route.status = RouteStatus::Pending.into();
    route.backend = None;
    rig.routes.announce(route);
    let client = rig.client().await;
    let mut held = client.begin(&rig.rpc()).await.unwrap();
    held.finish(request(b"go"));
    tokio::time::sleep(3 * TIME).await;
    rig.routes.announce(session_proto::internal::Route {
        version: 3,
        ..rig.route()
    });
    let reply = within("its answer", Reply::read(held.response)).await.unwrap();
    assert_eq!(reply.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_route_request_does_not_end_its_connection() {
    let rig = rig().await;
    rig.routes.slow_answers(3 * TIME);
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_has_a_time_limit() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    let reply = within("it ends", Reply::read(unfinished_check(&client).await.response));
    let mut finished = unfinished_check(&client).await;
    finished.finish(framed(b""));
    let finished = Reply::read(finished.response).await.unwrap();
    assert_eq!(finished.code(), Code::Ok);
    assert_eq!(reply.await.unwrap().code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_wait_for_connections_without_a_token() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    let _unfinished = unfinished_check(&client).await;
    let idle = Raw::connect(rig.address, &[]).await.unwrap();
    // Running calls continue.
    let runs = rig.client().await;
    let rpc = rig.rpc().shape(Shape::HangAfterOne);
    let mut running = runs.begin(&rpc).await.unwrap();
    running.finish(request(b"go"));
    let running = within("headers", running.head()).await.unwrap();
    rig.shutdown.stop();
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(running);
    drop(runs);
    let began = Instant::now();
    rig.stopped().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop((idle, client));
}
