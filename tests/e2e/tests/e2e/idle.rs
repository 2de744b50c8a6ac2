//! A session that nobody uses gives its compute back, and gets it again when
//! somebody does; what only says goodbye leaves it alone.

use anyhow::Result;
use e2e::{Client, Engine, Stack, StackOptions, wait};
use serde_json::Value;
use std::time::{Duration, Instant};

const CALLS: &str = "100";

async fn until(stack: &Stack, session: &str, what: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(what, Duration::from_secs(240), async || {
        match stack.show("ada", session) {
            Ok(shown) if good(&shown) => Ok(shown),
            Ok(shown) => Err(shown.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn idle_and_warm_again() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        proxy: "limits.held_calls_per_session = 101".to_owned(),
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &["--idle-timeout", "1m"])?;
    let url = stack.url("ada", &session)?;
    let (dir, token) = (stack.dir.path(), stack.token("ada", &session)?);
    let mut notebook = Client::Py41.repl(dir, &url, None).await?;
    assert!(notebook.sql("SELECT 1").await?["error"].is_null());
    let leaving = Client::Py41
        .start_waiting(dir, "client.py", &["leave", "--url", &url], "queried")
        .await?;

    let shown = until(&stack, &session, "idle, its compute given back", |shown| {
        shown["status"] == "idle" && shown["phase"] == "released"
    })
    .await?;
    assert_eq!(shown["generation"], 1, "{shown}");
    wait::until("the end of Sail", Duration::from_secs(30), async || {
        match stack.children_matching("sail spark server") {
            Ok(left) if left.is_empty() => Ok(()),
            Ok(left) => Err(format!("{left:?} live")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;

    // A notebook's kernel is closed: Python exits without stop().
    let began = Instant::now();
    let left = leaving.go_on(Duration::from_secs(60)).await?;
    assert_eq!(left["value"], 1, "{left}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let shown = stack.show("ada", &session)?;
    assert_eq!(
        (&shown["status"], &shown["generation"]),
        (&"idle".into(), &1.into()),
        "{shown}"
    );

    // A hundred first queries at once, and that of a fresh client, bring it back once.
    let target = format!("localhost:{}", stack.proxy_address.port());
    let args = [
        "execute",
        "--target",
        &target,
        "--token",
        &token,
        "--at-once",
        CALLS,
    ];
    let fresh = ["select1", "--url", &url];
    let (seen, fresh) = tokio::join!(
        Client::Py41.run(dir, "raw.py", &args, None),
        Client::Py43.run(dir, "client.py", &fresh, None),
    );
    let (seen, fresh) = (seen?, fresh?);
    assert_eq!(seen["codes"]["OK"], 100, "{seen}");
    assert_eq!(fresh["value"], 1, "{fresh}");
    let shown = until(&stack, &session, "active again", |shown| {
        shown["status"] == "active"
    })
    .await?;
    assert_eq!(shown["generation"], 2, "one provision: {shown}");

    // The notebook that was open all the time goes on.
    let answer = notebook.sql("SELECT 2").await?;
    assert!(answer["error"].is_null(), "{answer}");
    Ok(())
}
