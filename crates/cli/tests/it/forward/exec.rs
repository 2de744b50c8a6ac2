//! `berth exec`: environment, exit codes, signals.

use super::send;
use crate::support::{Berth, Stack, ended, within};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const PRINT: &str = "echo $SPARK_REMOTE $SPARK_CONNECT_MODE_ENABLED $BERTH_SESSION ${SPARK_CONNECT_AUTHENTICATE_TOKEN-none} ${no_proxy-none}";

#[tokio::test]
async fn the_command_finds_the_session_in_its_environment() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let addresses = stack.addresses();
    let berth = Berth::new();
    let mut env = stack.env("ada", &addresses);
    env.push(("SPARK_CONNECT_AUTHENTICATE_TOKEN", "other"));
    let args = ["exec", &session, "--", "sh", "-c", PRINT];
    let seen = berth.run(&args, &env).await.good();
    let words: Vec<&str> = seen.stdout.split_whitespace().collect();
    let [url, mode, of, token, proxies] = words.try_into().unwrap();
    assert!(url.starts_with("sc://127.0.0.1:"), "{seen:?}");
    assert!(url.contains("/;x-berth-secret="), "{seen:?}");
    assert_eq!(
        (mode, of, token, proxies),
        ("1", session.as_str(), "none", "none")
    );

    env.extend([("https_proxy", "http://proxy:3128"), ("no_proxy", "internal")]);
    let seen = berth.run(&args, &env).await.good();
    assert!(
        seen.stdout.trim_end().ends_with("internal,127.0.0.1,localhost"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn the_exit_code_is_that_of_the_command() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let addresses = stack.addresses();
    let env = stack.env("ada", &addresses);
    let berth = Berth::new();
    for (command, code) in [
        (vec!["true"], 0),
        (vec!["sh", "-c", "exit 7"], 7),
        (vec!["sh", "-c", "exit 255"], 255),
        (vec!["sh", "-c", "kill -TERM $$"], 143),
        (vec!["sh", "-c", "kill -KILL $$"], 137),
        (vec!["no-such-command-anywhere"], 127),
        (vec!["/etc/passwd"], 126),
    ] {
        let args = [&["exec", &session, "--"], command.as_slice()].concat();
        let seen = berth.run(&args, &env).await;
        assert_eq!(seen.code, Some(code), "{command:?}: {seen:?}");
    }
    let seen = berth
        .run(&["exec", "s-00000000000000000000000000", "--", "true"], &env)
        .await;
    assert_eq!(seen.code, Some(125), "{seen:?}");
    assert!(seen.stderr.contains("berth: "), "{seen:?}");
    let seen = berth.run(&["exec", &session], &env).await;
    assert_eq!(seen.code, Some(2), "a command is required: {seen:?}");
}

#[tokio::test]
async fn signals_reach_the_command() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let addresses = stack.addresses();
    let berth = Berth::new();
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
    ] {
        let script = format!("trap 'exit 42' {name}; echo ready; while :; do sleep 0.05; done");
        let args = ["exec", &session, "--", "sh", "-c", &script];
        let mut child = berth.start(&args, &stack.env("ada", &addresses));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within("the command runs", lines.next_line()).await.unwrap();
        assert_eq!(line.as_deref(), Some("ready"));
        send(&child, signal);
        let seen = ended(child).await;
        assert_eq!(seen.code, Some(42), "{name}: {seen:?}");
    }
}
