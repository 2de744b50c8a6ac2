//! A `redis-server` as a process of its owner.

use crate::paths::on_path;
use crate::process::{Process, Signal};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Time until a server answers: long, because the machine is shared.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Another process listens on the port of a new server.
#[derive(Debug)]
pub struct PortTaken;

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the port was taken by another process")
    }
}

impl std::error::Error for PortTaken {}

/// How a server is started.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Its working folder, with its log `redis.log`, which begins anew.
    pub dir: &'a Path,
    /// True if the folder is removed when the owner dies.
    pub temporary: bool,
    /// The loopback port that its arguments or its configuration file name.
    pub port: u16,
    /// The arguments of `redis-server`; no secrets, every user can read them.
    pub args: &'a [String],
    /// More of its environment.
    pub env: &'a [(String, String)],
    /// What its default user needs, as `AUTH` takes it: a password, or a user and its password.
    pub login: Option<&'a str>,
}

/// Starts the server so that a write beyond the limit of file sizes fails, as on a full disk;
/// the signal for it would kill the server.
const WITHOUT_FILE_SIGNAL: [&str; 3] = ["-c", "trap '' XFSZ; exec \"$@\"", "sh"];

/// A running `redis-server`; ends when dropped and when its owner dies.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
}

impl RedisServer {
    /// Starts a server and waits until it answers and has read its data.
    ///
    /// # Errors
    /// [`PortTaken`] if another process has the port; else when it ends or does
    /// not answer in time.
    pub async fn launch(launch: Launch<'_>) -> Result<Self> {
        let log = launch.dir.join("redis.log");
        std::fs::write(&log, "")?;
        let mut command = Command::new("sh");
        command
            .args(WITHOUT_FILE_SIGNAL)
            .arg(on_path("redis-server")?)
            .args(launch.args)
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .current_dir(launch.dir);
        let process = Process::start(&command, &log, launch.temporary.then_some(launch.dir))?;
        let server = Self { process };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, launch.port));
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let last = match server.answers(address, launch.login).await {
                Ok(()) => return Ok(server),
                Err(error) if error.is::<PortTaken>() => return Err(error),
                Err(error) => error,
            };
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("Address already in use") {
                return Err(PortTaken.into());
            }
            ensure!(
                !server.has_ended(),
                "redis-server ended at its start; {} contains: {text}",
                log.display()
            );
            ensure!(
                Instant::now() < deadline,
                "redis-server does not answer ({last}); {} contains: {text}",
                log.display()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// True if it ended by itself.
    pub fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Makes it stand still, or continue: a server that hangs.
    ///
    /// # Errors
    /// When it does not obey in time.
    pub async fn stand_still(&mut self, still: bool) -> Result<()> {
        let signal = if still { Signal::Stop } else { Signal::Cont };
        self.process.signal(signal)?;
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.process.is_stopped() != still {
            ensure!(Instant::now() < deadline, "the server does not obey");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Limits the size of each of its files, so that writes beyond it fail as on a full disk;
    /// `None` removes the limit.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        rustix::process::prlimit(pid, Resource::Fsize, limit).context("limiting the size of files")?;
        Ok(())
    }

    /// Ends it in order and waits for that.
    ///
    /// # Errors
    /// When it does not end within `limit`; it is killed then.
    pub async fn stop(self, limit: Duration) -> Result<()> {
        self.process.stop(Signal::Term, limit).await.map(drop)
    }

    /// Ends it and blocks until it has ended.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn end(self, signal: Signal) -> Result<()> {
        self.process.stop_blocking(signal).map(drop)
    }

    async fn answers(&self, address: SocketAddr, login: Option<&str>) -> Result<()> {
        // The answer names the process, so another one on this port is noticed.
        let info = ask(address, login, "INFO server").await?;
        if !info.contains(&format!("process_id:{}\r\n", self.pid())) {
            return Err(PortTaken.into());
        }
        // An append-only file is read before the first command is served.
        let pong = ask(address, login, "PING").await?;
        ensure!(pong.starts_with("+PONG"), "{pong}");
        Ok(())
    }
}

/// Sends one command, words separated by spaces, and returns the raw start of
/// the answer. `login` is what `AUTH` takes.
///
/// # Errors
/// When there is no answer within five seconds, or the login is wrong.
pub async fn ask(address: SocketAddr, login: Option<&str>, words: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        if let Some(login) = login {
            let answer = send(&mut stream, &format!("AUTH {login}")).await?;
            ensure!(answer.starts_with("+OK"), "the login is rejected: {answer}");
        }
        send(&mut stream, words).await
    };
    timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer within 5 s")?
}

async fn send(stream: &mut TcpStream, words: &str) -> Result<String> {
    stream.write_all(format!("{words}\r\n").as_bytes()).await?;
    let mut answer = vec![0; 16 * 1024];
    let n = stream.read(&mut answer).await?;
    if n == 0 {
        bail!("the connection was closed");
    }
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}
