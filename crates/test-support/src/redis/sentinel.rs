//! A primary with replicas, monitored by sentinels.

use super::{PrivateRedis, READY_TIMEOUT, RedisOptions, RedisServer, Secured, free_port, launch, secured};
use anyhow::{Context, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Name of the primary in the configuration of the sentinels.
const NAME: &str = "main";
/// Number of sentinels; the quorum is two.
const SENTINELS: usize = 3;

/// A primary, its replicas, and sentinels that promote a replica when the
/// primary fails. All stop on drop.
#[derive(Debug)]
pub struct Watched {
    /// The servers; the first is the initial primary.
    pub servers: Vec<PrivateRedis>,
    sentinels: Vec<Sentinel>,
}

#[derive(Debug)]
struct Sentinel {
    port: u16,
    tls_port: Option<u16>,
    _server: RedisServer,
    _dir: TempDir,
}

impl PrivateRedis {
    /// Makes it a replica of `primary` and waits until the replication runs.
    pub async fn follow(&self, primary: &Self) -> anyhow::Result<()> {
        let address = primary.announced();
        self.command(&format!("REPLICAOF {} {}", address.ip(), address.port()))
            .await?;
        self.wait_for("INFO replication", "master_link_status:up").await
    }

    /// Repeats the command until the reply contains `expected`.
    pub async fn wait_for(&self, words: &str, expected: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let answer = self.command(words).await;
            if answer.as_ref().is_ok_and(|answer| answer.contains(expected)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no {expected:?} in {answer:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Watched {
    /// Starts a primary with this number of replicas, and the sentinels.
    pub async fn start(replicas: usize, options: &RedisOptions) -> anyhow::Result<Self> {
        Self::start_each(vec![options.clone(); replicas + 1]).await
    }

    /// As [`Watched::start`], with options of each server; the first is the primary.
    pub async fn start_each(options: Vec<RedisOptions>) -> anyhow::Result<Self> {
        let mut servers: Vec<PrivateRedis> = Vec::new();
        for options in options {
            let server = PrivateRedis::start_with(options).await?;
            if let Some(primary) = servers.first() {
                server.follow(primary).await?;
            }
            servers.push(server);
        }
        let primary = servers.first().context("no server")?;
        let secured = primary.options.secured.clone();
        let primary = primary.announced().port();
        let mut sentinels = Vec::new();
        for _ in 0..SENTINELS {
            sentinels.push(Sentinel::start(primary, secured.as_ref()).await?);
        }
        let replicas = servers.len() - 1;
        let watched = Self { servers, sentinels };
        watched.wait_until_all_know_all(replicas).await?;
        Ok(watched)
    }

    /// URL of the sentinels.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.tls_port.unwrap_or(sentinel.port)))
            .collect();
        let secured = self.sentinels.iter().any(|sentinel| sentinel.tls_port.is_some());
        let scheme = if secured { "rediss" } else { "redis" };
        format!("{scheme}-sentinel://{}/{NAME}", hosts.join(","))
    }

    /// Asks a sentinel to let another server take over, as before maintenance.
    pub async fn fail_over(&self) -> anyhow::Result<String> {
        let sentinel = self.sentinels.first().context("no sentinel")?;
        sentinel.ask(&format!("SENTINEL FAILOVER {NAME}")).await
    }

    /// The present primary, by the sentinels: an index of the servers.
    pub async fn primary(&self) -> anyhow::Result<usize> {
        let sentinel = self.sentinels.first().context("no sentinel")?;
        let answer = sentinel
            .ask(&format!("SENTINEL GET-MASTER-ADDR-BY-NAME {NAME}"))
            .await?;
        let is_named = |server: &PrivateRedis| {
            let port = server.announced().port();
            answer.contains(&format!("\r\n{port}\r\n"))
        };
        self.servers
            .iter()
            .position(is_named)
            .with_context(|| format!("the sentinels name {answer:?}"))
    }

    /// Sends one command to each sentinel, as [`PrivateRedis::command`].
    pub async fn ask_sentinels(&self, words: &str) -> anyhow::Result<Vec<String>> {
        let mut answers = Vec::new();
        for sentinel in &self.sentinels {
            answers.push(sentinel.ask(words).await?);
        }
        Ok(answers)
    }

    async fn wait_until_all_know_all(&self, replicas: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let expected = format!("slaves={replicas},sentinels={SENTINELS}");
        for sentinel in &self.sentinels {
            loop {
                let info = sentinel.ask("INFO sentinel").await?;
                if info.contains(&expected) {
                    break;
                }
                ensure!(Instant::now() < deadline, "the sentinels do not meet: {info}");
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

impl Sentinel {
    async fn start(primary: u16, secured: Option<&Secured>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-sentinel-").tempdir()?;
        let port = free_port()?;
        let mut config = format!(
            "port {port}\nbind 127.0.0.1\ndir {dir}\n\
             sentinel monitor {NAME} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {NAME} 1000\n\
             sentinel failover-timeout {NAME} 5000\n",
            dir = dir.path().display(),
        );
        let tls_port = secured.map(|_| free_port()).transpose()?;
        if let (Some(secured), Some(tls_port)) = (secured, tls_port) {
            config += &secured.sentinel_config(NAME, tls_port)?;
        }
        let file = dir.path().join("sentinel.conf");
        std::fs::write(&file, config)?;
        let words = [file.to_string_lossy().into_owned(), "--sentinel".to_owned()];
        let login = secured.map(|_| secured::ADMIN);
        let server = launch(dir.path(), port, &words, login, &[]).await?;
        Ok(Self {
            port,
            tls_port,
            _server: server,
            _dir: dir,
        })
    }

    async fn ask(&self, words: &str) -> anyhow::Result<String> {
        let login = self.tls_port.map(|_| secured::ADMIN);
        super::ask(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)), login, words).await
    }
}
