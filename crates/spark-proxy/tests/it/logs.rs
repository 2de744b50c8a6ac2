//! Log of the released proxy, while clients send malformed paths, headers and tokens, and
//! session-manager and compute return unusual texts: every line is one line of valid JSON without
//! terminal control characters.

use crate::common::{Client, OwnProcess, Rpc, within};
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

/// The part that a header can carry.
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
async fn each_log_line_is_one_object_for_any_client_input() {
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
        for rpc in [
            Rpc::to(&format!("/{path}")),
            Rpc::spark(&path),
            Rpc::spark(&format!("{path}%0a")).bearer(&proxy.token()),
            Rpc::spark("Config").bearer(&said),
            Rpc::spark("Config").header("authorization", &said),
            proxy.rpc().header("x-session-id", &said),
            proxy.rpc().header("traceparent", &said),
            proxy.rpc().header("grpc-timeout", &said),
            proxy.rpc().header("user-agent", &said),
            proxy
                .rpc()
                .body(test_support::fake_spark::framed(text.as_bytes())),
        ] {
            let _ = within("an answer", client.call(rpc)).await;
        }
        // Texts of session-manager that repeat client input.
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
        "the log has none of the client's texts, so the test proves nothing"
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
