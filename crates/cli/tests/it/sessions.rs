//! Session commands: waiting with progress, quiet, stable JSON, and the
//! environment for other programs.

use crate::support::{Berth, Stack, ended, within};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn waiting_shows_the_phases_and_ctrl_c_says_how_to_go_on() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let env = stack.env("ada", &addresses);
    let session = stack.pending("ada").await;
    stack.waits("ada", &session, "no node has room").await;
    let describe = ["session", "describe", &session, "--wait", "--output", "json"];

    let mut child = berth.start(&describe, &env);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    within("the phase is shown", async {
        while !line.contains("no node has room") {
            line.clear();
            assert!(
                stderr.read_line(&mut line).await.unwrap() > 0,
                "the command has ended"
            );
        }
    })
    .await;
    assert!(line.starts_with(&format!("{session}: provisioning")), "{line}");
    let pid = child.id().unwrap().to_string();
    Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
    let mut rest = String::new();
    within("the hint is shown", async {
        while stderr.read_line(&mut rest).await.unwrap() > 0 {}
    })
    .await;
    assert!(
        rest.contains(&format!("berth session describe {session} --wait")),
        "{rest}"
    );
    assert_eq!(ended(child).await.code, Some(130));

    let mut child = berth.start(&describe, &env);
    let quiet = berth.start(&["--quiet", "show", &session, "--wait"], &env);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut shown = String::new();
    within("the phase is shown", stderr.read_line(&mut shown))
        .await
        .unwrap();
    stack.make_ready("ada", &session, stack.spark.address()).await;
    within("the end is shown", async {
        while stderr.read_line(&mut shown).await.unwrap() > 0 {}
    })
    .await;
    assert!(shown.contains("active after"), "{shown}");
    assert_eq!(ended(child).await.good().json()["status"], "active");
    let quiet = ended(quiet).await.good();
    assert_eq!(quiet.stderr, "", "{quiet:?}");
}

#[tokio::test]
async fn a_session_that_fails_while_waited_for_is_an_error() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let session = stack.failed("ada", "no such image").await;
    let shown = berth
        .run(
            &["session", "describe", &session, "--wait"],
            &stack.env("ada", &addresses),
        )
        .await;
    assert_eq!(shown.code, Some(1), "{shown:?}");
    assert!(shown.stderr.contains("no such image"), "{shown:?}");
}

#[tokio::test]
async fn groups_and_earlier_words_print_the_same_json() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let env = stack.env("ada", &addresses);
    let session = stack.active("ada").await;
    for (group, word) in [
        (vec!["session", "describe", &session], vec!["show", &session]),
        (vec!["session", "list"], vec!["list"]),
        (vec!["session", "events", &session], vec!["events", &session]),
        (vec!["operation", "list", &session], vec!["ops", &session]),
        (vec!["token", "list", &session], vec!["tokens", &session]),
        (vec!["cluster", "list"], vec!["clusters"]),
        (vec!["cluster", "describe", "c"], vec!["clusters", "show", "c"]),
        (vec!["catalog", "list"], vec!["catalogs"]),
        (vec!["org", "describe", "acme"], vec!["orgs", "show", "acme"]),
    ] {
        let json = ["--output", "json"];
        let by_group = berth.run(&[&json, group.as_slice()].concat(), &env).await.good();
        let by_word = berth.run(&[&json, word.as_slice()].concat(), &env).await.good();
        assert_eq!(by_group.json(), by_word.json(), "{group:?}");
    }
    let issued = berth
        .run(&["--output", "json", "token", &session, "--ttl", "5m"], &env)
        .await
        .good();
    assert!(
        issued.json()["connection_url"]
            .as_str()
            .unwrap()
            .starts_with("sc://")
    );
}

#[tokio::test]
async fn env_prints_what_a_shell_reads() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let env = stack.env("ada", &addresses);
    let session = stack.active("ada").await;
    let printed = berth.run(&["env", &session, "--ttl", "5m"], &env).await.good();
    let script = format!(
        "{}\nprintf '%s\\n' \"$BERTH_SESSION\" \"$SPARK_REMOTE\"",
        printed.stdout
    );
    let output = Command::new("sh").args(["-c", &script]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (id, remote) = text.trim().split_once('\n').unwrap();
    assert_eq!(id, session);
    assert!(
        remote.starts_with("sc://localhost:") && remote.contains(&session),
        "{remote}"
    );
    let fish = berth
        .run(&["env", &session, "--shell", "fish"], &env)
        .await
        .good();
    assert!(fish.stdout.starts_with("set -gx SPARK_REMOTE 'sc://"), "{fish:?}");
    let json = berth
        .run(&["--output", "json", "env", &session], &env)
        .await
        .good()
        .json();
    assert!(json["SPARK_REMOTE"].is_string(), "{json}");
    let unset = berth.run(&["env", "--unset", "--shell", "sh"], &[]).await.good();
    assert!(unset.stdout.contains("unset SPARK_REMOTE"), "{unset:?}");
}

#[tokio::test]
async fn open_starts_the_browser_at_the_session() {
    let berth = Berth::new();
    let seen = berth.file("seen");
    let browser = berth.file("browser");
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(
            &browser,
            format!("#!/bin/sh\nprintf %s \"$1\" > {}\n", seen.display()),
        )
        .unwrap();
        std::fs::set_permissions(&browser, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let browser = browser.display().to_string();
    let env = [
        ("BERTH_CONSOLE", "https://berth.example.org/b"),
        ("BROWSER", browser.as_str()),
    ];
    let opened = berth.run(&["open", "s-1"], &env).await.good();
    assert_eq!(opened.stdout.trim(), "https://berth.example.org/b/sessions/s-1");
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), opened.stdout.trim());
    let printed = berth
        .run(&["open"], &[("BERTH_CONSOLE", "https://berth.example.org")])
        .await
        .good();
    assert_eq!(printed.stdout.trim(), "https://berth.example.org/");
    assert!(printed.stderr.contains("No browser"), "{printed:?}");
    let missing = berth.run(&["open"], &[]).await;
    assert!(missing.stderr.contains("--console"), "{missing:?}");
}
