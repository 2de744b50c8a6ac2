//! What a terminal shows: a line that moves while a session starts, and colors
//! unless NO_COLOR is set. `script` (util-linux) is the terminal.

use crate::support::{Berth, Stack, ended, within};
use std::process::Stdio;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

/// The command on a terminal.
fn on_terminal(berth: &Berth, args: &[&str], env: &[(&str, &str)]) -> Command {
    let line = [&[env!("CARGO_BIN_EXE_berth")], args].concat().join(" ");
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm")
        .env("BERTH_CONFIG_DIR", berth.dir.path())
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[tokio::test]
async fn the_progress_is_one_line_that_moves() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let session = stack.pending("ada").await;
    let args = ["session", "describe", session.as_str(), "--wait"];
    let mut child = on_terminal(&berth, &args, &stack.env("ada", &addresses))
        .spawn()
        .unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut shown = String::new();
    let mut buffer = [0; 1024];
    let frames = |shown: &str| shown.matches("\r\u{1b}[K").count();
    within("the line moves", async {
        while frames(&shown) < 4 {
            let read = screen.read(&mut buffer).await.unwrap();
            assert!(read > 0, "it has ended: {shown}");
            shown += &String::from_utf8_lossy(&buffer[..read]);
        }
    })
    .await;
    assert_eq!(shown.matches('\n').count(), 0, "one line: {shown:?}");
    assert!(shown.contains(&format!("{session}: provisioning")), "{shown:?}");
    stack.make_ready("ada", &session, stack.spark.address()).await;
    within("the end is shown", screen.read_to_string(&mut shown))
        .await
        .unwrap();
    assert!(shown.contains(&format!("{session}: active after")), "{shown:?}");
    assert_eq!(ended(child).await.code, Some(0));
}

#[tokio::test]
async fn no_color_means_no_color() {
    let berth = Berth::new();
    let key = ("BERTH_KEY", "berth_sa_x");
    let manager = ("BERTH_MANAGER", "http://127.0.0.1:1");
    let colored = on_terminal(&berth, &["doctor"], &[key, manager]).spawn().unwrap();
    let colored = ended(colored).await;
    assert_eq!(colored.code, Some(11), "{colored:?}");
    assert!(colored.stdout.contains("\u{1b}[31mfault"), "{colored:?}");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let ended = ended(
            on_terminal(&berth, &["doctor"], &[key, manager, plain])
                .spawn()
                .unwrap(),
        )
        .await;
        assert!(ended.stdout.contains("fault"), "{ended:?}");
        assert!(!ended.stdout.contains('\u{1b}'), "{plain:?}: {ended:?}");
    }
}
