//! Bytes are forwarded unchanged in both directions, with their metadata, within the flow-control
//! windows.

use crate::common;
use crate::common::{Client, Reply, Rig, Rpc, send, within};
use bytes::Bytes;
use session_core::Reason;
use session_proto::internal::Backend;
use std::time::Duration;
use test_support::fake_spark::{SPARK_SESSION, Shape, framed, message, request};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_call_passes_with_metadata_and_trailers() {
    let rig = Rig::start().await;
    let rpc = rig
        .rpc()
        .header("x-custom", "one")
        .header("x-custom", "two")
        .header("grpc-timeout", "30S");
    let reply = rig.call(rpc.body(request(b"SELECT 1"))).await;
    assert_eq!(reply.code(), Code::Ok);
    let echoed = reply.echoed();
    assert_eq!(
        (echoed.session_id.as_str(), &echoed.content[..]),
        (SPARK_SESSION, &b"SELECT 1"[..])
    );
    let user = echoed.user_context.unwrap();
    assert_eq!(
        (user.user_id.as_str(), user.user_name.as_str()),
        ("sa|tester", "sa|tester")
    );
    assert_eq!(reply.head["x-initial"], "metadata");
    assert_eq!(reply.trailers["x-trailing"], "metadata");
    assert_eq!(reply.trailers["grpc-status-details-bin"], "CA0SBmthcHV0dA");
    let (path, headers) = rig.spark.seen().requests.remove(0);
    assert_eq!(path, "/spark.connect.SparkConnectService/ExecutePlan");
    assert_eq!(
        headers.get_all("x-custom").iter().collect::<Vec<_>>(),
        ["one", "two"]
    );
    assert_eq!(headers["grpc-timeout"], "30S");
    assert_eq!(headers["te"], "trailers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_berth_are_removed_and_the_credential_is_added() {
    let rig = Rig::start().await;
    let rpc = || rig.rpc().header("use_ssl", "true").header("session_id", "x");
    rig.call(rpc()).await;
    let (_, headers) = rig.spark.seen().requests.remove(0);
    for name in [
        "authorization",
        "x-session-id",
        "use_ssl",
        "session_id",
        "connection",
    ] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let mut route = rig.route();
    route.version = 2;
    let backend: &mut Backend = route.backend.as_mut().unwrap();
    backend.credential = "of-the-backend".to_owned();
    rig.routes.announce(route);
    within("the new route is used", async {
        while rig.metric("spark_proxy_route_requests_total").await < 2.0 {
            rig.call(rpc()).await;
        }
    })
    .await;
    rig.call(rpc()).await;
    let (_, headers) = rig.spark.seen().requests.pop().unwrap();
    assert_eq!(headers["authorization"], "Bearer of-the-backend");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_methods_of_the_service_pass() {
    let rig = Rig::start().await;
    let reply = rig.call(Rpc::spark("NotYetInvented").bearer(&rig.token())).await;
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(
        rig.spark.seen().requests[0].0,
        "/spark.connect.SparkConnectService/NotYetInvented"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_paths_are_rejected_without_a_token() {
    let rig = Rig::start().await;
    for path in [
        "/",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/berth.v1.SessionService/ListSessions",
    ] {
        let reply = rig.call(Rpc::to(path)).await;
        reply.refused(Reason::UnknownMethod);
        assert!(reply.trailers_only);
    }
    let mut get = rig.rpc();
    get.method = http::Method::GET;
    rig.call(get).await.refused(Reason::UnknownMethod);
    assert!(rig.spark.seen().requests.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_checks_are_answered_by_the_proxy() {
    let rig = Rig::start().await;
    let reply = rig
        .call(Rpc::to("/grpc.health.v1.Health/Check").body(framed(b"")))
        .await;
    assert_eq!(
        (reply.code(), reply.body.as_ref()),
        (Code::Ok, &[0, 0, 0, 0, 2, 8, 1][..])
    );
    let empty = rig
        .call(Rpc::to("/grpc.health.v1.Health/Check").body(Bytes::new()))
        .await;
    assert_eq!(empty.body, reply.body, "no message");
    let named = framed(b"\x0a\x07unknown");
    assert_eq!(
        rig.call(Rpc::to("/grpc.health.v1.Health/Check").body(named))
            .await
            .code(),
        Code::NotFound
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trailers_only_error_passes_unchanged() {
    let rig = Rig::start().await;
    let reply = rig.call(rig.rpc().shape(Shape::Error)).await;
    assert!(reply.trailers_only);
    assert_eq!(reply.trailers["grpc-status"], "13");
    assert_eq!(reply.trailers["grpc-message"], "kaputt");
    assert_eq!(reply.trailers["grpc-status-details-bin"], "CA0SBmthcHV0dA");
    assert!(!reply.trailers.contains_key("berth-reason"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_pass_complete_in_both_directions() {
    let rig = Rig::start().await;
    let reply = rig.call(rig.rpc().shape(Shape::Stream(500, 10_007))).await;
    assert_eq!(reply.code(), Code::Ok);
    assert!(reply.body.chunks(10_007).all(|chunk| chunk == message(10_007)));
    assert_eq!(reply.body.len(), 500 * 10_007);

    let mut running = rig
        .client()
        .await
        .begin(&rig.rpc().shape(Shape::Count))
        .await
        .unwrap();
    let part = request(&[7; 32 << 10]);
    for _ in 0..100 {
        send(&mut running.upload, part.clone()).await.unwrap();
    }
    running.upload.send_data(Bytes::new(), true).unwrap();
    let reply = within("the count", Reply::read(running.response)).await.unwrap();
    let sent = 100 * (part.len() + rig.growth().await);
    assert_eq!(&reply.body[5..], sent.to_string().as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_flow_concurrently() {
    let rig = Rig::start().await;
    // More than all windows together: an echo that is read only after everything was sent would never
    // end.
    let content: Vec<u8> = (0..40 << 20)
        .map(|i: u32| i.to_le_bytes()[i as usize % 3])
        .collect();
    let reply = rig.call(rig.rpc().body(request(&content))).await;
    assert_eq!(reply.code(), Code::Ok);
    assert!(reply.echoed().content == content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connections_first_calls_pass_before_its_settings_are_acknowledged() {
    let rig = Rig::start().await;
    let token = rig.token();
    for _ in 0..50 {
        let client = rig.client().await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (client, rpc) = (client.clone(), Rpc::execute(&token));
            calls.spawn(async move { client.call(rpc).await.code() });
        }
        assert!(
            within("all", calls.join_all())
                .await
                .iter()
                .all(|code| *code == Code::Ok)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backpressure_of_a_client_affects_only_its_call() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    let mut running = client
        .begin(&rig.rpc().shape(Shape::Stream(64, 1 << 20)))
        .await
        .unwrap();
    running.finish(request(b"go"));
    let (_upload, response) = within("headers", running.head()).await.unwrap();
    // Sending stops although more data is available.
    let mut before = 0;
    let stopped = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let sent = rig.spark.seen().sent;
            if sent > 0 && sent == before {
                return sent;
            }
            before = sent;
        }
    };
    let sent = within("the backend stops", stopped).await;
    assert!(
        sent < 12 << 20,
        "{sent} bytes are under way to a client that does not read"
    );
    // The same backend connection still serves others.
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    let reply = within("the rest", Reply::rest(response)).await.unwrap();
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 64 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_disconnect_resets_the_upstream_stream() {
    let rig = Rig::start().await;
    // Before the response headers and within the response, by reset and by disconnect.
    let client = rig.client().await;
    let mut hanging = client.begin(&rig.rpc().shape(Shape::Hang)).await.unwrap();
    hanging.finish(request(b"go"));
    within("it arrives", rig.spark.until(|seen| seen.requests.len() == 1)).await;
    drop(hanging);
    within("the reset", rig.spark.until(|seen| seen.resets == 1)).await;

    let mut streaming = client.begin(&rig.rpc().shape(Shape::HangAfterOne)).await.unwrap();
    streaming.finish(request(b"go"));
    let (mut upload, response) = within("headers", streaming.head()).await.unwrap();
    upload.send_reset(h2::Reason::CANCEL);
    within("the reset", rig.spark.until(|seen| seen.resets == 2)).await;
    drop((response, upload, client));

    let other = Client::plain(rig.address).await.unwrap();
    let mut hanging = other.begin(&rig.rpc().shape(Shape::Hang)).await.unwrap();
    hanging.finish(request(b"go"));
    within("it arrives", rig.spark.until(|seen| seen.requests.len() == 3)).await;
    drop((hanging, other));
    within("the reset", rig.spark.until(|seen| seen.resets == 3)).await;
    within("nothing is open", async {
        loop {
            let ended = rig.metric("spark_proxy_calls_total").await;
            if ended == rig.metric("spark_proxy_calls_opened_total").await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_backend_is_aborted_and_an_unreachable_one_unavailable() {
    let rig = Rig::start().await;
    for shape in [Shape::Kill, Shape::KillAtOnce] {
        let reply = rig.call(rig.rpc().shape(shape)).await;
        reply.refused(Reason::BackendLost);
        let info = tonic_types::StatusExt::get_details_error_info(&reply.status());
        assert!(info.is_none(), "PySpark would ask for a stack trace first");
    }
    rig.call(rig.rpc().shape(Shape::Refuse))
        .await
        .refused(Reason::BackendUnavailable);
    rig.call(rig.rpc().shape(Shape::Bare))
        .await
        .refused(Reason::BackendLost);
    rig.call(rig.rpc().shape(Shape::NoStatus))
        .await
        .refused(Reason::BackendLost);
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_backend_is_resolved_again_before_sending() {
    let rig = Rig::start().await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    rig.spark.stop();
    within(
        "its connections are gone",
        rig.until_metric("spark_proxy_backend_connections", |n| n == 0.0),
    )
    .await;
    rig.call(rig.rpc()).await.refused(Reason::BackendUnavailable);

    // The change is not announced: the refused connection alone causes a new route request.
    let moved = test_support::fake_spark::FakeSpark::start().await.unwrap();
    rig.routes.set(test_support::fake_routes::active(
        rig.session.as_str(),
        common::ORG,
        moved.address(),
    ));
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    assert_eq!(moved.seen().requests.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_a_request_do_not_reach_the_backend() {
    let rig = Rig::start().await;
    for shape in [Shape::Echo, Shape::Count] {
        let client = rig.client().await;
        let mut running = client.begin(&rig.rpc().shape(shape)).await.unwrap();
        running.upload.send_data(request(b"SELECT 1"), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        for name in ["authorization", "authentication", "x-session-id"] {
            trailers.insert(name, http::HeaderValue::from_static("secret"));
        }
        running.upload.send_trailers(trailers).unwrap();
        let reply = within("the answer", Reply::read(running.response)).await.unwrap();
        assert_eq!(reply.code(), Code::Ok, "{shape:?}");
    }
    assert_eq!(rig.spark.seen().requests.len(), 2);
    assert!(
        rig.spark.seen().trailers.is_empty(),
        "{:?}",
        rig.spark.seen().trailers
    );
}
