//! Queries that outlive what is around them: their token, their proxy, their
//! connection, their compute. What can be moved is moved exactly; what cannot
//! ends loudly, and nothing runs twice.

use anyhow::Result;
use e2e::{Client, Engine, Relay, RunningClient, Server, Stack, StackOptions, wait};
use serde_json::Value;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(240);

/// Apache Spark that cuts result streams every three seconds instead of every
/// two minutes, so that clients reattach all the time.
pub(crate) const CUT_AFTER: Duration = Duration::from_secs(3);
const CUTS_OFTEN: &str = "spark.connect.execute.reattachable.senderMaxStreamDuration=3s";

pub(crate) async fn on_spark(proxy: &str) -> Result<(Stack, Server, String)> {
    let server = Server::spark(std::env::temp_dir().as_path(), &[CUTS_OFTEN]).await?;
    let stack = Stack::start_with(StackOptions {
        manager: format!(
            "[[clusters]]\nname = \"shared\"\nengine = \"spark\"\ngranted_orgs = [\"acme\"]\nstatic.endpoints = [{{ address = \"{}\" }}]\n",
            server.address
        ),
        proxy: proxy.to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let session = stack.berth("ada", &["create", "--wait", "--cluster", "shared"])?;
    let session = session["id"].as_str().unwrap_or_default().to_owned();
    Ok((stack, server, session))
}

async fn slow_query(stack: &Stack, url: &str, seconds: u32, more: &[&str]) -> Result<RunningClient> {
    start_query(stack, url, seconds, more, "streaming").await
}

async fn start_query(
    stack: &Stack,
    url: &str,
    seconds: u32,
    more: &[&str],
    mark: &str,
) -> Result<RunningClient> {
    let seconds = seconds.to_string();
    let args = ["stream", "--url", url, "--seconds", &seconds];
    Client::Py41
        .start_until(
            stack.dir.path(),
            "client.py",
            &[&args[..], more].concat(),
            None,
            mark,
        )
        .await
}

/// Every row came, and came once.
fn assert_exact(seen: &Value) {
    assert!(seen["error"].is_null(), "{seen}");
    assert_eq!(seen["rows"], seen["expected"], "{seen}");
    assert_eq!(seen["distinct"], seen["expected"], "{seen}");
}

#[tokio::test]
async fn a_query_outlives_its_token() -> Result<()> {
    let (stack, _server, session) =
        on_spark("tokens.leeway = \"0s\"\ntelemetry.level = \"spark_proxy=debug\"").await?;
    let token = stack.berth("ada", &["token", &session, "--ttl", "60s"])?;
    let issued = Instant::now();
    let url = token["connection_url"].as_str().unwrap_or_default();
    let running = slow_query(&stack, url, 110, &[]).await?;
    let seen = running.finish(LIMIT).await?;
    if !seen["error"].is_null() {
        println!("{}", stack.proxy.log());
    }
    assert_exact(&seen);
    assert!(
        issued.elapsed() > Duration::from_secs(65),
        "it ended before its token did: {seen}"
    );
    // The token is over for everything else.
    let late = ["expect-error", "--url", url];
    let seen = Client::Py41
        .run(stack.dir.path(), "client.py", &late, None)
        .await?;
    assert!(
        seen["text"].as_str().is_some_and(|text| text.contains("expired")),
        "{seen}"
    );
    Ok(())
}

#[tokio::test]
async fn spark_moves_to_the_next_proxy_exactly() -> Result<()> {
    let (mut stack, _server, session) = on_spark("drain.timeout = \"2s\"").await?;
    let (_next, next_address) = stack.another_proxy().await?;
    let relay = Relay::start(stack.proxy_address).await?;
    let url = stack.via(&stack.url("ada", &session)?, relay.address);
    let running = slow_query(&stack, &url, 20, &[]).await?;
    relay.point_at(next_address);
    let began = Instant::now();
    let status = stack.proxy.terminate().await?;
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_exact(&running.finish(LIMIT).await?);
    Ok(())
}

/// A result that trickles because its reader does: Sail gives small results in
/// one piece when all of it is there.
const SLOWLY_READ: [&str; 6] = ["--kind", "range", "--rows", "400000", "--pause", "0.2"];

#[tokio::test]
async fn sail_finishes_before_its_proxy_exits() -> Result<()> {
    let mut stack = Stack::start_with(StackOptions {
        proxy: "drain.timeout = \"80s\"".to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let (_next, next_address) = stack.another_proxy().await?;
    let relay = Relay::start(stack.proxy_address).await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.via(&stack.url("ada", &session)?, relay.address);
    let running = slow_query(&stack, &url, 10, &SLOWLY_READ).await?;
    relay.point_at(next_address);
    let (ended, seen) = tokio::join!(stack.proxy.terminate(), running.finish(LIMIT));
    assert!(ended?.is_some_and(|status| status.success()));
    let seen = seen?;
    assert!(seen["error"].is_null(), "{seen}");
    assert_eq!(seen["rows"], 400_000, "{seen}");
    Ok(())
}

#[tokio::test]
async fn a_cut_connection_is_exact() -> Result<()> {
    let (stack, _server, session) = on_spark("").await?;
    let relay = Relay::start(stack.proxy_address).await?;
    let url = stack.via(&stack.url("ada", &session)?, relay.address);
    let running = slow_query(&stack, &url, 12, &[]).await?;
    relay.cut();
    assert_exact(&running.finish(LIMIT).await?);

    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.via(&stack.url("ada", &session)?, relay.address);
    let running = slow_query(&stack, &url, 12, &SLOWLY_READ).await?;
    relay.cut();
    let seen = running.finish(LIMIT).await?;
    assert!(seen["error"].is_null(), "{seen}");
    assert_eq!(seen["rows"], 400_000, "{seen}");
    Ok(())
}

#[tokio::test]
async fn nothing_runs_twice_when_compute_dies() -> Result<()> {
    let stack = Stack::start().await?;
    for (engine, process) in [
        (Engine::Sail, "sail spark server"),
        (Engine::Spark, "SparkConnectServer"),
    ] {
        let session = stack.session("ada", engine, &[])?;
        let url = stack.url("ada", &session)?;
        let witness = stack.dir.path().join(format!("{engine:?}.witness"));
        let witness = witness.display().to_string();
        let running = start_query(&stack, &url, 60, &["--witness", &witness], "asking").await?;
        // Sail gives small results in one piece at their end: what ran tells, not what came.
        wait::until(
            "rows are made",
            Duration::from_secs(60),
            async || match std::fs::read_to_string(&witness) {
                Ok(text) if text.lines().count() >= 10 => Ok(()),
                Ok(text) => Err(format!("{} rows", text.lines().count())),
                Err(error) => Err(error.to_string()),
            },
        )
        .await?;
        for pid in stack.children_matching(process)? {
            kill9(pid)?;
        }
        let seen = running.finish(Duration::from_secs(60)).await?;
        assert_eq!(seen["error"]["grpc_code"], "ABORTED", "{seen}");
        // The session gets new compute; the client's query must not come to it.
        wait::until("new compute", Duration::from_secs(90), async || {
            match stack.show("ada", &session) {
                Ok(shown) if shown["status"] == "active" && shown["generation"] == 2 => Ok(()),
                Ok(shown) => Err(shown.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        let one = ["select1", "--url", &url];
        let one = Client::Py41
            .run(stack.dir.path(), "client.py", &one, None)
            .await?;
        assert_eq!(one["value"], 1, "{one}");
        let mut times: HashMap<String, usize> = HashMap::new();
        for line in std::fs::read_to_string(&witness)?.lines() {
            *times.entry(line.to_owned()).or_default() += 1;
        }
        assert!(times.len() >= 10, "{times:?}");
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{engine:?}: {twice:?}");
        stack.berth("ada", &["close", &session])?;
    }
    Ok(())
}

fn kill9(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| anyhow::anyhow!("no pid"))?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

#[tokio::test]
async fn an_interrupt_ends_the_query_and_not_the_session() -> Result<()> {
    let stack = Stack::start().await?;
    for engine in [Engine::Spark, Engine::Sail] {
        let session = stack.session("ada", engine, &[])?;
        let url = stack.url("ada", &session)?;
        let mut args = vec!["interrupt", "--url", &url, "--limit", "90"];
        if engine == Engine::Spark {
            args.push("--tasks");
        }
        let seen = Client::Py41
            .run(stack.dir.path(), "client.py", &args, None)
            .await?;
        assert_eq!(seen["alive"], true, "{engine:?}: {seen}");
        let said = seen["error"]["text"].as_str().unwrap_or_default();
        assert!(said.contains("OPERATION_CANCELED"), "{engine:?}: {seen}");
    }
    Ok(())
}
