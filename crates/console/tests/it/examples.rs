//! The example in docs/rest.md works as it is printed.

use crate::support::Stack;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// The first block of this language in docs/rest.md.
fn block(language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/rest.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// Uses what the example defines.
const USE: &str = r#"
session = api("POST", "sessions", {"cluster": "c"}, **{"Idempotency-Key": "example"})
token = Token(session["id"])
first = token.get()
assert token.get() == first, "a valid token is used again"
token.expires -= datetime.timedelta(minutes=57)
assert token.get() != first, "an expiring token is renewed"
assert token.get() in token.url
closed = api("POST", f"sessions/{session['id']}:close")
print(closed["status"])
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_renews_its_token() {
    let stack = Stack::start().await;
    stack.issuer_ready("ada").await;
    let run = Command::new("python3")
        .arg("-c")
        .arg(format!("{}\n{USE}", block("python")))
        .env("BERTH", format!("http://{}", stack.console))
        .env("BERTH_KEY", stack.key("ada"))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .unwrap()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "closed",
        "{errors}"
    );
}
