//! A real `redis-server` that belongs to one test.
//!
//! It listens on a free loopback port, keeps its files in a temporary folder,
//! and never outlives the test, even one that is killed ([`local_stack::Process`]).

mod cluster;
mod secured;
mod sentinel;
mod tls;

use anyhow::ensure;
pub use cluster::PrivateCluster;
use local_stack::Signal;
use local_stack::redis::{Launch, PortTaken, READY_TIMEOUT, RedisServer, ask};
pub use secured::{Secured, documented_rules};
pub use sentinel::Watched;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
pub use tls::Certificates;
use tokio::time::{Instant, sleep};

/// Maximum number of ports to try when another process takes the port first.
const PORT_TRIES: usize = 5;

/// Options of a private server.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Writes every change to an append-only file, so that data outlives a restart.
    pub appendonly: bool,
    /// Runs as a member of a Redis Cluster, which rejects commands that touch two
    /// hash slots. A single server has all slots.
    pub cluster: bool,
    /// TLS and users; without it the server takes plaintext from everybody.
    pub secured: Option<Secured>,
    /// Its port; a free one if absent.
    pub port: Option<u16>,
    /// Address at which replicas, sentinels and clients reach it, if that is another one: a relay.
    pub announced: Option<SocketAddr>,
    /// More of its environment.
    pub env: Vec<(String, String)>,
    /// More arguments of the command line.
    pub more: Vec<String>,
}

impl RedisOptions {
    /// The arguments of the command line, except the port.
    fn words(&self, dir: &Path) -> anyhow::Result<Vec<String>> {
        let mut words = ["--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
            .map(str::to_owned)
            .to_vec();
        let mut add = |name: &str, value: &str| words.extend([name.to_owned(), value.to_owned()]);
        add("--dir", &dir.to_string_lossy());
        add("--appendonly", if self.appendonly { "yes" } else { "no" });
        // With `everysec`, writes wait for a slow disk and kill -9 loses them.
        add("--appendfsync", "always");
        if self.cluster {
            add("--cluster-enabled", "yes");
            add("--cluster-port", &free_port()?.to_string());
        }
        if let Some(address) = self.announced {
            add("--replica-announce-ip", &address.ip().to_string());
            add("--replica-announce-port", &address.port().to_string());
        }
        if let Some(secured) = &self.secured {
            words.extend(secured.server_words(dir, self.cluster)?);
        }
        words.extend(self.more.iter().cloned());
        Ok(words)
    }
}

/// A running `redis-server`; stops on drop.
#[derive(Debug)]
pub struct PrivateRedis {
    options: RedisOptions,
    dir: TempDir,
    port: u16,
    tls_port: Option<u16>,
    server: Option<RedisServer>,
}

impl PrivateRedis {
    /// Starts a server without persistence.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(RedisOptions::default()).await
    }

    /// Starts a server and waits until it responds.
    pub async fn start_with(options: RedisOptions) -> anyhow::Result<Self> {
        let redis = Self::launch_with(options).await?;
        if redis.options.cluster {
            redis.form_cluster().await?;
        }
        Ok(redis)
    }

    async fn launch_with(options: RedisOptions) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-redis-").tempdir()?;
        let mut redis = Self {
            options,
            dir,
            port: 0,
            tls_port: None,
            server: None,
        };
        if let Some(port) = redis.options.port {
            redis.port = port;
            redis.launch().await?;
            return Ok(redis);
        }
        for _ in 1..PORT_TRIES {
            redis.take_ports()?;
            match redis.launch().await {
                Err(error) if error.is::<PortTaken>() => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        if redis.server.is_none() {
            redis.take_ports()?;
            redis.launch().await?;
        }
        Ok(redis)
    }

    fn take_ports(&mut self) -> anyhow::Result<()> {
        self.port = free_port()?;
        self.tls_port = self.options.secured.is_some().then(free_port).transpose()?;
        Ok(())
    }

    /// URL of the server.
    pub fn url(&self) -> String {
        let scheme = if self.tls_port.is_some() {
            "rediss"
        } else {
            "redis"
        };
        format!("{scheme}://127.0.0.1:{}/", self.data_port())
    }

    /// The port for clients and other servers; with TLS if the server has it.
    pub fn data_port(&self) -> u16 {
        self.tls_port.unwrap_or(self.port)
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whether it runs; a server can end by itself.
    pub fn is_running(&self) -> bool {
        self.server.as_ref().is_some_and(|server| !server.has_ended())
    }

    /// Limits the size of each of its files until it ends: writes beyond it fail as on a
    /// full disk. `None` removes the limit.
    pub fn limit_files(&self, bytes: Option<u64>) -> anyhow::Result<()> {
        let server = self.server.as_ref();
        server.map_or(Ok(()), |server| server.limit_files(bytes))
    }

    /// Address of the plaintext port, which tests use.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Address at which others reach it.
    pub fn announced(&self) -> SocketAddr {
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, self.data_port()));
        self.options.announced.unwrap_or(own)
    }

    /// Kills the server, like a crash.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.server
            .take()
            .map_or(Ok(()), |server| server.end(Signal::Kill))
    }

    /// Suspends (`SIGSTOP`) or resumes the server, to simulate a hang.
    pub async fn stand_still(&mut self, still: bool) -> anyhow::Result<()> {
        match &mut self.server {
            Some(server) => server.stand_still(still).await,
            None => Ok(()),
        }
    }

    /// Stops the server gracefully, if it runs, and starts it again with the same
    /// port and folder.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if let Some(server) = self.server.take() {
            server.end(Signal::Term)?;
        }
        self.launch().await
    }

    /// Sends one command, words separated by spaces, and returns the raw start of
    /// the reply; for changes that bypass the program under test.
    pub async fn command(&self, words: &str) -> anyhow::Result<String> {
        ask(self.address(), self.login(), words).await
    }

    fn login(&self) -> Option<&'static str> {
        self.options.secured.is_some().then_some(secured::ADMIN)
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let mut words = self.options.words(self.dir.path())?;
        words.extend(["--port".to_owned(), self.port.to_string()]);
        if let Some(port) = self.tls_port {
            words.extend(["--tls-port".to_owned(), port.to_string()]);
        }
        self.server = Some(
            launch(
                self.dir.path(),
                self.port,
                &words,
                self.login(),
                &self.options.env,
            )
            .await?,
        );
        Ok(())
    }

    /// Assigns all slots to the only master and waits until it serves them.
    async fn form_cluster(&self) -> anyhow::Result<()> {
        self.command("CLUSTER ADDSLOTSRANGE 0 16383").await?;
        let deadline = Instant::now() + READY_TIMEOUT;
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

/// Starts a server whose folder does not outlive the test.
async fn launch(
    dir: &Path,
    port: u16,
    args: &[String],
    login: Option<&str>,
    env: &[(String, String)],
) -> anyhow::Result<RedisServer> {
    let launch = Launch {
        dir,
        temporary: true,
        port,
        args,
        login,
        env,
    };
    RedisServer::launch(launch).await
}

fn free_port() -> anyhow::Result<u16> {
    Ok(crate::ports::free_port()?.port())
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
        let pid = redis.server.as_ref().unwrap().pid();
        let dir = redis.dir.path().to_owned();
        drop(redis);
        assert!(!dir.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
