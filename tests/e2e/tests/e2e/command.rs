//! The `berth` command as people use it: in pipes, with odd arguments, and with
//! addresses that were mistaken for each other.

use anyhow::{Context as _, Result};
use e2e::{Engine, Stack, binary, home};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `berth` with these arguments, and its output as it is.
fn berth(stack: &Stack, who: &str, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("berth")?);
    command
        .args(args)
        .env("BERTH_MANAGER", &stack.manager_uri)
        .env("BERTH_ISSUER", stack.issuer_uri())
        .env("BERTH_KEY", stack.key_of(who))
        .stdin(Stdio::null());
    Ok(command)
}

/// How it ends when nobody reads its output from the first byte on.
fn unread(mut command: Command) -> Result<(Option<i32>, String)> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output: Output = command.stdout(writer).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), said))
}

#[tokio::test]
async fn a_closed_pipe_ends_every_output_quietly() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &["--name", "first"])?;
    let other = stack.session("ada", Engine::Sail, &["--name", "second"])?;
    for output in ["table", "json"] {
        for args in [
            vec!["list", "--all"],
            vec!["show", &session],
            vec!["events", &session],
            vec!["ops", &session],
            vec!["clusters"],
            vec!["catalogs"],
            vec!["tokens", &session],
            vec!["token", &session],
            vec!["update", &session, "--name", "renamed"],
            vec!["watch"],
            vec!["keys", "service-account"],
            vec!["--help"],
        ] {
            let args = [&["--output", output], args.as_slice()].concat();
            let (code, said) = unread(berth(&stack, "ada", &args)?)?;
            assert_eq!(code, Some(0), "berth {args:?}: {said}");
            assert!(!said.contains("panicked"), "berth {args:?}: {said}");
        }
    }
    // What was asked for is done all the same, for each that was named.
    let (code, said) = unread(berth(&stack, "ada", &["close", &session, &other])?)?;
    assert_eq!(code, Some(0), "{said}");
    for closed in [&session, &other] {
        assert_eq!(stack.show("ada", closed)?["status"], "closed");
    }
    // Errors are errors, whoever reads.
    let (code, said) = unread(berth(&stack, "ada", &["show", "s-00000000000000000000"])?)?;
    assert_eq!(code, Some(1), "{said}");
    // A full disk is not a reader that has seen enough.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
    let output = berth(&stack, "ada", &["list"])?.stdout(full).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("writing the output failed"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_limit_is_at_least_one() -> Result<()> {
    let stack = Stack::start().await?;
    for limit in ["0", "-1", "1000001", "many"] {
        let limit = format!("--limit={limit}");
        let output = berth(&stack, "ada", &["list", &limit])?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{limit}: {said}");
        assert!(said.contains("--limit"), "{limit}: {said}");
        assert!(
            limit.ends_with("many") || said.contains("1..=1000000"),
            "{limit}: {said}"
        );
    }
    stack.session("ada", Engine::Sail, &[])?;
    stack.session("ada", Engine::Sail, &[])?;
    let listed = |limit: &str| -> Result<Option<usize>> {
        Ok(stack
            .berth("ada", &["list", "--limit", limit])?
            .as_array()
            .map(Vec::len))
    };
    assert_eq!(listed("1")?, Some(1));
    assert_eq!(listed("2")?, Some(2));
    assert_eq!(listed("1000000")?, Some(2));
    Ok(())
}

#[tokio::test]
async fn mistaken_addresses_are_answered_with_the_right_one() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let proxy = format!("http://{}", stack.proxy_address);
    let jwks = format!("http://{}", stack.jwks_address);
    let internal = format!("http://{}", stack.internal_address);
    let list = ["list"].as_slice();
    let token = ["token", session.as_str()];
    for (what, variable, address, args, words) in [
        (
            "manager = issuer",
            "BERTH_MANAGER",
            stack.issuer_uri(),
            list,
            ["token-issuer's API", "8081", "BERTH_MANAGER"],
        ),
        (
            "issuer = manager",
            "BERTH_ISSUER",
            &stack.manager_uri,
            &token,
            ["session-manager's API", "8083", "BERTH_ISSUER"],
        ),
        (
            "manager = proxy",
            "BERTH_MANAGER",
            &proxy,
            list,
            ["Only Spark Connect", "8081", "BERTH_MANAGER"],
        ),
        (
            "issuer = proxy",
            "BERTH_ISSUER",
            &proxy,
            &token,
            ["Only Spark Connect", "8083", "BERTH_ISSUER"],
        ),
        (
            "manager = internal port",
            "BERTH_MANAGER",
            &internal,
            list,
            ["internal API", "8081", "BERTH_MANAGER"],
        ),
        (
            "issuer = key set",
            "BERTH_ISSUER",
            &jwks,
            &token,
            ["does not serve", "8083", "BERTH_ISSUER"],
        ),
    ] {
        let output = berth(&stack, "ada", args)?.env(variable, address).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        for word in words {
            assert!(said.contains(word), "{what}: no {word:?} in {said:?}");
        }
        assert_eq!(said.trim_end().lines().count(), 1, "{what}: {said:?}");
    }
    Ok(())
}

#[tokio::test]
async fn pyspark_at_an_api_port_is_told_the_right_one() -> Result<()> {
    const PROGRAM: &str = "
import json, sys
from pyspark.sql import SparkSession
try:
    SparkSession.builder.remote(sys.argv[1]).getOrCreate().sql('SELECT 1').collect()
    print(json.dumps({'class': None, 'text': ''}))
except Exception as error:
    print(json.dumps({'class': type(error).__name__, 'text': str(error)}))
";
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let url = stack.url("ada", &session)?;
    for (address, name) in [
        (&*stack.manager_uri, "session-manager's API"),
        (stack.issuer_uri(), "token-issuer's API"),
    ] {
        // The literal name: there PySpark 4 speaks plaintext.
        let port = address.rsplit(':').next().context("a port")?;
        let wrong = stack.via(&url, format!("127.0.0.1:{port}").parse()?);
        let wrong = wrong.replace("127.0.0.1", "localhost");
        let begun = Instant::now();
        let output = Command::new(home().join("venv-sail/bin/python"))
            .args(["-c", PROGRAM, &wrong])
            .output()?;
        let seen: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let text = seen["text"].as_str().unwrap_or_default();
        assert!(text.contains(name), "{seen}");
        assert!(text.contains("spark-proxy (port 8085)"), "{seen}");
        assert_eq!(seen["class"], "SparkException", "{seen}");
        assert!(begun.elapsed() < Duration::from_secs(30), "it retried");
    }
    Ok(())
}

#[tokio::test]
async fn texts_that_break_a_terminal_are_refused_and_never_printed() -> Result<()> {
    let stack = Stack::start().await?;
    let bad = [
        "a\u{202e}b",
        "a\u{2066}b",
        "a\u{200b}b",
        "a\u{feff}",
        "a\u{2028}b",
        "a\u{1b}[2Jb",
        "a\u{9b}31m",
        "a\u{e0041}",
        "a\u{ad}b",
        "a\nb",
    ];
    for text in bad {
        for args in [
            vec!["--name".to_owned(), text.to_owned()],
            vec!["--label".to_owned(), format!("key={text}")],
            vec!["--label".to_owned(), format!("{text}=value")],
            vec!["--team".to_owned(), text.to_owned()],
            vec!["--request-id".to_owned(), text.to_owned()],
        ] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let create = [&["create", "--cluster", "sail"], args.as_slice()].concat();
            let output = berth(&stack, "ada", &create)?.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{create:?}: {said}");
            assert!(
                !said
                    .trim_end()
                    .chars()
                    .any(|char| bad.concat().contains(char) && !char.is_ascii()),
                "{said:?}"
            );
            assert!(
                said.contains("characters that cannot be seen"),
                "{create:?}: {said}"
            );
        }
    }
    for name in [
        "Größe",
        "تقرير",
        "שלום",
        "数据",
        "می\u{200c}خواهم",
        "👩\u{200d}💻",
    ] {
        let session = stack.session(
            "ada",
            Engine::Sail,
            &["--name", name, "--label", &format!("k={name}")],
        )?;
        assert_eq!(stack.show("ada", &session)?["name"], name);
        let output = berth(&stack, "ada", &["show", &session])?.output()?;
        let shown = String::from_utf8(output.stdout)?;
        assert!(shown.contains(name), "{shown:?}");
        stack.berth("ada", &["close", &session])?;
    }
    Ok(())
}
