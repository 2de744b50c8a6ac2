//! Completion scripts, checked by the shell that is there.

use crate::support::Berth;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

#[tokio::test]
async fn bash_completes_groups_and_their_commands() {
    let berth = Berth::new();
    let script = berth.run(&["completion", "bash"], &[]).await.good().stdout;
    let test =
        "\nCOMP_WORDS=(berth session cr); COMP_CWORD=2; _berth berth cr session\necho \"${COMPREPLY[@]}\"\n";
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = bash.stdin.take().unwrap();
    stdin.write_all((script + test).as_bytes()).await.unwrap();
    drop(stdin);
    let output = bash.wait_with_output().await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "create",
        "{output:?}"
    );
}
