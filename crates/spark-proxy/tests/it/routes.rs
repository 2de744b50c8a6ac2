//! Routes: requested once, cached while valid, and used while session-manager is slow, wrong or
//! unreachable.

use crate::common;
use crate::common::{Relay, Reply, Rig, Rpc, within};
use session_core::Reason;
use session_proto::internal::{Route, RouteStatus};
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, request};
use tonic::{Code, Status};

fn with_status(route: Route, status: RouteStatus, version: u64) -> Route {
    Route {
        status: status.into(),
        version,
        backend: None,
        ..route
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_first_calls_share_one_route_request() {
    let rig = Rig::with(|config| config.limits.held_calls_per_session = 100).await;
    let route = rig.route();
    rig.routes
        .set(with_status(route.clone(), RouteStatus::Pending, 1));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = rig.client().await;
        for _ in 0..25 {
            let (client, rpc) = (client.clone(), rig.rpc());
            calls.spawn(async move { client.call(rpc).await });
        }
    }
    rig.routes.until_asked(2).await;
    within(
        "all are held",
        rig.until_metric("spark_proxy_held_calls", |n| n == 100.0),
    )
    .await;
    assert!(rig.spark.seen().requests.is_empty(), "held while it warms");
    // The change is announced after the wake-up, also on a slow machine.
    rig.routes.until_asked(2).await;
    rig.routes.announce(Route { version: 2, ..route });
    while let Some(reply) = within("they end", calls.join_next()).await {
        assert_eq!(reply.unwrap().code(), Code::Ok);
    }
    let asked = rig.routes.asked();
    let wakes: Vec<bool> = asked.iter().map(|asked| asked.wake).collect();
    // On a busy machine a call can arrive just after a flight ended, and the answer to the wake-up can
    // already contain the change.
    assert!(
        wakes.first() == Some(&false) && (2..=5).contains(&wakes.len()),
        "one lookup, one wake-up and a few for the change: {wakes:?}"
    );
    assert!(
        asked.iter().all(|asked| asked.wait.is_none()),
        "no question waits at session-manager"
    );
    assert!(
        rig.spark.seen().connections <= 2 * 50_usize.div_ceil(16),
        "16 calls to a connection, 50 calls to a worker: {:?}",
        rig.spark.seen().connections
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_ends_with_warming_and_continues_without_its_first_caller() {
    let rig = Rig::with(|config| config.routes.hold_max = Duration::from_millis(300)).await;
    rig.routes.set(with_status(rig.route(), RouteStatus::Pending, 1));
    let reply = rig.call(rig.rpc()).await;
    reply.refused(Reason::SessionWarming);
    let retry = tonic_types::StatusExt::get_details_retry_info(&reply.status()).unwrap();
    assert!(retry.retry_delay.is_some());
    // The client's own deadline is an error of its own.
    assert_eq!(
        rig.call(rig.rpc().header("grpc-timeout", "50m")).await.code(),
        Code::DeadlineExceeded
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_continues_when_its_caller_disconnects() {
    let rig = Rig::start().await;
    let route = rig.route();
    rig.routes.set(with_status(route.clone(), RouteStatus::Idle, 1));
    let client = rig.client().await;
    let mut running = client.begin(&rig.rpc()).await.unwrap();
    running.finish(request(b"go"));
    rig.routes.until_asked(2).await;
    drop(running);
    within(
        "the call ends",
        rig.until_metric("spark_proxy_calls_total", |n| n == 1.0),
    )
    .await;
    assert!(rig.routes.asked()[1].wake, "the request wakes the session");
    rig.routes.announce(Route { version: 2, ..route });
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    assert!(
        rig.routes.asked().len() <= 4,
        "no requests for disconnected callers"
    );
}

/// Other calls of a warming session are held like the first one: their route requests must not wait
/// for the wake-up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_during_warming_are_held() {
    let rig = Rig::with(|config| config.listen.workers = 2).await;
    let route = rig.route();
    rig.routes.set(with_status(route.clone(), RouteStatus::Idle, 1));
    let mut calls = tokio::task::JoinSet::new();
    let call = |calls: &mut tokio::task::JoinSet<_>, client: common::Client| {
        let rpc = rig.rpc();
        calls.spawn(async move { client.call(rpc).await });
    };
    call(&mut calls, rig.client().await);
    rig.routes.until_asked(2).await;
    // The wake-up is announced: the routes of the workers are outdated.
    rig.routes
        .announce(with_status(route.clone(), RouteStatus::Pending, 2));
    for _ in 0..6 {
        call(&mut calls, rig.client().await);
    }
    within(
        "all are held",
        rig.until_metric("spark_proxy_held_calls", |n| n == 7.0),
    )
    .await;
    rig.routes.announce(Route { version: 3, ..route });
    while let Some(reply) = within("they end", calls.join_next()).await {
        assert_eq!(reply.unwrap().code(), Code::Ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_ends_calls_at_every_worker_and_is_cached() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    let mut running = client.begin(&rig.rpc().shape(Shape::HangAfterOne)).await.unwrap();
    running.finish(request(b"go"));
    let (_upload, response) = within("headers", running.head()).await.unwrap();
    let mut hanging = client.begin(&rig.rpc().shape(Shape::Hang)).await.unwrap();
    hanging.finish(request(b"go"));
    within("both run", rig.spark.until(|seen| seen.requests.len() == 2)).await;

    let closed = Instant::now();
    rig.routes
        .announce(with_status(rig.route(), RouteStatus::Closed, 2));
    let reply = within("the stream ends", Reply::rest(response)).await.unwrap();
    reply.refused(Reason::SessionClosed);
    assert!(!reply.trailers_only && !reply.body.is_empty());
    let reply = within("the call ends", Reply::read(hanging.response))
        .await
        .unwrap();
    reply.refused(Reason::SessionClosed);
    assert!(reply.trailers_only);
    assert!(closed.elapsed() < Duration::from_secs(5));
    within("both were reset", rig.spark.until(|seen| seen.resets == 2)).await;

    let asked = rig.routes.asked().len();
    for _ in 0..5 {
        rig.call(rig.rpc()).await.refused(Reason::SessionClosed);
    }
    assert_eq!(rig.routes.asked().len(), asked, "the end is cached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_failed_and_unknown_sessions_have_their_reasons() {
    for (status, reason) in [
        (RouteStatus::Closed, Reason::SessionClosed),
        (RouteStatus::Failed, Reason::SessionFailed),
    ] {
        let rig = Rig::start().await;
        let mut route = with_status(rig.route(), status, 2);
        route.status_message = "the image cannot be pulled".to_owned();
        rig.routes.set(route);
        let reply = rig.call(rig.rpc()).await;
        reply.refused(reason);
        let told = reply.status().message().contains("the image cannot be pulled");
        assert_eq!(told, reason == Reason::SessionFailed);
    }
    let rig = Rig::start().await;
    let mut claims = rig.claims();
    claims.sid = session_core::SessionId::generate(session_core::Timestamp::from_millis(5), 5);
    rig.call(Rpc::execute(&rig.sign(&claims)))
        .await
        .refused(Reason::SessionClosed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_ends_running_streams_with_its_cause() {
    let rig = Rig::start().await;
    let mut running = rig
        .client()
        .await
        .begin(&rig.rpc().shape(Shape::HangAfterOne))
        .await
        .unwrap();
    running.finish(request(b"go"));
    let (_upload, response) = within("headers", running.head()).await.unwrap();
    let mut failed = with_status(rig.route(), RouteStatus::Failed, 2);
    failed.status_message = "restarted too often".to_owned();
    rig.routes.announce(failed);
    let reply = within("the stream ends", Reply::rest(response)).await.unwrap();
    reply.refused(Reason::SessionFailed);
    assert!(reply.status().message().contains("restarted too often"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_without_heartbeats_is_lost() {
    let rig = Rig::with(|config| config.routes.stale_if_unreachable = Duration::ZERO).await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let asked = rig.routes.asked().len();
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    assert_eq!(rig.routes.asked().len(), asked, "heartbeats keep it");
    rig.routes.be_silent(true);
    let silent = Instant::now();
    within(
        "it is noticed",
        rig.until_metric("spark_proxy_route_watch_connected", |n| n == 0.0),
    )
    .await;
    let noticed = silent.elapsed();
    assert!(
        (2500..5500).contains(&noticed.as_millis()),
        "{noticed:?} after the last heartbeat"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_to_session_manager_is_not_trusted() {
    let mut relay = None;
    let rig = Rig::with(|config| {
        config.routes.stale_if_unreachable = Duration::ZERO;
        let target = config.manager.uri.trim_start_matches("http://").parse().unwrap();
        let started =
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(Relay::to(target)));
        config.manager.uri = format!("http://{}", started.address);
        relay = Some(started);
    })
    .await;
    let token = rig.token();
    let client = rig.client().await;
    assert_eq!(client.call(Rpc::execute(&token)).await.code(), Code::Ok);
    relay.unwrap().freeze();
    let frozen = Instant::now();
    // The announcement is lost.
    rig.routes
        .announce(with_status(rig.route(), RouteStatus::Closed, 2));
    let refused = within("calls end", async {
        loop {
            let reply = client.call(Rpc::execute(&token)).await;
            if reply.code() != Code::Ok {
                return reply;
            }
        }
    })
    .await;
    println!(
        "routes were trusted for {:.1?} after the freeze",
        frozen.elapsed()
    );
    assert!(frozen.elapsed() < Duration::from_secs(12));
    refused.refused(Reason::ControlPlaneUnavailable);
    within("a new connection is made", async {
        while client.call(Rpc::execute(&token)).await.code() == Code::Unavailable {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    client
        .call(Rpc::execute(&token))
        .await
        .refused(Reason::SessionClosed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_sessions_work_while_session_manager_is_unreachable() {
    let rig = Rig::start().await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    rig.routes.go_away();
    within(
        "it is noticed",
        rig.until_metric("spark_proxy_route_watch_connected", |n| n == 0.0),
    )
    .await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    let mut claims = rig.claims();
    claims.sid = session_core::SessionId::generate(session_core::Timestamp::from_millis(5), 5);
    rig.call(Rpc::execute(&rig.sign(&claims)))
        .await
        .refused(Reason::ControlPlaneUnavailable);
    // The route is no longer fresh: a request fails, and the stale route is used.
    tokio::time::sleep(Duration::from_millis(5200)).await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);

    rig.routes.come_back().await.unwrap();
    within(
        "it watches again",
        rig.until_metric("spark_proxy_route_watch_connected", |n| n == 1.0),
    )
    .await;
    let asked = rig.routes.asked().len();
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    assert_eq!(
        rig.routes.asked().len(),
        asked + 1,
        "all routes are requested again after a gap"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_stale_if_unreachable_rejects_calls() {
    let rig = Rig::with(|config| config.routes.stale_if_unreachable = Duration::ZERO).await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    rig.routes.go_away();
    within(
        "it is noticed",
        rig.until_metric("spark_proxy_route_watch_connected", |n| n == 0.0),
    )
    .await;
    tokio::time::sleep(Duration::from_millis(5200)).await;
    rig.call(rig.rpc()).await.refused(Reason::ControlPlaneUnavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missed_close_is_found_after_the_watch_returns() {
    let rig = Rig::start().await;
    let mut running = rig
        .client()
        .await
        .begin(&rig.rpc().shape(Shape::HangAfterOne))
        .await
        .unwrap();
    running.finish(request(b"go"));
    let (_upload, response) = within("headers", running.head()).await.unwrap();
    // Closed; only the reset announces that changes may have been missed.
    rig.routes.set(with_status(rig.route(), RouteStatus::Closed, 2));
    rig.routes.reset();
    within("the stream ends", Reply::rest(response))
        .await
        .unwrap()
        .refused(Reason::SessionClosed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_older_than_the_announced_version_are_not_used() {
    let rig = Rig::start().await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    // Version 3 is announced while the answers still have version 1.
    rig.routes.announce(Route {
        version: 3,
        ..rig.route()
    });
    rig.routes.set(rig.route());
    let old = rig.routes.asked().len();
    // Calls pass until the announcement arrives; then one requests the route repeatedly.
    let mut call;
    loop {
        let (client, rpc) = (rig.client().await, rig.rpc());
        call = tokio::spawn(async move { client.call(rpc).await });
        tokio::select! {
            passed = &mut call => assert_eq!(passed.unwrap().code(), Code::Ok),
            () = rig.routes.until_asked(old + 3) => break,
        }
    }
    assert!(!call.is_finished());
    rig.routes.set(Route {
        version: 3,
        ..rig.route()
    });
    assert_eq!(within("the call", call).await.unwrap().code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_one_token_is_not_sent_to_others() {
    let rig = Rig::start().await;
    let (bad, good) = (rig.token(), rig.token());
    let refused = session_proto::error::Refused::new(Reason::NotAuthorized, "not yours").into_status();
    rig.routes.refuse(&bad, refused);
    rig.routes.refuse("never", Status::internal("unused"));
    rig.call(Rpc::execute(&bad)).await.refused(Reason::NotAuthorized);
    assert_eq!(rig.call(Rpc::execute(&good)).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_without_a_record_is_closed() {
    let rig = Rig::start().await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    // For an unknown session session-manager has no version.
    rig.routes.set(Route {
        store_epoch: 0,
        ..with_status(rig.route(), RouteStatus::Closed, 0)
    });
    rig.routes.reset();
    within("it is closed", async {
        while rig.call(rig.rpc()).await.code() == Code::Ok {}
    })
    .await;
    rig.call(rig.rpc()).await.refused(Reason::SessionClosed);
}
