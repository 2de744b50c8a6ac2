//! What is measured: session-managers as processes of their own, on one real
//! Redis, and what is needed to call them.

use crate::instant::InstantCompute;
use anyhow::{Context as _, Result};
use compute::SimCompute;
use local_stack::config::{self, Account};
use service_kit::caller::{NewKey, generate_key};
use service_kit::config::{Sources, load};
use service_kit::shutdown::Shutdown;
use session_core::{OrgId, ProviderKind};
use session_manager::{Config, Listeners, Providers};
use session_store::SessionStore;
use session_token::{Jwks, Signer, generate_key_pem};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use test_support::redis::PrivateRedis;
use tonic::transport::{Channel, Endpoint};

/// Organizations, so that every partition has some.
pub(crate) const ORGS: usize = 64;
/// The cluster that all sessions are on.
pub(crate) const CLUSTER: &str = "instant";
const READY: Duration = Duration::from_secs(120);
const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// Redis, its client and the managers' configuration.
pub(crate) struct Stage {
    pub(crate) redis: PrivateRedis,
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) signer: Signer,
    pub(crate) keys: Vec<NewKey>,
    dir: TempDir,
}

/// One session-manager in a process of its own; it ends when dropped.
pub(crate) struct Manager {
    child: Child,
    pub(crate) public: Channel,
    pub(crate) internal: Channel,
    /// From its start until it answered.
    pub(crate) ready_after: Duration,
}

/// The organization number `n`.
pub(crate) fn org(n: usize) -> Result<OrgId> {
    Ok(format!("org-{:03}", n % ORGS).parse()?)
}

impl Stage {
    pub(crate) async fn set() -> Result<Self> {
        let redis = PrivateRedis::start().await?;
        let dir = tempfile::Builder::new().prefix("berth-lifecycle-").tempdir()?;
        let signer = Signer::from_pkcs8_pem(&generate_key_pem()?)?;
        let jwks = dir.path().join("jwks.json");
        std::fs::write(&jwks, Jwks::new([signer.public_jwk()]).to_json())?;
        let keys: Vec<NewKey> = (0..ORGS).map(|_| generate_key()).collect();
        let config = config::Manager {
            public: ANY_PORT,
            internal: ANY_PORT,
            admin: ANY_PORT,
            store: &redis.url(),
            password: None,
            keys: &jwks.display().to_string(),
            compute_dir: dir.path(),
            accounts: &accounts(&keys)?,
            more: &more()?,
        };
        std::fs::write(dir.path().join("config.toml"), config.toml())?;
        let config = read_config(&dir.path().join("config.toml"))?;
        let store = session_manager::open_store(&config).await?;
        Ok(Self {
            redis,
            store,
            signer,
            keys,
            dir,
        })
    }

    /// Starts one more manager and waits until it answers.
    pub(crate) async fn manager(&self) -> Result<Manager> {
        let begun = Instant::now();
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--manager")
            .arg(self.dir.path().join("config.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("its output")?;
        let mut lines = BufReader::new(out).lines();
        let mut channel = async || {
            let line = lines.next().context("it ended at once")??;
            let endpoint = Endpoint::from_shared(format!("http://{line}"))?.tcp_nodelay(true);
            anyhow::Ok(endpoint.connect_timeout(READY).connect().await?)
        };
        let (public, internal) = (channel().await?, channel().await?);
        loop {
            let sessions = crate::calls::sessions(&public, &self.keys[0]);
            if crate::calls::list_once(sessions).await.is_ok() {
                break;
            }
            anyhow::ensure!(begun.elapsed() < READY, "a manager did not become ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Manager {
            child,
            public,
            internal,
            ready_after: begun.elapsed(),
        })
    }

    /// A figure of Redis' INFO.
    pub(crate) async fn info(&self, section: &str, name: &str) -> Result<f64> {
        let text = self.redis.command(&format!("INFO {section}")).await?;
        let value = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
            .with_context(|| format!("INFO {section} has no {name}"))?;
        Ok(value.trim().parse()?)
    }

    /// How often scripts were run so far.
    pub(crate) async fn scripts_run(&self) -> Result<f64> {
        let text = self.redis.command("INFO commandstats").await?;
        let calls = |name: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(":calls="))
                .and_then(|rest| rest.split(',').next()?.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        Ok(calls("cmdstat_evalsha") + calls("cmdstat_eval"))
    }
}

impl Manager {
    /// CPU seconds it has used so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let rest = stat.rsplit_once(')').context("/proc")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        // USER_HZ is 100 on every Linux.
        Ok(ticks / 100.0)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn accounts(keys: &[NewKey]) -> Result<Vec<Account>> {
    let account = |(n, key): (usize, &NewKey)| {
        Ok(Account {
            name: format!("caller-{n}"),
            org: org(n)?.to_string(),
            roles: ["member", "org-admin"].map(str::to_owned).to_vec(),
            key: String::new(),
            key_sha256: key.sha256.clone(),
        })
    };
    keys.iter().enumerate().map(account).collect()
}

/// Limits that no measurement reaches, the cluster and the organizations.
fn more() -> Result<String> {
    let mut text = format!(
        "telemetry.level = \"error\"\ncompute.process.trust_all_users = true\n\
         limits.calls_per_second_per_principal = 0\nlimits.calls_at_once_per_principal = 0\n\
         limits.calls_per_second_per_address = 0\nlimits.calls_at_once = 0\n\
         limits.calls_at_once_per_org = 0\nlimits.calls_at_once_per_address = 0\n\
         limits.connections_per_address = 0\n\
         [[clusters]]\nname = \"{CLUSTER}\"\nengine = \"sail\"\nprocess = {{ program = \"/opt/sail\" }}\n"
    );
    for n in 0..ORGS {
        let org = org(n)?;
        text += &format!(
            "[[orgs]]\nname = \"{org}\"\nlimits = {{ live_sessions_per_owner = 100000, live_sessions = 1000000, creates_per_minute = 10000 }}\n"
        );
    }
    Ok(text)
}

fn read_config(file: &Path) -> Result<Config> {
    load(&Sources {
        file: Some(file.to_owned()),
        ..Sources::default()
    })
    .map_err(|problems| anyhow::anyhow!("{problems}"))
}

/// What a manager's own process does: says where it listens, and runs until
/// its parent's pipe closes.
pub(crate) async fn be_a_manager(file: &Path) -> Result<()> {
    let config = read_config(file)?;
    let listeners = Listeners::bind(&config).await?;
    println!("{}", listeners.public.local_addr());
    println!("{}", listeners.internal.local_addr());
    let store = session_manager::open_store(&config).await?;
    let providers = SimCompute::new()
        .servers_only()
        .with(ProviderKind::Process, Arc::new(InstantCompute::default()));
    let computes = Providers::new(providers);
    let shutdown = Shutdown::new();
    let parent = shutdown.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        parent.stop();
    });
    session_manager::run_with(config, listeners, shutdown, store, computes).await
}
