//! Restarts of spark-proxy and token-issuer, and an idle session.

use super::load::{Caller, issued};
use anyhow::{Context, Result, ensure};
use e2e::{Client, Engine, Forwarder, Stack, wait};
use std::time::{Duration, Instant};

/// When a token of 60 s is renewed.
const RENEWAL: Duration = Duration::from_secs(45);

/// The proxy is killed and restarted; token-issuer is down when the token must
/// be renewed. Calls wait for the proxy, and the renewal follows later.
#[tokio::test]
async fn a_restart_loses_neither_calls_nor_the_renewal() -> Result<()> {
    let mut stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let begun = Instant::now();
    let forwarder = Forwarder::start(&stack, "ada", &[&session, "--ttl", "60s"]).await?;
    let mut notebook = Client::Py41.repl(stack.dir.path(), &forwarder.url, None).await?;
    let mut caller = Caller::new(&forwarder)?;
    ensure!(notebook.sql("SELECT 1").await?["error"].is_null());
    caller.call().await?;

    stack.proxy.kill9().await?;
    // Neither client repeats this call by itself: the forwarder holds it.
    let (call, restart) = tokio::join!(caller.call(), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        stack.proxy.start_ready().await
    });
    restart?;
    call.context("a call while the proxy was down")?;
    let answer = notebook.sql("SELECT 1").await?;
    ensure!(answer["error"].is_null(), "{answer}");

    stack.issuer.kill9().await?;
    tokio::time::sleep((RENEWAL + Duration::from_secs(3)).saturating_sub(begun.elapsed())).await;
    caller.call().await.context("the token is still valid")?;
    stack.issuer.start_ready().await?;
    // The counter starts at 0 with the process.
    wait::until("a new token", Duration::from_secs(30), async || {
        match issued(&stack).await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(63).saturating_sub(begun.elapsed())).await;
    caller.call().await.context("the first token has expired")?;
    let answer = notebook.sql("SELECT 1").await?;
    ensure!(answer["error"].is_null(), "{answer}");
    Ok(())
}

#[tokio::test]
async fn an_idle_session_is_woken() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let forwarder = Forwarder::start(&stack, "ada", &[&session]).await?;
    let mut notebook = Client::Py41.repl(stack.dir.path(), &forwarder.url, None).await?;
    ensure!(notebook.sql("SELECT 1").await?["error"].is_null());
    stack
        .shorten_idle_timeout(&session, Duration::from_secs(5))
        .await?;
    wait::until(
        "the session to be idle",
        Duration::from_secs(120),
        async || match stack.show("ada", &session) {
            Ok(shown) if shown["phase"] == "released" => Ok(()),
            Ok(shown) => Err(shown.to_string()),
            Err(error) => Err(error.to_string()),
        },
    )
    .await?;
    let answer = notebook.sql("SELECT 1").await?;
    ensure!(answer["error"].is_null(), "{answer}");
    ensure!(stack.show("ada", &session)?["generation"] == 2);
    Ok(())
}
