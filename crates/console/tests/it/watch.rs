//! Server-sent events of sessions.

use crate::support::{LIMIT, Stack, eventually};
use http::{Method, StatusCode};
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A stream of events over HTTP/1.1.
pub(crate) struct Events {
    lines: BufReader<TcpStream>,
    pub(crate) head: String,
}

/// One event.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) name: String,
    id: String,
    pub(crate) data: Value,
}

impl Events {
    pub(crate) async fn open(stack: &Stack, who: &str, query: &str, last: &str) -> Self {
        let mut socket = TcpStream::connect(stack.console).await.unwrap();
        let last = match last {
            "" => String::new(),
            last => format!("last-event-id: {last}\r\n"),
        };
        let key = stack.key(who);
        let request = format!(
            "GET /api/v1/sessions:watch{query} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n{last}\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut events = Self {
            lines: BufReader::new(socket),
            head: String::new(),
        };
        loop {
            let line = events.line().await.unwrap();
            if line.is_empty() {
                return events;
            }
            events.head += &format!("{line}\n");
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(LIMIT, self.lines.read_line(&mut line))
            .await
            .unwrap();
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }

    /// The next event; none at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let (mut name, mut id, mut data) = (String::new(), String::new(), None);
        loop {
            let line = self.line().await?;
            if let Some(text) = line.strip_prefix("event: ") {
                text.clone_into(&mut name);
            } else if let Some(text) = line.strip_prefix("id: ") {
                text.clone_into(&mut id);
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = Some(serde_json::from_str(text).unwrap());
            } else if line.is_empty()
                && let Some(data) = data.take()
            {
                return Some(Event { name, id, data });
            } else if line == "0" {
                return None;
            }
        }
    }

    /// Reads until the view of the sessions meets a condition.
    async fn until(
        &mut self,
        view: &mut BTreeMap<String, String>,
        met: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> String {
        let mut last = String::new();
        loop {
            let event = self.next().await.expect("the stream ended");
            match event.name.as_str() {
                "reset" => view.clear(),
                "snapshot" | "session" => {
                    let session = &event.data["session"];
                    let text = |field: &str| session[field].as_str().unwrap().to_owned();
                    view.insert(text("id"), text("status"));
                    last = event.id;
                }
                other => panic!("{other}: {event:?}"),
            }
            if met(view) {
                return last;
            }
        }
    }
}

#[tokio::test]
async fn a_watch_shows_every_change_and_goes_on_after_a_break() {
    let stack = Stack::start().await;
    let first = stack.session("ada").await;
    let foreign = stack.session("eve").await;
    let mut events = Events::open(&stack, "ada", "", "").await;
    assert!(events.head.starts_with("HTTP/1.1 200"), "{}", events.head);
    assert!(
        events.head.contains("content-type: text/event-stream"),
        "{}",
        events.head
    );
    assert!(events.head.contains("cache-control: no-store"));
    let reset = events.next().await.unwrap();
    assert_eq!(reset.name, "reset");
    let mut view = BTreeMap::new();
    events.until(&mut view, |view| view.contains_key(&first)).await;
    let second = stack.session("ada").await;
    events.until(&mut view, |view| view.contains_key(&second)).await;
    stack.ready("acme", &second).await;
    let id = events.until(&mut view, |view| view[&second] == "active").await;
    assert!(id.starts_with(&format!("{second}@")), "{id}");
    drop(events);

    // In the break one session ends and one begins.
    stack
        .ask("ada", Method::POST, &format!("/sessions/{first}:close"), None)
        .await;
    let third = stack.session("ada").await;
    let mut events = Events::open(&stack, "ada", "", &id).await;
    let reset = events.next().await.unwrap();
    assert_eq!(
        (reset.name.as_str(), &reset.data["reset"]["after"]),
        ("reset", &Value::from(id))
    );
    view.clear();
    events
        .until(&mut view, |view| {
            view.contains_key(&second) && view.contains_key(&third)
        })
        .await;
    let gone = view.get(&first).is_none_or(|status| status == "closed");
    assert!(gone && !view.contains_key(&foreign), "{view:?}");
}

#[tokio::test]
async fn a_watch_of_one_session_ends_with_it() {
    let stack = Stack::start().await;
    let id = stack.session("ada").await;
    let mut events = Events::open(&stack, "ada", &format!("?session_id={id}"), "").await;
    stack
        .ask("ada", Method::POST, &format!("/sessions/{id}:close"), None)
        .await;
    let mut names = Vec::new();
    let mut closed = false;
    while let Some(event) = events.next().await {
        closed |= event.data["session"]["status"] == "closed";
        names.push(event.name);
        if names.last().is_some_and(|name| name == "end") {
            break;
        }
    }
    assert!(
        closed && names.first().is_some_and(|name| name == "reset"),
        "{names:?}"
    );
    assert_eq!(names.last().map(String::as_str), Some("end"), "{names:?}");
    let absent = stack
        .get("bob", &format!("/sessions:watch?session_id={id}"))
        .await;
    assert_eq!(
        (absent.status, absent.reason()),
        (StatusCode::FORBIDDEN, "NOT_AUTHORIZED")
    );
}

#[tokio::test]
async fn an_error_after_the_start_is_an_event() {
    let stack = Stack::start().await;
    let mut events = Events::open(&stack, "bob", "", "").await;
    assert_eq!(events.next().await.unwrap().name, "reset");
    let out = stack
        .ask("olga", Method::POST, "/principals/sa%7Cbob:disable", None)
        .await;
    assert_eq!(out.status, StatusCode::OK);
    loop {
        let event = events.next().await.expect("an error before the end");
        if event.name == "error" {
            assert_eq!(event.data["reason"], "CALLER_UNKNOWN", "{event:?}");
            assert_eq!(event.data["status"], 401);
            break;
        }
    }
}

#[tokio::test]
async fn the_end_of_a_client_frees_its_stream() {
    let stack = Stack::start_with("limits.streams_per_credential = 2\n").await;
    let one = Events::open(&stack, "ada", "", "").await;
    let _two = Events::open(&stack, "ada", "", "").await;
    let third = stack.get("ada", "/sessions:watch").await;
    assert_eq!(
        (third.status, third.reason()),
        (StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED")
    );
    assert_eq!(third.header("retry-after"), "1");
    drop(one);
    eventually("a stream is free", async || {
        let events = Events::open(&stack, "ada", "", "").await;
        events.head.starts_with("HTTP/1.1 200")
    })
    .await;
}
