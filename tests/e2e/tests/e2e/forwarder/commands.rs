//! Commands beside a forwarder, and sessions that live as long as these.

use anyhow::{Context, Result, ensure};
use e2e::{Client, Engine, Forwarder, Stack, installed, signal_child, wait};
use rustix::process::Signal;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const LIMIT: Duration = Duration::from_secs(240);

/// A usual program: nothing of Berth, and functions before there is a session.
const PROGRAM: &str = "
import sys
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
plus = F.col('id') + 1
spark = SparkSession.builder.getOrCreate()
print('total', spark.range(10).select(F.sum(plus)).collect()[0][0], flush=True)
if sys.argv[1] == 'wait':
    sys.stdin.readline()
spark.stop()
sys.exit(int(sys.argv[1]))
";

/// The interpreter and the file of the program.
fn program(stack: &Stack) -> Result<[String; 2]> {
    let path = stack.dir.path().join("program.py");
    std::fs::write(&path, PROGRAM)?;
    let python = installed("venv-sail/bin/python")?;
    Ok([python, path].map(|path| path.display().to_string()))
}

/// The arguments that run the program, with an argument, in a session of its own.
fn exec_created<'a>(more: &[&'a str], [python, path]: &'a [String; 2], arg: &'a str) -> Vec<&'a str> {
    let exec = ["exec", "--create", "--cluster", Engine::Sail.cluster()];
    [&exec[..], more, &["--", python, path, arg]].concat()
}

async fn only_session(stack: &Stack) -> Result<Value> {
    let all = stack.berth("ada", &["list", "--all"])?;
    let all = all.as_array().context("a list")?;
    ensure!(all.len() == 1, "{all:?}");
    Ok(all[0].clone())
}

#[tokio::test]
async fn a_command_has_a_session_of_its_own() -> Result<()> {
    let stack = Stack::start().await?;
    let command = program(&stack)?;
    let more = ["--name", "job", "--label", "team=etl"];
    let mut command = stack.berth_command("ada", &exec_created(&more, &command, "3"))?;
    let output = tokio::time::timeout(LIMIT, command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{:?}: {said}", output.status);
    ensure!(output.stdout == b"total 55\n", "{output:?}");
    ensure!(said.contains("active after"), "the start is shown: {said}");
    let session = only_session(&stack).await?;
    ensure!(session["status"] == "closed", "{session}");
    ensure!(
        session["name"] == "job" && session["labels"]["team"] == "etl",
        "{session}"
    );
    Ok(())
}

/// The command ends by the signal, and its session is closed all the same.
#[tokio::test]
async fn a_signal_ends_the_command_and_closes_the_session() -> Result<()> {
    let stack = Stack::start().await?;
    let command = program(&stack)?;
    let mut child = stack
        .berth_command("ada", &exec_created(&[], &command, "wait"))?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await??;
    ensure!(line.as_deref() == Some("total 55"), "{line:?}");
    signal_child(&child, Signal::TERM)?;
    let status = tokio::time::timeout(LIMIT, child.wait()).await??;
    ensure!(status.code() == Some(143), "{status:?}");
    let session = only_session(&stack).await?;
    ensure!(session["status"] == "closed", "{session}");
    Ok(())
}

/// Programs with `sc://localhost:15002` in their code, unchanged.
#[tokio::test]
async fn programs_with_the_default_port_in_their_code_work() -> Result<()> {
    const HARD_CODED: &str = "
from pyspark.sql import SparkSession
spark = SparkSession.builder.remote('sc://localhost:15002').getOrCreate()
print(spark.sql('SELECT 7').collect()[0][0])
spark.stop()
";
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let path = stack.dir.path().join("hard_coded.py");
    std::fs::write(&path, HARD_CODED)?;
    for venv in ["venv-sail", "venv-py35"] {
        let python = installed(&format!("{venv}/bin/python"))?.display().to_string();
        let path = path.display().to_string();
        let args = ["exec", &session, "--default-port", "--", &python, &path];
        let mut command = stack.berth_command("ada", &args)?;
        let output = tokio::time::timeout(LIMIT, command.output()).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{venv}: {said}");
        ensure!(output.stdout == b"7\n", "{venv}: {output:?}");
    }
    // `berth exec` did not create the session and does not close it.
    ensure!(stack.show("ada", &session)?["status"] == "active");
    Ok(())
}

#[tokio::test]
async fn the_session_of_a_forwarder_is_closed_with_it() -> Result<()> {
    let stack = Stack::start().await?;
    for signal in [Signal::INT, Signal::TERM] {
        let forwarder = Forwarder::start(&stack, "ada", &["--create", "--cluster", "sail"]).await?;
        let args = ["select1", "--url", &forwarder.url];
        let seen = Client::Py43
            .run(stack.dir.path(), "client.py", &args, None)
            .await?;
        ensure!(seen["value"] == 1, "{seen}");
        let session = forwarder.session.clone();
        ensure!(stack.show("ada", &session)?["status"] == "active");
        ensure!(forwarder.end(signal).await? == Some(0), "{signal:?}");
        ensure!(stack.show("ada", &session)?["status"] == "closed");
    }
    Ok(())
}

/// Ctrl-C while the session starts.
#[tokio::test]
async fn a_session_that_starts_is_closed_too() -> Result<()> {
    let gate = e2e::Gate::closed()?;
    let stack = Stack::start_with(e2e::StackOptions {
        manager: gate.clusters(),
        ..e2e::StackOptions::default()
    })
    .await?;
    let args = ["connect", "--port", "0", "--create", "--cluster", "gated-sail"];
    let mut child = stack.berth_command("ada", &args)?.spawn()?;
    let starting = wait::until("the session to start", Duration::from_secs(60), async || {
        let session = only_session(&stack).await.map_err(|error| error.to_string())?;
        match session["phase"].as_str() {
            Some("provisioning") => Ok(session),
            _ => Err(session.to_string()),
        }
    });
    starting.await?;
    signal_child(&child, Signal::INT)?;
    let status = tokio::time::timeout(LIMIT, child.wait()).await??;
    ensure!(status.code() == Some(130), "{status:?}");
    let session = only_session(&stack).await?;
    ensure!(session["status"] == "closed", "{session}");
    Ok(())
}
