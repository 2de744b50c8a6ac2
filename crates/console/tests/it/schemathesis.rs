//! schemathesis makes requests from the OpenAPI document and checks the
//! replies against it: no 5xx, no undocumented status, type or body.

use crate::support::Stack;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance";

/// `deploy/local/setup.sh test` installs it.
fn program() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let home = std::env::var_os("BERTH_HOME").map_or(repository.join(".berth"), PathBuf::from);
    home.join("venv-schemathesis/bin/schemathesis")
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_by_the_schema_meet_no_fault() {
    let program = program();
    assert!(
        program.is_file(),
        "{} is missing: run `make setup`",
        program.display()
    );
    let stack = Stack::start_with(
        "limits.requests_per_second_per_credential = 0\nlimits.requests_per_second_per_address = 0\n\
         limits.failures_per_minute_per_address = 0\n",
    )
    .await;
    stack.session("pat").await;
    let dir = tempfile::tempdir().unwrap();
    let run = Command::new(program)
        .current_dir(dir.path())
        .arg("run")
        .arg(format!("http://{}/api/v1/openapi.json", stack.console))
        .args(["--header", &format!("Authorization: Bearer {}", stack.key("pat"))])
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", "20", "--seed", "17", "--workers", "1"])
        .args(["--request-timeout", "20", "--no-color"])
        // The stream stays open; watch.rs tests it. A test of a catalog takes 75 s.
        .args([
            "--exclude-operation-id",
            "watch_sessions",
            "--exclude-operation-id",
            "test_catalog",
        ])
        // It would end every other request.
        .args([
            "--exclude-operation-id",
            "disable_org",
            "--exclude-operation-id",
            "disable_principal",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(170), run)
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
