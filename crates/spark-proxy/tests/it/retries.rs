//! Retries: which calls are sent again; response metadata about the compute; redaction of its
//! credential.

use crate::common::{Rig, Rpc};
use session_core::Reason;
use session_proto::internal::{Backend, Route};
use test_support::fake_spark::{Shape, request};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_not_processed_is_retried_complete() {
    let rig = Rig::start().await;
    let reply = rig
        .call(rig.rpc().shape(Shape::RefuseOnce).body(request(&[7; 20_000])))
        .await;
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(reply.echoed().content, vec![7; 20_000]);
    assert_eq!(rig.spark.seen().refused, 2, "once, and then it came through");
    assert_eq!(rig.metric("spark_proxy_calls_retried_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_limited() {
    let rig = Rig::start().await;
    rig.call(rig.rpc().shape(Shape::Refuse))
        .await
        .refused(Reason::BackendUnavailable);
    assert_eq!(rig.spark.seen().requests.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_possibly_processed_call_is_never_retried() {
    let rig = Rig::start().await;
    rig.call(rig.rpc().shape(Shape::KillAtOnce))
        .await
        .refused(Reason::BackendLost);
    assert_eq!(rig.spark.seen().requests.len(), 1);
    assert_eq!(rig.metric("spark_proxy_calls_retried_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_carry_the_generation_of_compute() {
    let rig = Rig::start().await;
    rig.routes.set(Route {
        generation: 7,
        ..rig.route()
    });
    assert_eq!(rig.call(rig.rpc()).await.head["x-berth-generation"], "7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_credential_of_the_compute_is_not_sent_to_clients() {
    let rig = Rig::start().await;
    let route = rig.route();
    rig.routes.set(Route {
        backend: Some(Backend {
            credential: "hush-hush".to_owned(),
            ..route.backend.clone().unwrap()
        }),
        ..route
    });
    let said = b"spark.connect.authenticate.token = hush-hush, and more";
    let rpc = |method: &str| {
        Rpc::spark(method)
            .bearer(&rig.token())
            .header("grpc-accept-encoding", "gzip")
            .body(request(said))
    };
    let reply = rig.call(rpc("Config")).await;
    assert_eq!(
        &reply.echoed().content[..],
        b"spark.connect.authenticate.token = *********, and more"
    );
    let (_, headers) = rig.spark.seen().requests.pop().unwrap();
    assert_eq!(
        headers["grpc-accept-encoding"], "identity",
        "redacted replies are not compressed"
    );
    assert_eq!(headers["authorization"], "Bearer hush-hush");
    // Results are not redacted.
    let reply = rig.call(rpc("ExecutePlan")).await;
    assert_eq!(&reply.echoed().content[..], said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_are_joined_without_loss() {
    let rig = Rig::start().await;
    let reply = rig.call(rig.rpc().shape(Shape::Stream(5000, 100))).await;
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 500_000));
    let one = test_support::fake_spark::message(100);
    assert!(reply.body.chunks(100).all(|message| message == one));
}
