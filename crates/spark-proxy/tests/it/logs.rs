//! The log of the proxy as it ships, while clients write paths, headers and
//! tokens badly, and session-manager and compute answer with odd texts: every
//! line stays one line of valid JSON that says nothing to a terminal.

use crate::common::{Ask, Client, OwnProcess, within};
use session_core::SessionId;
use session_proto::internal::{Route, RouteStatus};
use std::path::Path;
use std::time::Duration;

const MARK: &str = "F0RGED";

fn hostile() -> Vec<String> {
    vec![
        format!("x\r\n{{\"level\":\"ERROR\",\"message\":\"{MARK}\"}}"),
        format!("\",\"level\":\"ERROR\",\"{MARK}\":\""),
        format!("\u{1b}[2J{MARK}\u{7}\u{9b}31m\u{85}"),
        format!("\u{202e}{MARK}\u{2028}\u{200b}\u{feff}\0"),
    ]
}

/// What a header can carry of it.
fn header(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_control()).collect()
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| format!("%{byte:02x}"))
        .collect::<String>()
        + MARK
}

fn log_of(path: &Path) -> String {
    String::from_utf8(std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_is_one_object_whatever_clients_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = std::fs::File::create(&path).unwrap();
    let proxy = OwnProcess::start_logging(log.into(), |config| {
        config.telemetry.level = "debug,h2=info,hyper=info,tower=info".to_owned();
    })
    .await;
    for text in hostile() {
        let client = Client::plain(proxy.address).await.unwrap();
        let (said, path) = (header(&text), escaped(&text));
        for ask in [
            Ask::to(&format!("/{path}")),
            Ask::spark(&path),
            Ask::spark(&format!("{path}%0a")).bearer(&proxy.token()),
            Ask::spark("Config").bearer(&said),
            Ask::spark("Config").header("authorization", &said),
            proxy.ask().header("x-session-id", &said),
            proxy.ask().header("traceparent", &said),
            proxy.ask().header("grpc-timeout", &said),
            proxy.ask().header("user-agent", &said),
            proxy
                .ask()
                .body(test_support::fake_spark::framed(text.as_bytes())),
        ] {
            let _ = within("an answer", client.call(ask)).await;
        }
        // Texts of a session-manager that repeats what somebody told it.
        for status in [RouteStatus::Failed, RouteStatus::Pending, RouteStatus::Idle] {
            let session = SessionId::generate(session_core::Timestamp::from_millis(1), 3).to_string();
            proxy.routes.announce(Route {
                session_id: session,
                status: status.into(),
                status_message: text.clone(),
                ..Route::default()
            });
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let log = log_of(&path);
    assert!(
        log.contains(MARK),
        "nothing that was said is in the log, so this shows nothing"
    );
    let turns = ['\u{200b}', '\u{202e}', '\u{2028}', '\u{feff}'];
    for line in log.lines() {
        assert!(
            !line.chars().any(|c| c.is_control() || turns.contains(&c)),
            "{line:?}"
        );
        let line: serde_json::Map<_, _> =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"] != "ERROR",
            "{line:?}"
        );
        assert!(!line.contains_key(MARK), "a field was forged: {line:?}");
    }
}
