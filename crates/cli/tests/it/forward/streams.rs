//! What passes: bytes, headers, trailers, cancellations, with backpressure.

use super::Forwarder;
use super::client::EXECUTE;
use crate::support::{Stack, within};
use bytes::Bytes;
use rustix::process::Signal;
use std::time::Duration;
use test_support::fake_spark::{Shape, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
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
    // A lost connection cancels all its calls.
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

/// Reads until the end of an HTTP/2 connection, and answers pings.
async fn read_to_end(connection: &mut TcpStream) {
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let mut head = [0; 9];
    while connection.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        connection.read_exact(&mut payload).await.unwrap();
        if head[3] == PING && head[4] & ACK == 0 {
            head[4] |= ACK;
            connection.write_all(&head).await.unwrap();
            connection.write_all(&payload).await.unwrap();
        }
    }
}

/// A reset by the kernel would discard what the client has not received yet.
#[tokio::test]
async fn the_end_waits_for_clients_that_still_send() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let (_stack, _, forwarder) = forwarder().await;
    let mut http1 = TcpStream::connect(&forwarder.address).await.unwrap();
    let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    http1.write_all(request).await.unwrap();
    let mut answer = String::new();
    let read = within("the answer", http1.read_to_string(&mut answer)).await;
    read.unwrap();
    still_open(http1, b"x").await;

    let mut http2 = TcpStream::connect(&forwarder.address).await.unwrap();
    http2.write_all(PREFACE).await.unwrap();
    http2.write_all(&EMPTY_SETTINGS).await.unwrap();
    http2.readable().await.unwrap();
    let ended = tokio::spawn(forwarder.end(Signal::TERM));
    within("the end of the connection", read_to_end(&mut http2)).await;
    still_open(http2, &WINDOW_UPDATE).await;
    assert_eq!(ended.await.unwrap(), Some(0));
}

/// Sends bytes that a closed connection answers with a reset.
async fn still_open(mut connection: TcpStream, bytes: &[u8]) {
    connection.write_all(bytes).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let sent = connection.write_all(bytes).await;
    assert!(sent.is_ok(), "the connection was reset: {sent:?}");
}
