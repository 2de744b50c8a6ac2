//! Limits, each with an error that names it.

use super::Forwarder;
use super::client::INTERRUPT;
use crate::support::{Stack, within};
use session_core::Reason;
use test_support::fake_spark::Shape;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tonic::Code;

#[tokio::test]
async fn calls_and_connections_are_limited_and_ending_work_is_not() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let args = [
        session.as_str(),
        "--port",
        "0",
        "--max-calls",
        "2",
        "--max-connections",
        "2",
    ];
    let forwarder = Forwarder::start(&stack, &args).await;
    let (mut one, mut two, mut three) = (
        forwarder.client().await,
        forwarder.client().await,
        forwarder.client().await,
    );
    let first = one.begin(Shape::HangAfterOne).await;
    let _second = two.begin(Shape::HangAfterOne).await;
    let answer = one.call(Shape::Echo).await;
    assert_eq!(answer.reason, Some(Reason::QuotaExceeded), "{answer:?}");
    assert!(answer.message.contains("--max-calls"), "{answer:?}");
    assert_eq!(one.call_path(INTERRUPT, Shape::Echo).await.code, Code::Ok);
    let answer = three.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::ResourceExhausted, "{answer:?}");
    assert!(answer.message.contains("--max-connections"), "{answer:?}");
    drop((first, one));
    within("the places are free again", async {
        while three.call(Shape::Echo).await.code != Code::Ok {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Other users can connect, but cannot use up what the owner's clients need.
#[tokio::test]
async fn connections_without_the_secret_take_no_places() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0", "--max-connections", "1"]).await;
    let mut oldest = TcpStream::connect(&forwarder.address).await.unwrap();
    let mut without = forwarder.client_without_secret().await;
    without.call(Shape::Echo).await;
    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(TcpStream::connect(&forwarder.address).await.unwrap());
    }
    let answer = forwarder.client().await.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    let read = within("the oldest is closed", oldest.read(&mut [0])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    without.closed().await;
}

#[tokio::test]
async fn headers_are_limited_and_another_session_is_not_served() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
    let mut client = forwarder.client().await;
    let answer = client.call_header("x-long", &"x".repeat(20_000)).await;
    assert_eq!(answer.code, Code::InvalidArgument, "{answer:?}");
    assert!(answer.message.contains("16384"), "{answer:?}");
    let answer = client
        .call_header("x-session-id", "s-00000000000000000000000000")
        .await;
    assert_eq!(answer.reason, Some(Reason::SessionMismatch), "{answer:?}");
    let answer = client.call_header("x-session-id", &session).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
}
