//! `make run`: a real PySpark query, then serving until Ctrl-C, which stops
//! everything that was started.

use anyhow::{Context, Result};
use e2e::{repo, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const LIMIT: Duration = Duration::from_secs(300);

/// The script on ports and state of its own, and the programs of this build.
fn run(state: &TempDir, exit: &str) -> Result<Child> {
    let offset = 1000 + std::process::id() % 18_000;
    // Where the tests run in the background, Ctrl-C is ignored and no shell can
    // change that: give it its meaning back.
    Command::new("env")
        .arg("--default-signal=INT")
        .arg(repo().join("deploy/local/run.sh"))
        .env("BERTH_PROFILE", "dev")
        .env("BERTH_STATE", state.path())
        .env("BERTH_PORT_OFFSET", offset.to_string())
        .env("EXIT", exit)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting deploy/local/run.sh")
}

/// Processes whose command line names this state folder.
fn left_of(state: &TempDir) -> Result<Vec<String>> {
    let marker = state.path().display().to_string();
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if command.contains(&marker) || cwd.starts_with(&marker) {
            left.push(command);
        }
    }
    Ok(left)
}

async fn until_nothing_is_left(state: &TempDir) -> Result<()> {
    wait::until(
        "everything to be stopped",
        Duration::from_secs(20),
        async || match left_of(state) {
            Ok(left) if left.is_empty() => Ok(()),
            Ok(left) => Err(left.join("; ")),
            Err(error) => Err(error.to_string()),
        },
    )
    .await
}

/// One after the other: both are heavy, and share their ports.
#[tokio::test]
async fn it_queries_and_exits_or_serves_until_interrupted() -> Result<()> {
    let state = tempfile::tempdir()?;
    let output = tokio::time::timeout(LIMIT, run(&state, "1")?.wait_with_output()).await??;
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(
        said.contains("| default|   orders|"),
        "SHOW TABLES is not there:\n{said}\n{errors}"
    );
    assert!(
        said.contains("customer-090"),
        "the query's result is not there:\n{said}"
    );
    until_nothing_is_left(&state).await?;

    let mut serving = run(&state, "")?;
    let mut lines = BufReader::new(serving.stdout.take().context("stdout")?).lines();
    let mut said = String::new();
    let waited = tokio::time::timeout(LIMIT, async {
        while let Some(line) = lines.next_line().await? {
            said += &line;
            said.push('\n');
            if line.contains("Ctrl-C stops everything") {
                return anyhow::Ok(());
            }
        }
        anyhow::bail!("it ended")
    });
    waited.await?.with_context(|| said.clone())?;
    assert!(
        said.contains(".remote(\"sc://localhost:"),
        "no connection string:\n{said}"
    );
    let pid = serving
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
        .context("pid")?;
    kill_process(pid, Signal::INT)?;
    let status = tokio::time::timeout(Duration::from_secs(40), serving.wait()).await??;
    assert_eq!(status.code(), Some(130));
    until_nothing_is_left(&state).await
}
