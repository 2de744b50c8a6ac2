//! `berth login` at a real OpenID provider (npm `oidc-provider`), against real
//! services: both flows open sessions, a token shorter than the work is renewed
//! by itself, and a sign-out ends it.

use anyhow::{Context as _, Result, ensure};
use e2e::{Engine, Stack, StackOptions, binary, home};
use local_stack::paths::repo;
use local_stack::{Process, until_ready};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const READY: Duration = Duration::from_secs(60);

/// The provider, and the folder from which Node runs its script.
pub(crate) struct Provider {
    _process: Process,
    pub(crate) dir: TempDir,
    address: SocketAddr,
}

impl Provider {
    /// Starts one whose access tokens live for so many seconds.
    pub(crate) async fn start(lifetime: u64) -> Result<Self> {
        let modules = home().join("oidc/node_modules");
        ensure!(
            modules.is_dir(),
            "{} is missing: run `deploy/local/setup.sh test`",
            modules.display()
        );
        let dir = tempfile::tempdir()?;
        // Node finds packages beside the script that it runs.
        std::os::unix::fs::symlink(&modules, dir.path().join("node_modules"))?;
        std::fs::copy(
            repo().join("tests/clients/oidc/login.mjs"),
            dir.path().join("login.mjs"),
        )?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new("node");
        command
            .arg(dir.path().join("login.mjs"))
            .args(["provider", &address.port().to_string()])
            .env("TOKEN_LIFETIME", lifetime.to_string());
        let process = Process::start(&command, &dir.path().join("log"), Some(dir.path()))?;
        until_ready("the OpenID provider", &process, READY, async || {
            let connected = tokio::net::TcpStream::connect(address).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(Self {
            _process: process,
            dir,
            address,
        })
    }

    pub(crate) fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The user opens an address and agrees.
    async fn visit(&self, address: &str) -> Result<Output> {
        let mut node = tokio::process::Command::new("node");
        node.arg(self.dir.path().join("login.mjs"))
            .args(["user", address]);
        let output = node.stdin(Stdio::null()).output().await?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }
}

/// A stack that accepts its tokens.
pub(crate) fn trusting(provider: &Provider) -> StackOptions {
    let issuer = provider.issuer();
    StackOptions {
        manager: format!(
            "[[oidc]]\nalias = \"corp\"\nissuer = \"{issuer}\"\naudiences = [\"berth\"]\norgs = [\"acme\"]\n\
             org_claim = \"org\"\nroles_claim = \"roles\"\nalgorithms = [\"ES256\"]\n\
             authorized_parties = [\"berth-cli\"]\nkeys.again_after = \"1s\"\nleeway = \"1s\"\n"
        ),
        ..StackOptions::default()
    }
}

fn berth(settings: &Path, args: &[&str]) -> Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(binary("berth")?);
    command
        .args(["--output", "json"])
        .args(args)
        .env_remove("BERTH_KEY")
        .env("BERTH_CONFIG_DIR", settings)
        .env("BROWSER", "")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

async fn run(settings: &Path, args: &[&str]) -> Result<Value> {
    let output = berth(settings, args)?.output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "berth {args:?}: {said}");
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

/// Signs in; `address_of` finds the address for the user in a line of output.
async fn sign_in(provider: &Provider, settings: &Path, flow: &str) -> Result<Value> {
    let mut child = berth(settings, &["login", flow])?.spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("stderr")?).lines();
    let line = lines.next_line().await?.context("no address was printed")?;
    let rest = line.strip_prefix("To sign in, open ").context("another line")?;
    let address = match rest.split_once(" and enter the code ") {
        Some((address, code)) => format!("{address}?user_code={}", code.trim_end_matches('.')),
        None => rest.to_owned(),
    };
    provider.visit(&address).await?;
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "berth login {flow}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn both_flows_open_sessions_and_tokens_are_renewed() -> Result<()> {
    let provider = Provider::start(15).await?;
    let stack = Stack::start_with(trusting(&provider)).await?;
    let issuer = provider.issuer();
    for flow in ["--device", "--browser"] {
        let settings = tempfile::tempdir()?;
        let settings = settings.path();
        let set = [
            "context",
            "set",
            "e2e",
            "--manager",
            &stack.manager_uri,
            "--issuer",
            stack.issuer_uri(),
            "--oidc-issuer",
            &issuer,
            "--oidc-client-id",
            "berth-cli",
            "--oidc-resource",
            "urn:berth",
        ];
        let scopes = [
            "--oidc-scope",
            "openid",
            "--oidc-scope",
            "offline_access",
            "--oidc-scope",
            "berth",
        ];
        run(settings, &[&set[..], &scopes].concat()).await?;
        let login = sign_in(&provider, settings, flow).await?;
        assert_eq!(login["organization"], "acme", "{flow}: {login}");
        assert_eq!(login["renewable"], true, "{flow}: {login}");

        let create = ["session", "create", "--wait", "--cluster", Engine::Sail.cluster()];
        let session = run(settings, &create).await?;
        assert_eq!(
            (&session["owner"], &session["status"]),
            (&"corp|ada".into(), &"active".into()),
            "{session}"
        );
        let id = session["id"].as_str().context("id")?;
        let who = run(settings, &["whoami"]).await?;
        // Longer than the life of a token.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let token = run(settings, &["token", "issue", id]).await?;
        ensure!(token["connection_url"].is_string(), "{token}");
        let later = run(settings, &["whoami"]).await?;
        ensure!(
            who["credential"]["expires_at"] != later["credential"]["expires_at"],
            "{later}"
        );
        let checked = run(settings, &["doctor", id, "--query"]).await?;
        assert_eq!(checked["verdict"], "ok", "{checked:#}");
        run(settings, &["session", "close", id]).await?;

        let logout = run(settings, &["logout"]).await?;
        assert_eq!(logout["revoked"], true, "{flow}: {logout}");
        let after = berth(settings, &["session", "list"])?.output().await?;
        ensure!(!after.status.success(), "a sign-out leaves nothing");
    }
    Ok(())
}
