//! `berth-dev run`, which `make run` builds and calls: a real PySpark query, then
//! serving until Ctrl-C or its death, which end everything that was started.

use anyhow::{Context, Result};
use e2e::{binary, http, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const LIMIT: Duration = Duration::from_secs(300);

/// The program on ports and state of its own, with the services of this build.
fn run(state: &TempDir, more: &[&str]) -> Result<Child> {
    let offset = 1000 + std::process::id() % 18_000;
    Command::new(binary("berth-dev")?)
        .args(["run", "--port-offset", &offset.to_string()])
        .args(more)
        .env("BERTH_STATE", state.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting berth-dev")
}

/// As [`run`], until it serves; and what it printed.
async fn serve(state: &TempDir) -> Result<(Child, String)> {
    let mut serving = run(state, &[])?;
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
    Ok((serving, said))
}

/// Sends it a signal and returns its exit code.
async fn end(mut serving: Child, signal: Signal) -> Result<Option<i32>> {
    let pid = serving
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
        .context("pid")?;
    kill_process(pid, signal)?;
    let status = tokio::time::timeout(Duration::from_secs(40), serving.wait()).await??;
    Ok(status.code())
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

/// No process of the stack has a secret in its arguments.
fn assert_no_secret_in_arguments(state: &TempDir) -> Result<()> {
    let password = std::fs::read_to_string(state.path().join("redis.password"))?;
    let account = std::fs::read(state.path().join("account.json"))?;
    let account: serde_json::Value = serde_json::from_slice(&account)?;
    let key = account["key"].as_str().context("no key")?;
    let commands = left_of(state)?;
    assert!(commands.len() >= 5, "{commands:?}");
    for command in &commands {
        assert!(!command.contains(password.trim()) && !command.contains(key));
    }
    Ok(())
}

/// The console is where the output says.
async fn assert_console_answers(said: &str) -> Result<()> {
    let (_, rest) = said
        .split_once("The console in your browser:")
        .context("no console")?;
    let (_, rest) = rest.split_once("http://localhost:").context("no address")?;
    let port: u16 = rest.split_whitespace().next().context("no port")?.parse()?;
    let answer = http::get(([127, 0, 0, 1], port).into(), "/auth/session", "").await?;
    anyhow::ensure!(answer.contains("\"methods\":[{\"id\":\"key\"}]"), "{answer}");
    Ok(())
}

/// One after the other: all are heavy, and share their ports and state.
#[tokio::test]
async fn it_queries_and_exits_or_serves_until_interrupted() -> Result<()> {
    let state = tempfile::tempdir()?;
    let output = tokio::time::timeout(LIMIT, run(&state, &["--exit"])?.wait_with_output()).await??;
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
    let key = std::fs::read(state.path().join("account.json"))?;

    let (serving, said) = serve(&state).await?;
    assert!(
        said.contains(".remote(\"sc://localhost:"),
        "no connection string:\n{said}"
    );
    assert_console_answers(&said).await?;
    assert_no_secret_in_arguments(&state)?;
    assert_eq!(end(serving, Signal::KILL).await?, None);
    until_nothing_is_left(&state).await?;

    let (serving, _) = serve(&state).await?;
    assert_eq!(std::fs::read(state.path().join("account.json"))?, key);
    assert_eq!(end(serving, Signal::INT).await?, Some(130));
    until_nothing_is_left(&state).await
}
