//! Queries on Sail that say nothing for a long time: a busy engine is not a
//! lost one, and a client that saw only heartbeats can come back.

use anyhow::{Context as _, Result};
use e2e::{Client, Engine, Relay, Stack, StackOptions, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// Whoever judges compute by its silence would do so within two seconds.
const IMPATIENT: &str = "backend.silence = \"1s\"\nbackend.ping_timeout = \"1s\"";

/// Bytes of messages that the session's clients got so far.
fn bytes_out(stack: &Stack, session: &str) -> Result<u64, String> {
    let shown = stack.show("ada", session).map_err(|error| error.to_string())?;
    let bytes = &shown["usage"]["bytes_out"];
    let bytes = bytes.as_u64().or_else(|| bytes.as_str()?.parse().ok());
    bytes.ok_or_else(|| shown.to_string())
}

/// Sail sends an empty message every 15 s. They have response ids, and the
/// client names the last one when it comes back.
#[tokio::test]
async fn a_job_that_sent_only_heartbeats_survives_a_cut_connection() -> Result<()> {
    let stack = Stack::start().await?;
    let relay = Relay::start(stack.proxy_address).await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.via(&stack.url("ada", &session)?, relay.address);
    let job = ["job", "--url", &url, "--seconds", "40"];
    let running = Client::Py41
        .start_until(stack.dir.path(), "client.py", &job, None, "asking")
        .await?;
    let began = Instant::now();
    let schema = wait::until("the schema passes", LIMIT, async || {
        match bytes_out(&stack, &session)? {
            0 => Err("nothing yet".to_owned()),
            bytes => Ok(bytes),
        }
    })
    .await?;
    wait::until("a heartbeat passes", LIMIT, async || {
        match bytes_out(&stack, &session)? {
            bytes if bytes > schema => Ok(()),
            bytes => Err(format!("{bytes} bytes after {:?}", began.elapsed())),
        }
    })
    .await?;
    let cut_after = began.elapsed();
    relay.cut();
    let seen = running.finish(LIMIT).await?;
    assert_eq!(
        (&seen["right"], &seen["rows"]),
        (&true.into(), &1.into()),
        "{seen}"
    );
    let took = seen["seconds"].as_f64().unwrap_or_default();
    assert!(
        took > cut_after.as_secs_f64(),
        "it was over before the cut: {seen}, {cut_after:?}"
    );
    Ok(())
}

/// An engine that answers nothing for ten seconds, no ping either, and then
/// goes on: stopped, as a starved one is, but for sure.
#[tokio::test]
async fn an_engine_that_is_busy_is_not_lost() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        proxy: IMPATIENT.to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    let mut notebook = Client::Py41.repl(stack.dir.path(), &url, None).await?;
    let who = notebook.sql("SELECT current_user()").await?;
    assert_eq!(who["rows"][0][0], "sa|ada", "the user is a person: {who}");

    let engines = stack.children_matching("sail spark server")?;
    let signal = |signal| -> Result<()> {
        for pid in &engines {
            let pid = Pid::from_raw(i32::try_from(*pid)?).context("a pid")?;
            kill_process(pid, signal)?;
        }
        Ok(())
    };
    signal(Signal::STOP)?;
    let began = Instant::now();
    let (answer, resumed) = tokio::join!(notebook.sql("SELECT 1"), async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        signal(Signal::CONT)
    });
    resumed?;
    let answer = answer?;
    assert!(answer["error"].is_null(), "{answer}");
    assert!(began.elapsed() >= Duration::from_secs(10), "it was not stopped");

    // A join that takes both cores.
    let join = "SELECT count(*) FROM range(60000) a JOIN range(60000) b ON a.id % 101 < b.id % 97";
    let answer = notebook.sql(join).await?;
    assert!(answer["error"].is_null(), "{answer}");
    let shown = stack.show("ada", &session)?;
    assert_eq!(shown["generation"], 1, "{shown}");
    Ok(())
}
