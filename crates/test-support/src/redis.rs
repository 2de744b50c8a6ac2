//! A real `redis-server` that belongs to one test.
//!
//! It listens on a free loopback port, keeps its files in a temporary folder,
//! and never outlives the test: a small shell holds a pipe to the test process
//! and kills the server when the pipe closes, also when the test is killed.
//! The same shell ends it on purpose, so no pid is ever killed that has been
//! given to somebody else.

use anyhow::{Context, bail, ensure};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long a server may take to answer: long, because the machine is shared.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How often another port is tried when somebody else was faster.
const PORT_TRIES: usize = 5;

/// Starts the server, tells its pid, and ends it: on `term` in order, on `kill`
/// at once, and when the pipe closes at once and with its folder, `$0`.
const HELPER: &str = r#""$@" & server=$!; echo "$server"; read -r how
case "$how" in term) kill -TERM "$server";; *) kill -KILL "$server";; esac
wait "$server"
case "$how" in "") rm -rf -- "$0";; esac"#;

/// How a private server is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisOptions {
    /// Write every change to an append-only file, so that data outlives a restart.
    pub appendonly: bool,
    /// Run as a Redis Cluster of one master, which refuses whatever would
    /// touch two hash slots in one step.
    pub cluster: bool,
}

/// A running `redis-server`; ends when dropped.
#[derive(Debug)]
pub struct PrivateRedis {
    options: RedisOptions,
    dir: TempDir,
    port: u16,
    server: Option<Server>,
}

impl PrivateRedis {
    /// Starts a server that forgets everything when it ends.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(RedisOptions::default()).await
    }

    /// Starts a server and waits until it answers.
    pub async fn start_with(options: RedisOptions) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-redis-").tempdir()?;
        let mut redis = Self {
            options,
            dir,
            port: 0,
            server: None,
        };
        for _ in 1..PORT_TRIES {
            redis.port = free_port()?;
            match redis.launch().await {
                Err(error) if error.is::<PortTaken>() => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        if redis.server.is_none() {
            redis.port = free_port()?;
            redis.launch().await?;
        }
        if options.cluster {
            redis.form_cluster().await?;
        }
        Ok(redis)
    }

    /// Where it answers, as a URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Ends the server as a crash would.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.server.take().map_or(Ok(()), |server| server.end("kill"))
    }

    /// Ends the server in order, if it runs, and starts it again on the same
    /// port and folder.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if let Some(server) = self.server.take() {
            server.end("term")?;
        }
        self.launch().await
    }

    /// Sends one command, words separated by spaces, and returns the raw start
    /// of the answer; for what a test wants to do behind the program's back.
    pub async fn command(&self, words: &str) -> anyhow::Result<String> {
        ask(self.address(), words).await
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let log = self.dir.path().join("redis.log");
        std::fs::write(&log, "")?;
        let mut server = Server::spawn(self.options, self.dir.path(), self.port)?;
        let deadline = Instant::now() + READY_LIMIT;
        let mut last;
        loop {
            // The answer names the process, so a stranger on this port is noticed.
            match ask(self.address(), "INFO server").await {
                Ok(answer) if answer.contains(&format!("process_id:{}\r\n", server.pid)) => {
                    // An append-only file is read before the first command is served.
                    match ask(self.address(), "PING").await {
                        Ok(pong) if pong.starts_with("+PONG") => break,
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
        self.server = Some(server);
        Ok(())
    }

    /// Gives the only master every slot and waits until it serves them.
    async fn form_cluster(&self) -> anyhow::Result<()> {
        self.command("CLUSTER ADDSLOTSRANGE 0 16383").await?;
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let info = self.command("CLUSTER INFO").await?;
            if info.contains("cluster_state:ok") {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the cluster does not form: {info}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Somebody else listens on the port that was free a moment ago.
#[derive(Debug)]
struct PortTaken;

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the port was taken by somebody else")
    }
}

impl std::error::Error for PortTaken {}

/// The helper shell and the server under it.
#[derive(Debug)]
struct Server {
    helper: Child,
    pid: u32,
}

impl Server {
    fn spawn(options: RedisOptions, dir: &std::path::Path, port: u16) -> anyhow::Result<Self> {
        let program = find_on_path("redis-server")?;
        let mut command = Command::new("sh");
        command
            .args(["-c", HELPER])
            .arg(dir)
            .arg(program)
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
            .args(["--appendonly", if options.appendonly { "yes" } else { "no" }])
            // Every second's fsync holds writes back while a disk is slow, and kill -9 would lose them.
            .args(["--appendfsync", "always"])
            .args(["--daemonize", "no", "--logfile", "redis.log", "--dir"])
            .arg(dir);
        if options.cluster {
            command.args([
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &free_port()?.to_string(),
            ]);
        }
        let mut helper = command
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
            .with_context(|| format!("the helper said {line:?} in place of a pid"))?;
        Ok(Self { helper, pid })
    }

    fn has_ended(&mut self) -> anyhow::Result<bool> {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let zombie = state.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'));
        Ok(state.is_empty() || zombie || self.helper.try_wait()?.is_some())
    }

    fn end(mut self, how: &str) -> anyhow::Result<()> {
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
        // Nothing useful can be done about a failure while dropping.
        drop(self.helper.wait());
    }
}

async fn ask(address: SocketAddr, words: &str) -> anyhow::Result<String> {
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

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn find_on_path(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/bin")])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not installed: run `make setup`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn starts_restarts_and_dies_with_its_owner() {
        let mut redis = PrivateRedis::start_with(RedisOptions {
            appendonly: true,
            ..RedisOptions::default()
        })
        .await
        .unwrap();
        assert_eq!(redis.command("SET k v").await.unwrap(), "+OK\r\n");
        redis.kill9().unwrap();
        assert!(redis.command("PING").await.is_err());
        redis.restart().await.unwrap();
        assert!(redis.command("GET k").await.unwrap().contains('v'));
        let pid = redis.server.as_ref().unwrap().pid;
        let dir = redis.dir.path().to_owned();
        drop(redis);
        assert!(!dir.exists());
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn says_what_is_missing() {
        let error = find_on_path("no-such-program-anywhere").unwrap_err().to_string();
        assert!(error.contains("make setup"), "{error}");
    }
}
