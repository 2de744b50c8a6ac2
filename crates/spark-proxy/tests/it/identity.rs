//! The proxy sets the user of every message, whatever the client sends.

use crate::common;
use crate::common::{Rig, Rpc, send, within};
use bytes::Bytes;
use session_core::Reason;
use test_support::fake_spark::{SPARK_SESSION, Shape, framed, request};
use tonic::Code;
use tonic_types::StatusExt as _;

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [
        &[number << 3 | 2, u8::try_from(content.len()).unwrap_or(0)],
        content,
    ]
    .concat()
}

fn id() -> Vec<u8> {
    field(1, SPARK_SESSION.as_bytes())
}

fn foreign() -> Vec<u8> {
    field(2, &field(1, b"somebody else"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_user_is_replaced() {
    let rig = Rig::start().await;
    for message in [
        [id(), foreign()].concat(),
        [foreign(), id(), foreign(), field(3, b"plan")].concat(),
        id(),
    ] {
        let reply = rig.call(rig.rpc().body(framed(&message))).await;
        assert_eq!(reply.code(), Code::Ok);
        let user = reply.echoed().user_context.unwrap();
        assert_eq!(
            (user.user_id.as_str(), user.user_name.as_str()),
            ("sa|tester", "sa|tester")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_is_replaced_in_single_byte_frames() {
    let rig = Rig::start().await;
    let message = framed(&[id(), foreign(), field(3, b"plan")].concat());
    let mut running = rig.client().await.begin(&rig.rpc()).await.unwrap();
    for byte in message.chunks(1) {
        send(&mut running.upload, Bytes::copy_from_slice(byte))
            .await
            .unwrap();
    }
    running.finish(Bytes::new());
    let reply = within("the echo", common::Reply::read(running.response))
        .await
        .unwrap();
    assert_eq!(reply.echoed().content, "plan");
    assert_eq!(reply.echoed().user_context.unwrap().user_id, "sa|tester");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_hide_another_user_are_rejected() {
    let rig = Rig::start().await;
    let hostile = [
        [id(), field(3, b"plan"), foreign()].concat(),
        [id(), id()].concat(),
        [id(), field(3, b"plan"), id()].concat(),
        [id(), vec![0x1a, 100, 1]].concat(),
        [id(), vec![0x1b]].concat(),
        [id(), vec![0x02, 0]].concat(),
        field(3, b"plan"),
        b"not a message".to_vec(),
        Vec::new(),
    ];
    for message in hostile {
        rig.call(rig.rpc().body(framed(&message)))
            .await
            .refused(Reason::MalformedMessage);
    }
    // The class of Apache Spark.
    let invalid = rig
        .call(rig.rpc().body(framed(&field(1, b"1-1-1-1-1"))))
        .await
        .status();
    assert_eq!(invalid.code(), Code::Internal);
    let details = invalid.get_details_error_info().unwrap();
    assert_eq!(details.metadata["errorClass"], "INVALID_HANDLE.FORMAT");
    rig.call(rig.rpc().body(Bytes::new()))
        .await
        .refused(Reason::MalformedMessage);
    rig.call(rig.rpc().body(request(b"cut off").slice(..20)))
        .await
        .refused(Reason::MalformedMessage);
    let mut compressed = request(b"x").to_vec();
    compressed[0] = 1;
    let reply = rig.call(rig.rpc().body(compressed.into())).await;
    reply.refused(Reason::CompressedRequest);
    assert_eq!(reply.trailers["grpc-accept-encoding"], "identity,gzip");
    assert!(rig.spark.seen().requests.is_empty(), "nothing was forwarded");
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_later_message_resets_the_call() {
    let rig = Rig::start().await;
    let rpc = Rpc::spark("AddArtifacts")
        .bearer(&rig.token())
        .shape(Shape::Count);
    let mut running = rig.client().await.begin(&rpc).await.unwrap();
    send(&mut running.upload, request(b"first")).await.unwrap();
    within("the first arrives", rig.spark.until(|seen| seen.received > 0)).await;
    let before = rig.spark.seen().received;
    send(
        &mut running.upload,
        framed(&[id(), field(3, b"plan"), foreign()].concat()),
    )
    .await
    .unwrap();
    let reply = within("the refusal", common::Reply::read(running.response))
        .await
        .unwrap();
    reply.refused(Reason::MalformedMessage);
    within("the reset", rig.spark.until(|seen| seen.resets == 1)).await;
    assert_eq!(rig.spark.seen().received, before);
}
