//! What may be sent again and what may not; what clients are told of the
//! compute that answers; what they are not told.

use crate::common::{Ask, Rig};
use session_core::Reason;
use session_proto::internal::{Backend, Route};
use test_support::fake_spark::{Shape, request};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_refused_is_sent_again_whole() {
    let rig = Rig::start().await;
    let reply = rig
        .call(rig.ask().shape(Shape::RefuseOnce).body(request(&[7; 20_000])))
        .await;
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(reply.echoed().content, vec![7; 20_000]);
    assert_eq!(rig.spark.seen().refused, 2, "once, and then it came through");
    assert_eq!(rig.metric("spark_proxy_calls_retried_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_again_and_again_is_given_up() {
    let rig = Rig::start().await;
    rig.call(rig.ask().shape(Shape::Refuse))
        .await
        .refused(Reason::BackendUnavailable);
    assert_eq!(rig.spark.seen().requests.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_acted_on_is_never_sent_again() {
    let rig = Rig::start().await;
    rig.call(rig.ask().shape(Shape::KillAtOnce))
        .await
        .refused(Reason::BackendLost);
    assert_eq!(rig.spark.seen().requests.len(), 1);
    assert_eq!(rig.metric("spark_proxy_calls_retried_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_which_compute_answers() {
    let rig = Rig::start().await;
    rig.routes.set(Route {
        generation: 7,
        ..rig.route()
    });
    assert_eq!(rig.call(rig.ask()).await.head["x-berth-generation"], "7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_computes_own_credential_stays_here() {
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
    let ask = |method: &str| {
        Ask::spark(method)
            .bearer(&rig.token())
            .header("grpc-accept-encoding", "gzip")
            .body(request(said))
    };
    let reply = rig.call(ask("Config")).await;
    assert_eq!(
        &reply.echoed().content[..],
        b"spark.connect.authenticate.token = *********, and more"
    );
    let (_, headers) = rig.spark.seen().requests.pop().unwrap();
    assert_eq!(
        headers["grpc-accept-encoding"], "identity",
        "what is looked into is not compressed"
    );
    assert_eq!(headers["authorization"], "Bearer hush-hush");
    // Results are the user's own.
    let reply = rig.call(ask("ExecutePlan")).await;
    assert_eq!(&reply.echoed().content[..], said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_are_joined_and_nothing_is_lost() {
    let rig = Rig::start().await;
    let reply = rig.call(rig.ask().shape(Shape::Stream(5000, 100))).await;
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 500_000));
    let one = test_support::fake_spark::message(100);
    assert!(reply.body.chunks(100).all(|message| message == one));
}
