//! What an operator does from outside: interrupts a query, tries a catalog,
//! shuts an organization out.

use crate::long_queries::{CUT_AFTER, on_spark};
use anyhow::{Context as _, Result};
use e2e::{Client, Engine, RunningClient, Stack, wait};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Starts a query that nobody waits for, and returns its operation's id once
/// Berth knows it.
async fn endless(stack: &Stack, engine: Engine, session: &str, url: &str) -> Result<(RunningClient, String)> {
    let mut args = vec![
        "stream",
        "--url",
        url,
        "--kind",
        "sum",
        "--rows",
        "1000000000000",
        "--limit",
        "200",
    ];
    // An interrupt before its first task leaves Spark with tasks that nobody ends.
    let until = match engine {
        Engine::Sail => "asking",
        Engine::Spark => {
            args.push("--tasks");
            "running"
        }
    };
    let running = Client::Py41
        .start_until(stack.dir.path(), "client.py", &args, None, until)
        .await?;
    let operation = wait::until("the operation to be known", Duration::from_secs(30), async || {
        let operations = running_in(stack, session)?;
        match operations[0]["operation_id"].as_str() {
            Some(id) if !id.is_empty() => Ok(id.to_owned()),
            Some(_) | None => Err(operations.to_string()),
        }
    })
    .await?;
    Ok((running, operation))
}

/// What was said, or nothing if it was not refused.
fn refusal(outcome: Result<Value>) -> String {
    outcome.err().map(|error| error.to_string()).unwrap_or_default()
}

fn running_in(stack: &Stack, session: &str) -> Result<Value, String> {
    let operations = stack.berth("ada", &["ops", session]);
    operations.map_err(|error| error.to_string())
}

async fn interrupted(engine: Engine) -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", engine, &[])?;
    let url = stack.url("ada", &session)?;
    // Spark is slow to start clients on: the harder one is enough there.
    let rounds: &[bool] = match engine {
        Engine::Sail => &[false, true],
        Engine::Spark => &[true],
    };
    for named in rounds.iter().copied() {
        let (running, operation) = endless(&stack, engine, &session, &url).await?;
        let shown = stack.show("ada", &session)?;
        assert!(shown["active_operations"].as_u64() >= Some(1), "{shown}");
        let refused = refusal(stack.berth("bob", &["interrupt", &session, "--all"]));
        assert!(refused.contains("no access"), "{refused}");
        let which: &[&str] = if named {
            &["--operation", &operation]
        } else {
            &["--all"]
        };
        // A manager of the organization does it; the session is not hers.
        let answer = stack.berth("olga", &[&["interrupt", &session], which].concat())?;
        let ids = answer.as_array().context("a list of ids")?;
        assert!(
            ids.contains(&Value::from(operation.as_str())),
            "{engine:?}: {answer}"
        );
        let seen = running.finish(Duration::from_secs(60)).await?;
        let said = seen["error"]["text"].as_str().unwrap_or_default();
        // Sail ends the stream with OK; the proxy says what Spark says.
        assert!(said.contains("OPERATION_CANCELED"), "{engine:?}: {seen}");
        assert_eq!(stack.show("ada", &session)?["status"], "active");
        wait::until(
            "it to be over",
            Duration::from_secs(30),
            async || match running_in(&stack, &session)? {
                operations if operations == serde_json::json!([]) => Ok(()),
                operations => Err(operations.to_string()),
            },
        )
        .await?;
        let nothing = stack.berth("ada", &["interrupt", &session, "--all"])?;
        assert_eq!(nothing, serde_json::json!([]));
    }
    let one = ["select1", "--url", &url, "--limit", "120"];
    let one = Client::Py41
        .run(stack.dir.path(), "client.py", &one, None)
        .await?;
    assert_eq!(one["value"], 1, "the session lives on: {one}");
    Ok(())
}

#[tokio::test]
async fn a_query_is_interrupted_on_sail() -> Result<()> {
    interrupted(Engine::Sail).await
}

#[tokio::test]
async fn a_query_is_interrupted_on_spark() -> Result<()> {
    interrupted(Engine::Spark).await
}

/// Spark cuts result streams; the client goes on with ReattachExecute.
#[tokio::test]
async fn a_query_that_was_reattached_is_listed_and_interrupted() -> Result<()> {
    let (stack, _server, session) = on_spark("").await?;
    let url = stack.url("ada", &session)?;
    let (running, operation) = endless(&stack, Engine::Spark, &session, &url).await?;
    // Three cuts, and a report after each.
    tokio::time::sleep(CUT_AFTER * 3 + Duration::from_secs(5)).await;
    let is_operation = |listed: &Value| listed["operation_id"] == operation.as_str();
    wait::until("it to be listed", Duration::from_secs(20), async || {
        let listed = running_in(&stack, &session)?;
        match listed.as_array().is_some_and(|all| all.iter().any(is_operation)) {
            true => Ok(()),
            false => Err(listed.to_string()),
        }
    })
    .await?;
    let answer = stack.berth("ada", &["interrupt", &session, "--all"])?;
    assert_eq!(answer, serde_json::json!([operation]));
    let seen = running.finish(Duration::from_secs(60)).await?;
    let said = seen["error"]["text"].as_str().unwrap_or_default();
    assert!(said.contains("OPERATION_CANCELED"), "{seen}");
    Ok(())
}

#[tokio::test]
async fn a_catalog_is_tried_on_a_throw_away_engine() -> Result<()> {
    let stack = Stack::start().await?;
    let test = |name: &str| stack.berth("olga", &["catalogs", "test", name, "--cluster", "sail"]);
    let good = test("dev")?;
    assert_eq!(good["usable"], true, "{good}");
    let bad = refusal(test("broken"));
    assert!(bad.contains("broken") && bad.contains("nowhere"), "{bad}");
    wait::until(
        "the end of both engines",
        Duration::from_secs(30),
        async || match stack.children_matching("sail spark server") {
            Ok(left) if left.is_empty() => Ok(()),
            Ok(left) => Err(format!("{left:?} live")),
            Err(error) => Err(error.to_string()),
        },
    )
    .await?;
    let sessions = stack.berth("olga", &["list", "--all"])?;
    assert_eq!(sessions.as_array().map(Vec::len), Some(0), "{sessions}");
    Ok(())
}

/// Two managers, of which the first runs the engines.
#[tokio::test]
async fn a_catalog_is_refused_at_once_where_no_engines_run() -> Result<()> {
    let stack = Stack::start().await?;
    let second = stack.another_manager().await?;
    let uri = format!("http://{}", second.public);
    let test = ["catalogs", "test", "dev", "--cluster", "sail"];
    let begun = Instant::now();
    // More than have a slot at one time.
    for _ in 0..4 {
        let said = refusal(stack.berth("olga", &[&["--manager", &uri], &test[..]].concat()));
        assert!(said.contains("another session-manager runs"), "{said}");
        assert!(said.contains("Try again"), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(stack.berth("olga", &test)?["usable"], true);
    Ok(())
}

#[tokio::test]
async fn disabling_an_organization_ends_its_streams() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("eve", Engine::Sail, &[])?;
    let url = stack.url("eve", &session)?;
    let args = ["stream", "--url", &url, "--kind", "range", "--seconds", "120"];
    let running = Client::Py41
        .start_until(stack.dir.path(), "client.py", &args, None, "streaming")
        .await?;
    let disabled = Instant::now();
    let answer = stack.berth("pat", &["orgs", "disable", "umbrella"])?;
    assert_eq!(answer["disabled"], true, "{answer}");
    let seen = running.finish(Duration::from_secs(15)).await?;
    let took = disabled.elapsed();
    assert!(
        seen["error"]["text"]
            .as_str()
            .is_some_and(|text| text.contains("closed")),
        "{seen}"
    );
    // Five seconds, and what Python needs to say so and to end.
    assert!(took < Duration::from_secs(8), "after {took:?}: {seen}");
    let refused = refusal(stack.berth("eve", &["list"]));
    assert!(refused.contains("disabled"), "{refused}");

    stack.berth("pat", &["orgs", "enable", "umbrella"])?;
    // To watch what has ended is to hear of its end.
    stack.berth("eve", &["watch", &session])?;
    let all = stack.berth("eve", &["list", "--all"])?;
    assert_eq!(all[0]["reason"], "ORG_DISABLED", "{all}");
    Ok(())
}

#[tokio::test]
async fn definitions_and_people_by_berth() -> Result<()> {
    let stack = Stack::start().await?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = stack.dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let sail = e2e::home().join("venv-sail/bin/sail");
    let lab = format!(
        "name = \"lab\"\nengine = \"sail\"\nidle_timeout = \"5min\"\n[process]\nprogram = \"{}\"\n",
        sail.display()
    );
    let lab = file("lab.toml", &lab)?;
    let created = stack.berth("pat", &["clusters", "create", &lab, "--pending"])?;
    assert_eq!(created["status"], "pending", "{created}");
    let refused = refusal(stack.berth("ada", &["create", "--cluster", "lab"]));
    assert!(refused.contains("takes no new sessions"), "{refused}");
    assert_eq!(
        stack.berth("pat", &["clusters", "activate", "lab"])?["status"],
        "active"
    );
    assert_eq!(
        stack.berth("pat", &["clusters", "update", &lab])?["status"],
        "active"
    );

    let lake = file(
        "lake.json",
        r#"{"name": "lake", "engine": "sail", "properties": {"type": "memory", "initial_database": ["lab"]}}"#,
    )?;
    let refused = refusal(stack.berth("ada", &["catalogs", "create", &lake]));
    assert!(refused.contains("no access"), "{refused}");
    assert_eq!(
        stack.berth("olga", &["catalogs", "create", &lake])?["org"],
        "acme"
    );

    let session = stack.berth(
        "ada",
        &["create", "--cluster", "lab", "--catalog", "lake", "--wait"],
    )?;
    let session = session["id"].as_str().context("an id")?.to_owned();
    let extended = stack.berth("ada", &["extend", &session, "--for", "48h"])?;
    let kept = stack.berth("ada", &["keep-alive", &session, "--for", "40h"])?;
    assert_ne!(kept["keep_alive_until"], "", "{extended} {kept}");
    let updated = stack.berth("ada", &["update", &session, "--name", "etl", "--label", "a=b"])?;
    assert_eq!(
        (&updated["name"], &updated["labels"]["a"]),
        (&"etl".into(), &"b".into())
    );
    let refused = refusal(stack.berth("olga", &["catalogs", "delete", "lake"]));
    assert!(refused.contains(&session), "{refused}");
    assert_eq!(
        stack.berth("pat", &["clusters", "drain", "lab"])?["status"],
        "draining"
    );
    let refused = refusal(stack.berth("pat", &["clusters", "delete", "lab"]));
    assert!(refused.contains("repeat with force"), "{refused}");

    stack.berth("olga", &["disable-principal", "sa|ada"])?;
    let refused = refusal(stack.berth("ada", &["list"]));
    assert!(refused.contains("not known"), "{refused}");
    stack.berth("olga", &["enable-principal", "sa|ada"])?;
    assert_eq!(stack.show("ada", &session)?["reason"], "OWNER_DISABLED");
    stack.berth("olga", &["catalogs", "delete", "lake"])?;
    stack.berth("pat", &["clusters", "delete", "lab", "--force"])?;

    stack.berth("pat", &["orgs", "create", "initech", "--live-sessions", "5"])?;
    let limits = stack.berth("pat", &["orgs", "limits", "initech", "--labels", "3"])?;
    assert_eq!(
        (&limits["limits"]["live_sessions"], &limits["limits"]["labels"]),
        (&5.into(), &3.into())
    );
    Ok(())
}
