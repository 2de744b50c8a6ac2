//! A real OpenID provider: npm `oidc-provider` on Node.

use anyhow::{Context as _, Result, ensure};
use local_stack::paths::{home, repo};
use local_stack::{Process, until_ready};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use test_support::ports::free_port;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const READY: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(20);

/// A provider with the clients of `tests/clients/oidc/provider.mjs`; it ends when dropped.
#[derive(Debug)]
pub struct OidcProvider {
    process: Process,
    _dir: TempDir,
    address: SocketAddr,
}

impl OidcProvider {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed or does not answer in time.
    pub async fn start() -> Result<Self> {
        Self::launch(&[]).await
    }

    /// As [`Self::start`], with the client `console`, whose people come back to
    /// `redirect_uri`.
    ///
    /// # Errors
    /// When it is not installed or does not answer in time.
    pub async fn start_for_console(redirect_uri: &str) -> Result<Self> {
        Self::launch(&[redirect_uri]).await
    }

    async fn launch(more: &[&str]) -> Result<Self> {
        let folder = home().join("oidc");
        ensure!(
            folder.join("node_modules/oidc-provider").is_dir(),
            "{} is missing: run `deploy/local/setup.sh test` (make test does)",
            folder.display()
        );
        // Node finds packages beside the script that it runs.
        let script = folder.join("provider.mjs");
        let current = repo().join("tests/clients/oidc/provider.mjs");
        ensure!(
            std::fs::read(&script).ok() == std::fs::read(&current).ok(),
            "{} is old: run `deploy/local/setup.sh test` (make test does)",
            script.display()
        );
        let address = free_port()?;
        let dir = tempfile::tempdir()?;
        let mut command = Command::new("node");
        command.arg(&script).arg(address.port().to_string()).args(more);
        let process = Process::start(&command, &dir.path().join("log"), Some(dir.path()))?;
        let provider = Self {
            process,
            _dir: dir,
            address,
        };
        until_ready("the OpenID provider", &provider.process, READY, async || {
            let keys = provider.ask("GET", "/jwks", "", "").await;
            keys.map(drop).map_err(|error| format!("{error:#}"))
        })
        .await?;
        Ok(provider)
    }

    /// Its `iss`.
    pub fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    /// An access token of a client for a resource, by client credentials.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn token(&self, client: &str, resource: &str) -> Result<String> {
        let form = format!(
            "grant_type=client_credentials&scope=berth&resource={resource}&client_id={client}&client_secret={client}-secret"
        );
        let headers = "content-type: application/x-www-form-urlencoded\r\n";
        let answer = self.ask("POST", "/token", headers, &form).await?;
        let answer: Value = serde_json::from_str(&answer)?;
        let token = answer["access_token"].as_str();
        token
            .map(str::to_owned)
            .with_context(|| format!("no token: {answer}"))
    }

    /// Signs with a new key from now on; the earlier one stays published.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn rotate(&self) -> Result<()> {
        self.ask("POST", "/test/rotate", "", "").await.map(drop)
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Result<String> {
        let ask = async {
            let mut stream = TcpStream::connect(self.address).await?;
            // HTTP/1.0, so that the answer comes in one piece and ends.
            let request = format!(
                "{method} {path} HTTP/1.0\r\nhost: {}\r\ncontent-length: {}\r\n{headers}\r\n{body}",
                self.address,
                body.len()
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
            ensure!(head.contains(" 200 "), "{head}: {body}");
            Ok(body.to_owned())
        };
        tokio::time::timeout(ANSWER, ask)
            .await
            .context("no answer in time")?
    }
}
