//! Requests that are compressed with gzip: the compute gets plain messages of Berth's user.

use crate::common;
use crate::common::{Rig, Rpc, send, within};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use session_core::Reason;
use std::io::Write as _;
use test_support::fake_spark::{SPARK_SESSION, Shape, framed, request};
use tonic::Code;

/// The message of a frame, compressed and framed again.
fn compressed(frame: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&frame[5..]).unwrap();
    let message = encoder.finish().unwrap();
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[1][..], &len, &message].concat().into()
}

/// A message of `len` bytes that compresses to about half.
fn large(len: usize) -> Bytes {
    let mut state = 1_u32;
    let text: Vec<u8> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'a' + (state >> 28) as u8
        })
        .collect();
    request(&text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compute_gets_the_plain_message_with_the_users_identity() {
    let rig = Rig::start().await;
    let gzip = |rpc: Rpc| rpc.header("grpc-encoding", "gzip");
    for (shape, tries) in [(Shape::Echo, 1), (Shape::RefuseOnce, 2)] {
        let before = rig.spark.seen().requests.len();
        let rpc = gzip(rig.rpc()).shape(shape).body(compressed(&request(b"plan")));
        let reply = rig.call(rpc).await;
        assert_eq!(reply.code(), Code::Ok);
        assert_eq!(reply.echoed().content, "plan");
        assert_eq!(reply.echoed().user_context.unwrap().user_id, "sa|tester");
        let seen = rig.spark.seen().requests.split_off(before);
        assert_eq!(seen.len(), tries);
        assert!(
            seen.iter()
                .all(|(_, headers)| !headers.contains_key("grpc-encoding"))
        );
    }
    // Another user, hidden by the compression.
    let foreign = [
        &[0x0a, SPARK_SESSION.len() as u8][..],
        SPARK_SESSION.as_bytes(),
        b"\x12\x07\x0a\x05admin",
    ]
    .concat();
    let reply = rig
        .call(gzip(rig.rpc()).body(compressed(&framed(&foreign))))
        .await;
    assert_eq!(reply.echoed().user_context.unwrap().user_id, "sa|tester");
    // An uncompressed message of a client that compresses others.
    let reply = rig.call(gzip(rig.rpc()).body(request(b"small"))).await;
    assert_eq!(reply.echoed().content, "small");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_an_upload_pass_in_pieces() {
    let rig = Rig::start().await;
    let rpc = Rpc::spark("AddArtifacts")
        .bearer(&rig.token())
        .header("grpc-encoding", "gzip")
        .shape(Shape::Count);
    let mut running = rig.client().await.begin(&rpc).await.unwrap();
    let message = large(1_500_000);
    let sent = compressed(&message);
    assert!((500_000..1_000_000).contains(&sent.len()), "{}", sent.len());
    // More than the window of a stream together, so its capacity comes back.
    for _ in 0..4 {
        within("the upload", send(&mut running.upload, sent.clone()))
            .await
            .unwrap();
    }
    running.finish(Bytes::new());
    let reply = within("the count", common::Reply::read(running.response))
        .await
        .unwrap();
    assert_eq!(reply.code(), Code::Ok);
    let received = rig.spark.seen().received;
    let least = 4 * message.len();
    assert!((least..least + 400).contains(&received), "{received} of {least}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_gzip_within_limits_is_rejected() {
    let rig = Rig::start().await;
    let bomb = compressed(&request(&vec![0; 4 << 20]));
    let long = {
        let mut frame = compressed(&request(b"x")).to_vec();
        frame[1..5].copy_from_slice(&(8_u32 << 20).to_be_bytes());
        Bytes::from(frame)
    };
    let message = compressed(&request(b"x"));
    let cases = [
        ("gzip", bomb, Reason::CompressedRequest, "when decompressed"),
        (
            "gzip",
            long,
            Reason::CompressedRequest,
            "limits.stream_window_bytes",
        ),
        ("deflate", message.clone(), Reason::CompressedRequest, "Use gzip"),
        ("zstd", message.clone(), Reason::CompressedRequest, "Use gzip"),
        ("identity", message.clone(), Reason::CompressedRequest, "Use gzip"),
        (
            "gzip",
            message.slice(..message.len() - 1),
            Reason::MalformedMessage,
            "middle",
        ),
        (
            "gzip",
            [&[1, 0, 0, 0, 3][..], b"zip"].concat().into(),
            Reason::MalformedMessage,
            "not gzip",
        ),
    ];
    for (encoding, body, reason, text) in cases {
        let reply = rig
            .call(rig.rpc().header("grpc-encoding", encoding).body(body))
            .await;
        reply.refused(reason);
        let status = reply.status();
        assert!(status.message().contains(text), "{encoding}: {status}");
        if reason == Reason::CompressedRequest {
            assert_eq!(status.code(), Code::Unimplemented);
        }
    }
    assert!(rig.spark.seen().requests.is_empty(), "nothing was forwarded");
}
