//! The gRPC APIs away, and the end of a console.

use crate::routes::assert_problem;
use crate::support::Stack;
use crate::watch::Events;
use http::StatusCode;
use std::time::{Duration, Instant};

#[tokio::test]
async fn without_session_manager_requests_end_at_once_with_a_retry_delay() {
    let stack = Stack::start().await;
    assert_eq!(stack.get("ada", "/orgs").await.status, StatusCode::OK);
    stack.stop_manager().await;
    for (who, path) in [("ada", "/orgs"), ("bob", "/sessions"), ("ada", "/sessions:watch")] {
        let began = Instant::now();
        let answer = stack.get(who, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        assert_problem(&answer, "CONTROL_PLANE_UNAVAILABLE");
        assert_eq!(answer.header("retry-after"), "2");
        assert!(!answer.json.to_string().contains("127.0.0.1"), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(stack.get("", "/openapi.json").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_stopping_console_ends_its_streams_and_answers_what_waits() {
    let stack = Stack::start().await;
    let id = stack.session("ada").await;
    let mut events = Events::open(&stack, "ada", "", "").await;
    assert!(events.next().await.is_some());
    let path = format!("/sessions/{id}?wait=active");
    let waiting = stack.get("ada", &path);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        stack.stop_console().await;
        began.elapsed()
    };
    let (answer, stopped) = tokio::join!(waiting, stop);
    assert_eq!(
        (answer.status, answer.text("status")),
        (StatusCode::OK, "pending".to_owned())
    );
    while events.next().await.is_some() {}
    assert!(stopped < Duration::from_secs(5), "{stopped:?}");
}
