//! The processes of [`super::PrivateRedis`]: a helper shell and the server that
//! it starts and stops.

use anyhow::{Context, bail, ensure};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Timeout of the start; long, because the machine is shared.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(60);

/// Starts the server, prints its pid and stops it: gracefully on `term`, at once
/// on `kill`, and at once together with its folder `$0` when the pipe closes.
/// `stop` suspends and `cont` resumes the server.
const HELPER: &str = r#""$@" & server=$!; echo "$server"
while read -r how; do
case "$how" in stop) kill -STOP "$server";; cont) kill -CONT "$server";; *) break;; esac
done
case "$how" in term) kill -TERM "$server";; *) kill -KILL "$server";; esac
wait "$server"
case "$how" in "") rm -rf -- "$0";; esac"#;

/// Another process took the port between its choice and the start.
#[derive(Debug)]
pub(super) struct PortTaken;

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another process took the port")
    }
}

impl std::error::Error for PortTaken {}

/// The helper shell and its server.
#[derive(Debug)]
pub(super) struct Server {
    helper: Child,
    pub(super) pid: u32,
}

impl Server {
    /// Starts `redis-server` with these arguments in `dir` and waits until it
    /// responds on `port`.
    pub(super) async fn launch(dir: &Path, port: u16, words: &[String]) -> anyhow::Result<Self> {
        let log = dir.join("redis.log");
        std::fs::write(&log, "")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self::spawn(dir, words)?;
        let deadline = Instant::now() + READY_LIMIT;
        let mut last;
        loop {
            // The reply contains the pid, so another server on this port is detected.
            match ask(address, "INFO server").await {
                Ok(answer) if answer.contains(&format!("process_id:{}\r\n", server.pid)) => {
                    // An append-only file is read before the first command is served.
                    match ask(address, "PING").await {
                        Ok(pong) if pong.starts_with("+PONG") => return Ok(server),
                        Ok(other) => last = other,
                        Err(error) => last = error.to_string(),
                    }
                }
                Ok(_) => return Err(PortTaken.into()),
                Err(error) => last = error.to_string(),
            }
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("Address already in use") {
                return Err(PortTaken.into());
            }
            ensure!(!server.has_ended()?, "redis-server ended at once: {text}");
            ensure!(
                Instant::now() < deadline,
                "redis-server does not answer ({last}): {text}"
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn spawn(dir: &Path, words: &[String]) -> anyhow::Result<Self> {
        let program = find_on_path("redis-server")?;
        let mut helper = Command::new("sh")
            .args(["-c", HELPER])
            .arg(dir)
            .arg(program)
            .args(words)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a shell")?;
        let mut line = String::new();
        let stdout = helper.stdout.take().context("the helper has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line
            .trim()
            .parse()
            .with_context(|| format!("the helper printed {line:?} instead of a pid"))?;
        Ok(Self { helper, pid })
    }

    fn has_ended(&mut self) -> anyhow::Result<bool> {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let zombie = state.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'));
        Ok(state.is_empty() || zombie || self.helper.try_wait()?.is_some())
    }

    /// Suspends or resumes the server.
    pub(super) async fn stand_still(&mut self, still: bool) -> anyhow::Result<()> {
        let pipe = self.helper.stdin.as_mut().context("the helper has no input")?;
        pipe.write_all(if still { b"stop\n" } else { b"cont\n" })?;
        let deadline = Instant::now() + READY_LIMIT;
        while self.state()?.starts_with('T') != still {
            ensure!(Instant::now() < deadline, "the server does not obey");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Its pid.
    fn state(&self) -> anyhow::Result<String> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        Ok(stat.rsplit(") ").next().unwrap_or_default().to_owned())
    }

    pub(super) fn end(mut self, how: &str) -> anyhow::Result<()> {
        if let Some(mut pipe) = self.helper.stdin.take() {
            pipe.write_all(format!("{how}\n").as_bytes())?;
        }
        self.helper.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.helper.stdin.take());
        // A failure during drop cannot be handled.
        drop(self.helper.wait());
    }
}

pub(super) async fn ask(address: SocketAddr, words: &str) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{words}\r\n").as_bytes()).await?;
        let mut answer = vec![0; 16 * 1024];
        let n = stream.read(&mut answer).await?;
        if n == 0 {
            bail!("the connection was closed");
        }
        Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
    };
    timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer within 5 s")?
}

pub(super) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

pub(super) fn find_on_path(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/bin")])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not installed: run `make setup`"))
}
