//! `berth connect` and `berth exec` against services in this process: who may
//! call, what passes, what is limited, and what happens to tokens and commands.

mod access;
mod client;
mod exec;
mod limits;
mod session;
mod streams;
mod tokens;

use crate::support::{Berth, Stack, within};
use client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

/// A running `berth connect`.
struct Forwarder {
    child: Child,
    /// `sc://…`, or `unix:…`.
    url: String,
    address: String,
    // Its folder of settings.
    _berth: Berth,
}

impl Forwarder {
    /// Forwards to a session of `ada`.
    async fn start(stack: &Stack, args: &[&str]) -> Self {
        Self::start_at(stack, &stack.addresses(), args).await
    }

    /// As [`Self::start`], with these session-manager and token-issuer.
    async fn start_at(stack: &Stack, addresses: &[String; 2], args: &[&str]) -> Self {
        let berth = Berth::new();
        let args = [&["--output", "json", "connect"], args].concat();
        let mut command = berth.command(&args, &stack.env("ada", addresses));
        let child = command.stderr(Stdio::inherit()).spawn().unwrap();
        Self::announced(berth, child).await
    }

    /// Waits until a child is ready.
    async fn announced(berth: Berth, mut child: Child) -> Self {
        let stdout = child.stdout.take().unwrap();
        let announced = within("the forwarder is ready", async {
            let mut lines = BufReader::new(stdout).lines();
            let mut text = String::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                text += &line;
                if let Ok(announced) = serde_json::from_str::<Value>(&text) {
                    return announced;
                }
            }
            panic!("it ended: {text}")
        })
        .await;
        let field = |name: &str| announced[name].as_str().unwrap().to_owned();
        Self {
            child,
            url: field("connection_url"),
            address: field("address"),
            _berth: berth,
        }
    }

    /// A client on a new connection that sends the secret, if there is one.
    async fn client(&self) -> Client {
        Client::connect(&self.address, self.secret()).await
    }

    /// A client on a new connection that sends no secret.
    async fn client_without_secret(&self) -> Client {
        Client::connect(&self.address, None).await
    }

    fn secret(&self) -> Option<&str> {
        self.url.split_once("x-berth-secret=").map(|(_, secret)| secret)
    }

    /// Ends it by a signal; returns its exit code.
    async fn end(mut self, signal: Signal) -> Option<i32> {
        send(&self.child, signal);
        let status = within("the forwarder ends", self.child.wait()).await;
        status.unwrap().code()
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn a_signal_ends_it_without_an_error_and_its_calls_with_one() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
        let mut client = forwarder.client().await;
        let call = client.begin(test_support::fake_spark::Shape::HangAfterOne).await;
        assert_eq!(forwarder.end(signal).await, Some(0), "{signal:?}");
        let answer = call.end().await;
        assert_eq!(answer.code, tonic::Code::Cancelled, "{answer:?}");
        assert!(answer.message.contains("berth connect"), "{answer:?}");
    }
}

/// `nohup` ignores SIGHUP for its command, and shells ignore SIGINT and SIGQUIT for their background
/// jobs.
#[tokio::test]
async fn signals_that_are_ignored_from_the_start_stay_ignored() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let (berth, addresses) = (Berth::new(), stack.addresses());
    let mut command = berth.script(
        r#"trap '' HUP INT QUIT; exec "$BERTH" --output json connect "$1" --port 0"#,
        &[&session],
        &stack.env("ada", &addresses),
    );
    let child = command.stderr(Stdio::inherit()).spawn().unwrap();
    let forwarder = Forwarder::announced(berth, child).await;
    let mut client = forwarder.client().await;
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT] {
        send(&forwarder.child, signal);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let answer = client.call(test_support::fake_spark::Shape::Echo).await;
        assert_eq!(answer.code, tonic::Code::Ok, "{signal:?}: {answer:?}");
    }
    assert_eq!(forwarder.end(Signal::TERM).await, Some(0));
}

#[tokio::test]
async fn errors_of_the_start_name_the_fix() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let foreign = stack.active("bob").await;
    for (args, words) in [
        (
            vec!["connect", &session, "--port", &port],
            ["is in use", "--port 0"],
        ),
        (
            vec!["connect", &foreign, "--port", "0"],
            ["no access", "right account"],
        ),
        (
            vec!["connect", &session, "--port", "0", "--name", "x"],
            ["--create", "--cluster"],
        ),
        (
            vec!["connect", "--create", "--cluster", "none", "--port", "0"],
            ["no access", "Check the name"],
        ),
    ] {
        let berth = Berth::new();
        let addresses = stack.addresses();
        let ended = berth.run(&args, &stack.env("ada", &addresses)).await;
        assert_eq!(ended.code, Some(1), "{args:?}: {ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "{args:?}: no {word:?} in {ended:?}");
        }
        assert!(ended.stdout.is_empty(), "{ended:?}");
    }
}
