//! `berth connect` and `berth exec` as processes.

use crate::Stack;
use anyhow::{Context, Result, bail};
use local_stack::paths::binary;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// No forwarder takes longer to start, and none to end.
const LIMIT: Duration = Duration::from_secs(120);

/// A running `berth connect`; ends when dropped.
#[derive(Debug)]
pub struct Forwarder {
    child: Child,
    /// The session.
    pub session: String,
    /// The connection string.
    pub url: String,
}

impl Forwarder {
    /// Starts it as `who` on a free port, with more arguments.
    ///
    /// # Errors
    /// When it ends before it is ready.
    pub async fn start(stack: &Stack, who: &str, args: &[&str]) -> Result<Self> {
        let args = [&["--output", "json", "connect", "--port", "0"], args].concat();
        let mut child = stack
            .berth_command(who, &args)?
            .stdout(Stdio::piped())
            .spawn()
            .context("starting berth connect")?;
        let stdout = child.stdout.take().context("stdout")?;
        let announced = tokio::time::timeout(LIMIT, announcement(stdout));
        let announced = announced.await.context("berth connect is not ready in time")??;
        Ok(Self {
            child,
            session: local_stack::berth::text(&announced, "session")?,
            url: local_stack::berth::text(&announced, "connection_url")?,
        })
    }

    /// Where it listens, and its secret.
    ///
    /// # Errors
    /// When the connection string has another form.
    pub fn parts(&self) -> Result<(&str, &str)> {
        let rest = self.url.strip_prefix("sc://").context("sc://")?;
        rest.split_once("/;x-berth-secret=").context("a secret")
    }

    /// Ends it by a signal; returns its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end(mut self, signal: Signal) -> Result<Option<i32>> {
        signal_child(&self.child, signal)?;
        let status = tokio::time::timeout(LIMIT, self.child.wait());
        Ok(status.await.context("berth connect does not end")??.code())
    }
}

/// Sends a signal to a child that runs.
///
/// # Errors
/// When it has ended.
pub fn signal_child(child: &Child, signal: Signal) -> Result<()> {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let pid = pid.and_then(Pid::from_raw).context("the child has ended")?;
    Ok(kill_process(pid, signal)?)
}

/// The object that `berth connect` prints when it is ready.
async fn announcement(stdout: impl AsyncRead + Unpin) -> Result<Value> {
    let mut lines = BufReader::new(stdout).lines();
    let mut text = String::new();
    while let Some(line) = lines.next_line().await? {
        text += &line;
        if let Ok(announced) = serde_json::from_str(&text) {
            return Ok(announced);
        }
    }
    bail!("berth connect ended before it was ready: {text}")
}

impl Stack {
    /// The `berth` command as `who` at this stack; ends when dropped.
    ///
    /// # Errors
    /// When it is not built.
    pub fn berth_command(&self, who: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("berth")?);
        command
            .args(args)
            .env("BERTH_MANAGER", &self.manager_uri)
            .env("BERTH_ISSUER", self.issuer_uri())
            .env("BERTH_KEY", self.key_of(who))
            .env("BERTH_CONFIG_DIR", self.dir.path().join("berth-config"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(ca) = self.ca() {
            command.env("BERTH_CA", ca);
        }
        Ok(command)
    }
}
