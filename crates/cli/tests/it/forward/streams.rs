//! What passes: bytes, headers, trailers, cancellations, with backpressure.

use super::Forwarder;
use super::client::EXECUTE;
use crate::support::{Stack, within};
use bytes::Bytes;
use std::time::Duration;
use test_support::fake_spark::{Shape, request};
use tonic::Code;

async fn forwarder() -> (Stack, String, Forwarder) {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
    (stack, session, forwarder)
}

#[tokio::test]
async fn messages_of_any_size_pass_unchanged_in_both_directions() {
    let (stack, _, forwarder) = forwarder().await;
    let mut client = forwarder.client().await;
    let large = Bytes::from_iter((0..8_000_000_u32).map(|n| (n % 251) as u8));
    let message = request(&large);
    let answer = client.send(Shape::Echo, message.clone()).await;
    assert_eq!(answer.code, Code::Ok, "{:?}", answer.trailers);
    // spark-proxy puts the user in; everything of the plan is there.
    assert!(answer.body.ends_with(&large));
    assert!(
        answer.head.contains_key("x-berth-generation"),
        "{:?}",
        answer.head
    );
    let answer = client.call(Shape::Stream(300, 100_000)).await;
    assert_eq!((answer.code, answer.body.len()), (Code::Ok, 30_000_000));
    let (path, headers) = stack.spark.seen().requests.remove(0);
    assert_eq!(path, EXECUTE);
    for name in ["x-berth-secret", "x-session-id"] {
        assert!(!headers.contains_key(name), "{headers:?}");
    }
}

#[tokio::test]
async fn errors_of_the_engine_keep_their_details() {
    let (_stack, _, forwarder) = forwarder().await;
    let answer = forwarder.client().await.call(Shape::MissingTable).await;
    assert_ne!(answer.code, Code::Ok);
    assert!(answer.head.contains_key("grpc-status-details-bin"), "{answer:?}");
}

/// A reader that stops stops its own sender, and no other call, not even
/// those of its own connection.
#[tokio::test]
async fn a_client_that_does_not_read_holds_its_own_stream_only() {
    /// The windows of both proxies, buffers of sockets included.
    const MAX_HELD: usize = 16 << 20;
    let (stack, _, forwarder) = forwarder().await;
    let mut client = forwarder.client().await;
    let size = 1 << 20;
    let unread = client.begin(Shape::Stream(200, size)).await;
    let mut before = 0;
    within("the sender stands still", async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let sent = stack.spark.seen().sent;
            if sent == before {
                return;
            }
            before = sent;
        }
    })
    .await;
    assert!(
        before < MAX_HELD,
        "{before} bytes are held for a client that does not read"
    );
    for _ in 0..20 {
        assert_eq!(client.call(Shape::Stream(3, size)).await.code, Code::Ok);
    }
    let answer = unread.end().await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_engine() {
    let (stack, _, forwarder) = forwarder().await;
    let mut client = forwarder.client().await;
    drop(client.begin(Shape::HangAfterOne).await);
    within(
        "the engine's stream is reset",
        stack.spark.until(|seen| seen.resets == 1),
    )
    .await;
    // A client that vanishes cancels all its calls.
    let _call = client.begin(Shape::HangAfterOne).await;
    drop(forwarder);
    within(
        "the engine's stream is reset",
        stack.spark.until(|seen| seen.resets == 2),
    )
    .await;
}

#[tokio::test]
async fn a_session_that_starts_is_waited_for() {
    let stack = Stack::start().await;
    let session = stack.pending("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
    let mut client = forwarder.client().await;
    let (answer, ()) = tokio::join!(client.call(Shape::Echo), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stack.make_ready("ada", &session, stack.spark.address()).await;
    });
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
}
