//! The session of a forwarder: created, checked and closed by it.

use super::Forwarder;
use crate::support::{Berth, Stack, ended, grpc_between, within};
use rustix::process::Signal;
use session_proto::v1;
use std::time::Duration;

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
