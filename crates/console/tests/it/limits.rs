//! Oversized and slow requests, and many watchers.

use crate::support::{LIMIT, Stack, eventually};
use crate::watch::Events;
use http::StatusCode;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What the server answers until it closes the connection.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    while let Ok(Ok(read)) = tokio::time::timeout(LIMIT, socket.read(&mut part)).await {
        bytes.extend_from_slice(&part[..read]);
        if read == 0 || bytes.ends_with(b"}") {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn oversized_bodies_and_heads_are_rejected() {
    let stack = Stack::start().await;
    let large = json!({"cluster": "c", "name": "x".repeat(70 * 1024)});
    let rejected = stack.post("ada", "/sessions", large).await;
    assert_eq!(rejected.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(rejected.reason(), "REQUEST_TOO_LARGE");
    let head = "x".repeat(200 * 1024);
    let mut socket = TcpStream::connect(stack.console).await.unwrap();
    let request = format!("GET /api/v1/orgs HTTP/1.1\r\nhost: localhost\r\nx-large: {head}\r\n\r\n");
    let _ = socket.write_all(request.as_bytes()).await;
    let answer = rest(&mut socket).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let credential = "x".repeat(49 * 1024);
    let long = stack.get(&credential, "/orgs").await;
    assert_eq!(
        (long.status, long.reason()),
        (StatusCode::UNAUTHORIZED, "CALLER_UNKNOWN"),
        "{long:?}"
    );
    assert_eq!(stack.get("ada", "/orgs").await.status, StatusCode::OK);
}

#[tokio::test]
async fn slow_requests_end_and_delay_no_others() {
    let stack = Stack::start_with("limits.header_timeout = \"1s\"\nlimits.body_timeout = \"1s\"\n").await;
    let key = stack.key("ada");
    let began = Instant::now();
    let mut slow = Vec::new();
    for number in 0..150 {
        let mut socket = TcpStream::connect(stack.console).await.unwrap();
        let request = match number % 2 {
            0 => "GET /api/v1/orgs HTTP/1.1\r\nhost: loc".to_owned(),
            _ => format!(
                "POST /api/v1/sessions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
                 content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
            ),
        };
        socket.write_all(request.as_bytes()).await.unwrap();
        slow.push(socket);
    }
    let other = stack.get("bob", "/orgs").await;
    assert_eq!(other.status, StatusCode::OK, "{other:?}");
    for (number, socket) in slow.iter_mut().enumerate() {
        let answer = rest(socket).await;
        if number % 2 == 1 {
            let timeout = answer.starts_with("HTTP/1.1 408") && answer.contains("REQUEST_TIMEOUT");
            // More concurrent requests than a credential may have are rejected immediately.
            assert!(timeout || answer.starts_with("HTTP/1.1 429"), "{answer}");
        }
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_thousand_watchers_leave_room_for_others() {
    let stack = Stack::start_with(
        "limits.connections_per_address = 0\nlimits.streams_per_address = 600\n\
         limits.requests_per_second_per_credential = 0\nlimits.requests_per_second_per_address = 0\n",
    )
    .await;
    let mut open = Vec::new();
    let mut rejected = 0;
    for number in 0..1000 {
        let who = ["ada", "bob", "olga"][number % 3];
        let events = Events::open(&stack, who, "", "").await;
        if events.head.starts_with("HTTP/1.1 200") {
            open.push(events);
        } else {
            assert!(events.head.starts_with("HTTP/1.1 429"), "{}", events.head);
            rejected += 1;
        }
    }
    assert_eq!(open.len(), 60, "20 of each credential; {rejected} were rejected");
    let began = Instant::now();
    for who in ["eve", "ada"] {
        assert_eq!(stack.get(who, "/sessions").await.status, StatusCode::OK);
    }
    let id = stack.session("eve").await;
    assert!(began.elapsed() < Duration::from_secs(5));
    let events = Events::open(&stack, "eve", &format!("?session_id={id}"), "").await;
    assert!(events.head.starts_with("HTTP/1.1 200"));
}

/// 1000 watches are open concurrently; each further one is rejected with 429.
#[tokio::test]
async fn a_thousand_watchers_are_open_concurrently() {
    const ACCOUNTS: usize = 60;
    const EACH: usize = 18;
    let stack = Stack::start_with_crowd(
        ACCOUNTS,
        "limits.streams = 1000\nlimits.streams_per_address = 0\nlimits.connections_per_address = 0\n\
         limits.requests_per_second_per_address = 0\nlimits.requests_at_once_per_address = 0\n",
    )
    .await;
    let mut open = Vec::new();
    let mut rejected = 0;
    for round in 0..EACH {
        let watches = (0..ACCOUNTS).map(async |number| {
            let name = format!("w{number}");
            (number, Events::open(&stack, &name, "", "").await)
        });
        for (number, events) in futures::future::join_all(watches).await {
            if events.head.starts_with("HTTP/1.1 200") {
                open.push((number, events));
            } else {
                assert!(events.head.starts_with("HTTP/1.1 429"), "{}", events.head);
                assert!(events.head.contains("retry-after: 1"), "{}", events.head);
                rejected += 1;
            }
        }
        assert_eq!(open.len() + rejected, (round + 1) * ACCOUNTS);
    }
    assert_eq!((open.len(), rejected), (1000, ACCOUNTS * EACH - 1000));

    // Each of them receives what its caller may see, and the others continue.
    let began = Instant::now();
    let id = stack.session("w0").await;
    let mut received = 0;
    for (_, events) in open.iter_mut().filter(|(number, _)| *number == 0) {
        assert_eq!(events.next().await.unwrap().name, "reset");
        assert_eq!(events.next().await.unwrap().data["session"]["id"], id.as_str());
        received += 1;
    }
    assert!(received > EACH / 2, "{received}");
    assert_eq!(stack.get("eve", "/sessions").await.status, StatusCode::OK);
    println!(
        "{received} watchers of 1000 had the new session after {:?}",
        began.elapsed()
    );
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(open);
    eventually("the places are free", async || {
        let events = Events::open(&stack, "ada", "", "").await;
        events.head.starts_with("HTTP/1.1 200")
    })
    .await;
}

#[tokio::test]
async fn wrong_credentials_limit_their_address() {
    let stack = Stack::start_with("limits.failures_per_minute_per_address = 3\n").await;
    for _ in 0..3 {
        assert_eq!(stack.get("wrong", "/orgs").await.status, StatusCode::UNAUTHORIZED);
    }
    let limited = stack.get("wrong", "/orgs").await;
    assert_eq!(
        (limited.status, limited.reason()),
        (StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED")
    );
    assert!(limited.header("retry-after").parse::<u64>().unwrap() >= 1);
}
