//! The session of a forwarder: created, checked and closed by it.

use super::Forwarder;
use super::client::Client;
use crate::support::{Berth, Stack, ended, grpc_between, within};
use rustix::process::Signal;
use session_core::Reason;
use session_proto::v1;
use std::process::Stdio;
use std::time::Duration;
use test_support::fake_spark::Shape;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tonic::Code;

/// The only live session of `ada`.
async fn live_session(stack: &Stack) -> Option<String> {
    let request = v1::ListSessionsRequest {
        statuses: vec![
            v1::SessionStatus::Pending.into(),
            v1::SessionStatus::Active.into(),
        ],
        ..Default::default()
    };
    let listed = stack.sessions().list_sessions(stack.asks("ada", request)).await;
    let mut sessions = listed.unwrap().into_inner().sessions;
    assert!(sessions.len() < 2, "{sessions:?}");
    sessions.pop().map(|session| session.id)
}

async fn created_session(stack: &Stack) -> String {
    within("the session is created", async {
        loop {
            match live_session(stack).await {
                Some(session) => return session,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_lost_answer_creates_no_second_session() {
    let stack = Stack::start().await;
    let manager = grpc_between::losing(stack.manager, "/CreateSession", 2).await;
    let addresses = [format!("http://{manager}"), format!("http://{}", stack.issuer)];
    let args = ["--create", "--cluster", "c", "--port", "0"];
    let (forwarder, session) = tokio::join!(Forwarder::start_at(&stack, &addresses, &args), async {
        let session = created_session(&stack).await;
        stack.make_ready("ada", &session, stack.spark.address()).await;
        session
    });
    assert_eq!(live_session(&stack).await, Some(session));
    assert_eq!(forwarder.end(Signal::TERM).await, Some(0));
    assert_eq!(live_session(&stack).await, None);
}

#[tokio::test]
async fn closing_the_session_is_tried_again() {
    let stack = Stack::start().await;
    let manager = grpc_between::losing(stack.manager, "/CloseSession", 2).await;
    let addresses = [format!("http://{manager}"), format!("http://{}", stack.issuer)];
    let args = ["exec", "--create", "--cluster", "c", "--", "true"];
    let berth = Berth::new();
    let child = berth.start(&args, &stack.env("ada", &addresses));
    let session = created_session(&stack).await;
    stack.make_ready("ada", &session, stack.spark.address()).await;
    let seen = ended(child).await.good();
    assert!(
        seen.stderr.contains(&format!("Session {session} is closed.")),
        "{seen:?}"
    );
    assert_eq!(live_session(&stack).await, None);
}

/// The end of a call shows it long before the token must be renewed.
#[tokio::test]
async fn the_forwarder_ends_soon_after_its_session() {
    for shape in [Shape::Hang, Shape::HangAfterOne] {
        let stack = Stack::start().await;
        let session = stack.active("ada").await;
        let (berth, addresses) = (Berth::new(), stack.addresses());
        let args = ["--output", "json", "connect", &session, "--port", "0"];
        let child = berth.start(&args, &stack.env("ada", &addresses));
        let mut forwarder = Forwarder::announced(berth, child).await;
        let mut client = forwarder.client().await;
        let mut other = forwarder.client().await;
        assert_eq!(other.call(Shape::Echo).await.code, Code::Ok);
        let running = tokio::spawn(async move { client.call(shape).await });
        let called = stack.spark.until(|seen| seen.requests.len() == 2);
        within("the engine has the call", called).await;
        stack.close("ada", &session).await;
        let answer = running.await.unwrap();
        assert_eq!(answer.reason, Some(Reason::SessionClosed), "{answer:?}");
        let mut stderr = forwarder.child.stderr.take().unwrap();
        let status = within("the forwarder ends", forwarder.child.wait())
            .await
            .unwrap();
        assert_eq!(status.code(), Some(1));
        let mut text = String::new();
        stderr.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("closed"), "{text}");
        // Its connections were closed before it ended.
        other.closed().await;
    }
}

#[tokio::test]
async fn readiness_reports_the_end_of_the_session() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let (berth, addresses) = (Berth::new(), stack.addresses());
    let script = "echo $SPARK_REMOTE; read line; exit 3";
    let args = ["exec", &session, "--", "sh", "-c", script];
    let mut command = berth.command(&args, &stack.env("ada", &addresses));
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = within("the command runs", lines.next_line())
        .await
        .unwrap()
        .unwrap();
    let (address, secret) = url
        .strip_prefix("sc://")
        .and_then(|rest| rest.split_once("/;x-berth-secret="))
        .unwrap();
    let mut client = Client::connect(address, Some(secret)).await;
    assert_eq!(client.get("/readyz").await.0, 200);
    stack.close("ada", &session).await;
    let answer = client.call(Shape::Echo).await;
    assert_eq!(answer.reason, Some(Reason::SessionClosed), "{answer:?}");
    within("the end is reported", async {
        loop {
            let (status, text) = client.get("/readyz").await;
            if status == 503 {
                return assert_eq!(text, "not ready: the session is over\n");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let answer = client.call(Shape::Echo).await;
    assert_eq!(answer.reason, Some(Reason::SessionClosed), "{answer:?}");
    drop(stdin);
    assert_eq!(ended(child).await.code, Some(3));
}
