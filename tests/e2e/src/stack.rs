//! Redis, the three services and the `berth` command, set up for one test.

mod replicas;

pub use replicas::{AnotherIssuer, AnotherManager};

use crate::python::Client;
use anyhow::{Context, Result, bail, ensure};
use local_stack::Service;
use local_stack::berth::{self, text};
use local_stack::config::{self, Account, Addresses, Tls};
use local_stack::paths::{home, installed};
use serde_json::Value;
use session_core::machine::{self, Event};
use session_core::{Actor, SessionKey};
use session_store::{Commit, SessionStore};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use test_support::ports::free_ports;
use test_support::redis::{PrivateRedis, RedisOptions};

/// What the sessions of a test run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The cluster `sail`: one Sail process per session.
    Sail,
    /// The cluster `spark`: one Apache Spark process per session.
    Spark,
}

impl Engine {
    /// The name of its cluster.
    pub fn cluster(self) -> &'static str {
        match self {
            Self::Sail => "sail",
            Self::Spark => "spark",
        }
    }

    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Sail => "Sail",
            Self::Spark => "Apache Spark",
        }
    }
}

/// More of session-manager's configuration, for tests with load: limits that the load does not reach,
/// and the cluster `shared` on the Sail server at `sail`.
pub fn shared_sail_without_limits(sail: SocketAddr) -> String {
    format!(
        "limits.calls_per_second_per_principal = 0\nlimits.calls_per_second_per_address = 0\n\
         [[orgs]]\nname = \"acme\"\n[orgs.limits]\nlive_sessions_per_owner = 1000\n\
         live_sessions = 3000\ncreates_per_minute = 10000\n\
         [[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\"]\n\
         static.endpoints = [{{ address = \"{sail}\" }}]\n"
    )
}

/// How a stack is set up.
#[derive(Debug, Clone, Default)]
pub struct StackOptions {
    /// What the proxy speaks.
    pub tls: Tls,
    /// More of session-manager's configuration.
    pub manager: String,
    /// More of token-issuer's configuration.
    pub issuer: String,
    /// More of spark-proxy's configuration.
    pub proxy: String,
    /// Where the state is instead of in the stack's own Redis, which then
    /// stands unused: a URL as session-manager takes it.
    pub store: Option<String>,
    /// Where proxies and token-issuer find session-manager's internal API
    /// instead of at the first manager: a load balancer.
    pub managers: Option<SocketAddr>,
}

/// The whole of Berth, in one folder that vanishes with it.
#[derive(Debug)]
pub struct Stack {
    /// Where everything is.
    pub dir: TempDir,
    /// Its state.
    pub redis: PrivateRedis,
    /// session-manager.
    pub manager: Service,
    /// token-issuer.
    pub issuer: Service,
    /// spark-proxy.
    pub proxy: Service,
    /// Where the proxy listens.
    pub proxy_address: SocketAddr,
    /// Where token-issuer publishes its keys.
    pub jwks_address: SocketAddr,
    /// Where session-manager's public API is.
    pub manager_uri: String,
    /// Where the first manager's internal API is.
    pub internal_address: SocketAddr,
    issuer_uri: String,
    addresses: Addresses,
    accounts: Vec<Account>,
    ca: Option<PathBuf>,
    options: StackOptions,
}

/// `ada` and `bob` are members, `olga` administers their organization, `pat`
/// the platform; `eve` is a member of another organization.
const ACCOUNTS: [(&str, &str, &[&str]); 5] = [
    ("ada", "acme", &["member"]),
    ("bob", "acme", &["member"]),
    ("olga", "acme", &["member", "org-admin"]),
    ("pat", "acme", &["member", "platform-admin"]),
    ("eve", "umbrella", &["member"]),
];

impl Stack {
    /// Starts everything with the defaults.
    ///
    /// # Errors
    /// When a part does not become ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(StackOptions::default()).await
    }

    /// Starts everything.
    ///
    /// # Errors
    /// When a part does not become ready.
    pub async fn start_with(options: StackOptions) -> Result<Self> {
        let mut stack = Self::prepare(&options).await?;
        stack.up().await?;
        Ok(stack)
    }

    /// Starts the services of a prepared stack.
    ///
    /// # Errors
    /// When a part does not become ready.
    pub async fn up(&mut self) -> Result<()> {
        self.manager.start()?;
        self.issuer.start_ready().await?;
        self.manager.ready().await?;
        self.proxy.start_ready().await
    }

    /// Everything but the services' start.
    ///
    /// # Errors
    /// When the folder, Redis or the keys cannot be made.
    pub async fn prepare(options: &StackOptions) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-e2e-").tempdir()?;
        let redis = PrivateRedis::start_with(RedisOptions {
            appendonly: true,
            ..RedisOptions::default()
        })
        .await?;
        let [
            manager,
            internal,
            manager_admin,
            issuer,
            jwks,
            issuer_admin,
            proxy,
            proxy_admin,
        ] = free_ports()?;
        let addresses = Addresses {
            manager,
            internal,
            manager_admin,
            issuer,
            jwks,
            issuer_admin,
            proxy,
            proxy_admin,
        };
        let accounts = ACCOUNTS
            .into_iter()
            .map(|(name, org, roles)| account(name, org, roles))
            .collect::<Result<Vec<_>>>()?;
        let signing_key = dir.path().join("signing.pem");
        berth::new_signing_key(&signing_key)?;
        let ca = match options.tls {
            Tls::Off => None,
            Tls::Required | Tls::Auto => Some(write_certificates(dir.path())?),
        };
        let store = options.store.clone().unwrap_or_else(|| redis.url());
        let issuer = config::Issuer {
            addresses: &options.behind_balancer(addresses),
            signing_key: &signing_key,
            tls: options.tls == Tls::Required,
            more: &options.issuer,
        };
        let issuer = Service::new("token-issuer", dir.path(), &issuer.toml(), issuer_admin)?;
        Ok(Self {
            manager: manager_service(dir.path(), addresses, &store, &accounts, options)?,
            issuer,
            proxy: proxy_service(dir.path(), dir.path(), addresses, options)?,
            proxy_address: proxy,
            jwks_address: jwks,
            manager_uri: addresses.manager_uri(),
            issuer_uri: addresses.issuer_uri(),
            internal_address: internal,
            dir,
            redis,
            addresses,
            accounts,
            ca,
            options: options.clone(),
        })
    }

    /// A console of the same stack, ready, and where it listens. All have the
    /// same keys of cookies.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn console(&self, more: &str) -> Result<(Service, SocketAddr)> {
        let [address, admin] = free_ports()?;
        let keys = self.dir.path().join("cookie-keys");
        if !keys.exists() {
            berth::new_cookie_key(&keys)?;
        }
        let config = config::Console {
            address,
            admin,
            addresses: &self.addresses,
            keys: &keys,
            tls: self.options.tls == Tls::Required,
            more,
        };
        let dir = self.dir.path().join(format!("console-{}", address.port()));
        std::fs::create_dir_all(&dir)?;
        let mut service = Service::new("console", &dir, &config.toml(), admin)?;
        service.start_ready().await?;
        Ok((service, address))
    }

    /// `url`, but to another port of this machine.
    pub fn via(&self, url: &str, address: SocketAddr) -> String {
        url.replace(
            &format!(":{}/", self.proxy_address.port()),
            &format!(":{}/", address.port()),
        )
    }

    /// Where token-issuer's API is.
    pub fn issuer_uri(&self) -> &str {
        &self.issuer_uri
    }

    /// The private authority's certificate, if the proxy speaks TLS.
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// The service-account key of `who`.
    pub fn key_of(&self, who: &str) -> &str {
        self.accounts
            .iter()
            .find(|account| account.name == who)
            .map_or("", |account| &account.key)
    }

    /// Runs the `berth` command as `who` and returns its JSON.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn berth(&self, who: &str, args: &[&str]) -> Result<Value> {
        self.berth_with(self.key_of(who), args)
    }

    /// Runs the `berth` command with any credential.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn berth_with(&self, credential: &str, args: &[&str]) -> Result<Value> {
        self.run_berth(&[("BERTH_KEY", credential)], args)
    }

    /// Runs the `berth` command with the token in a file.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn berth_with_token(&self, token: &str, args: &[&str]) -> Result<Value> {
        let file = self.dir.path().join("bearer-token");
        std::fs::write(&file, token)?;
        let file = file.display().to_string();
        self.run_berth(&[("BERTH_KEY", ""), ("BERTH_TOKEN_FILE", &file)], args)
    }

    fn run_berth(&self, credential: &[(&str, &str)], args: &[&str]) -> Result<Value> {
        let stack = [
            ("BERTH_MANAGER", self.manager_uri.as_str()),
            ("BERTH_ISSUER", self.issuer_uri.as_str()),
        ];
        berth::run(args, &[&stack[..], credential].concat())
    }

    /// Creates a session of `who` and waits until it is active. Returns its id.
    ///
    /// # Errors
    /// When it does not become active.
    pub fn session(&self, who: &str, engine: Engine, more: &[&str]) -> Result<String> {
        let args = [&["create", "--wait", "--cluster", engine.cluster()], more].concat();
        let session = self.berth(who, &args)?;
        ensure!(
            session["status"] == "active",
            "the session is not active: {session}"
        );
        text(&session, "id")
    }

    /// A new token of `who` for `session`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn token(&self, who: &str, session: &str) -> Result<String> {
        text(&self.berth(who, &["token", session])?, "token")
    }

    /// A connection string with a new token.
    ///
    /// # Errors
    /// When the token is refused.
    pub fn url(&self, who: &str, session: &str) -> Result<String> {
        text(&self.berth(who, &["token", session])?, "connection_url")
    }

    /// As [`Stack::url`], for a client of a stack that takes TLS and plaintext ([`Tls::Auto`]).
    ///
    /// # Errors
    /// When the token is refused.
    pub fn url_for(&self, client: Client, who: &str, session: &str) -> Result<String> {
        Ok(Self::as_taken_by(client, &self.url(who, session)?))
    }

    /// A connection string that asks for TLS where the tests drive `client` over TLS.
    pub fn as_taken_by(client: Client, url: &str) -> String {
        if client.over_tls() {
            url.replacen("/;", "/;use_ssl=true;", 1)
        } else {
            url.to_owned()
        }
    }

    /// The private authority's certificate, for a client that is driven over TLS.
    pub fn ca_for(&self, client: Client) -> Option<&Path> {
        self.ca().filter(|_| client.over_tls())
    }

    /// A session as `who` sees it.
    ///
    /// # Errors
    /// When it is refused.
    pub fn show(&self, who: &str, session: &str) -> Result<Value> {
        self.berth(who, &["show", session])
    }

    /// Gives a stored session an idle timeout below what its cluster allows, so that a test need not
    /// wait for minutes; session-manager then decides by itself.
    ///
    /// # Errors
    /// When the session is not stored or keeps changing.
    pub async fn shorten_idle_timeout(&self, session: &str, timeout: Duration) -> Result<()> {
        let (store, key) = self.stored(session).await?;
        for _ in 0..10 {
            let loaded = store
                .get_with_activity(&key)
                .await?
                .context("the session is not stored")?;
            let rename = Event::Update {
                name: Some(Some("short idle timeout".to_owned())),
                labels: None,
            };
            let changed = machine::apply(&loaded.session, &rename, &Actor::System, loaded.at)
                .map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
            let mut changed = changed.context("it has a short idle timeout already")?;
            changed.session.policy.idle_timeout = timeout;
            let commit = Commit {
                due: machine::next_due(&changed.session, loaded.activity, loaded.at),
                session: changed.session,
                record: changed.record,
            };
            match store.commit(commit).await {
                Err(session_store::Error::Conflict) => {}
                done => return Ok(done?),
            }
        }
        bail!("{session} keeps changing")
    }

    /// The state store, and the key of a session in it.
    async fn stored(&self, session: &str) -> Result<(Arc<dyn SessionStore>, SessionKey)> {
        let store = session_store::open(&self.redis.url(), &session_store::redis::Options::default()).await?;
        let keys = self.redis.command(&format!("KEYS *:session:*:{session}")).await?;
        let key = keys.lines().find_map(|line| {
            let (_, name) = line.split_once(":session:")?;
            let (org, id) = name.trim().split_once(':')?;
            Some(SessionKey {
                org: org.parse().ok()?,
                id: id.parse().ok()?,
            })
        });
        Ok((store, key.with_context(|| format!("{session} is not stored"))?))
    }

    /// A connection string straight to the compute of a session, from its stored route.
    ///
    /// # Errors
    /// When it has none.
    pub async fn backend_url(&self, session: &str) -> Result<String> {
        let (store, key) = self.stored(session).await?;
        let stored = store.get(&key).await?;
        if let Some(route) = stored
            .as_ref()
            .and_then(|session| session.state.published_route())
        {
            let port = route.endpoint.rsplit(':').next().unwrap_or_default();
            return Ok(match &route.credential {
                // Plaintext with a token is for the literal localhost only.
                Some(credential) => format!("sc://localhost:{port}/;token={}", credential.expose()),
                None => format!("sc://localhost:{port}"),
            });
        }
        bail!("no route of {session} is stored")
    }

    /// The processes that run below session-manager, by their command lines.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn children_matching(&self, text: &str) -> Result<Vec<u32>> {
        self.children(|_, command| command.contains(text))
    }

    /// Ends the compute of a session without a word, as a crash does.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn crash_compute_of(&self, session: &str) -> Result<()> {
        for pid in self.children(|cwd, command| cwd.contains(session) || command.contains(session))? {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            // The supervisor is among them; either end is a loss.
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
        Ok(())
    }

    fn children(&self, wanted: impl Fn(&str, &str) -> bool) -> Result<Vec<u32>> {
        let marker = self.dir.path().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let ours = cwd.starts_with(&marker) || command.contains(&marker);
            if ours && wanted(&cwd.to_string_lossy(), &command) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

impl StackOptions {
    /// The addresses as token-issuer and the proxies see them.
    fn behind_balancer(&self, addresses: Addresses) -> Addresses {
        Addresses {
            internal: self.managers.unwrap_or(addresses.internal),
            ..addresses
        }
    }
}

fn account(name: &str, org: &str, roles: &[&str]) -> Result<Account> {
    let made = berth::new_account_key()?;
    Ok(Account {
        name: name.to_owned(),
        org: org.to_owned(),
        roles: roles.iter().map(|&role| role.to_owned()).collect(),
        key: text(&made, "key")?,
        key_sha256: text(&made, "key_sha256")?,
    })
}

/// `ca.pem`, `cert.pem` and `key.pem` in `dir`, for localhost.
fn write_certificates(dir: &Path) -> Result<PathBuf> {
    let ca_key = rcgen::KeyPair::generate()?;
    let mut ca_params = rcgen::CertificateParams::new(Vec::new())?;
    ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // Another name than the certificate's, which would look self-signed otherwise.
    ca_params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "berth e2e authority");
    let ca = ca_params.self_signed(&ca_key)?;
    let issuer = rcgen::Issuer::new(ca_params, ca_key);
    let key = rcgen::KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    std::fs::write(dir.join("cert.pem"), cert.pem())?;
    std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
    let path = dir.join("ca.pem");
    std::fs::write(&path, ca.pem())?;
    Ok(path)
}

/// A session-manager with its files in `dir`.
fn manager_service(
    dir: &Path,
    addresses: Addresses,
    store: &str,
    accounts: &[Account],
    options: &StackOptions,
) -> Result<Service> {
    let config = config::Manager {
        public: addresses.manager,
        internal: addresses.internal,
        admin: addresses.manager_admin,
        store,
        password: None,
        keys: &addresses.keys(),
        compute_dir: &dir.join("compute"),
        accounts,
        more: &format!(
            "compute.process.trust_all_users = true\n{}\n{}",
            options.manager,
            compute_and_catalogs()?
        ),
    };
    Service::new("session-manager", dir, &config.toml(), addresses.manager_admin)
}

/// A spark-proxy with its files in `dir` and certificates in `certificates`.
fn proxy_service(
    dir: &Path,
    certificates: &Path,
    addresses: Addresses,
    options: &StackOptions,
) -> Result<Service> {
    let config = config::Proxy {
        address: addresses.proxy,
        admin: addresses.proxy_admin,
        keys: &addresses.keys(),
        manager_uri: &options.behind_balancer(addresses).internal_uri(),
        tls: options.tls,
        certificates,
        more: &options.proxy,
    };
    Service::new("spark-proxy", dir, &config.toml(), addresses.proxy_admin)
}

/// The clusters and catalogs of every stack.
fn compute_and_catalogs() -> Result<String> {
    let sail = installed("venv-sail/bin/sail")?;
    // A session on Spark fails if it is not installed: benchmarks need none.
    let spark = home().join("venv-spark");
    Ok(format!(
        r#"
[compute.static]
dev = true
allow = ["127.0.0.0/8"]

[[clusters]]
name = "sail"
engine = "sail"
[clusters.process]
program = "{sail}"

[[clusters]]
name = "spark"
engine = "spark"
provisioning_deadline = "5m"
[clusters.process]
program = "{spark}/spark-home"
python = "{spark}/bin/python"
java_home = "{home}/java-spark"
driver_memory = "1g"

[[catalogs]]
name = "dev"
org = "acme"
engine = "sail"
default_database = "lab"
[catalogs.properties]
type = "memory"
initial_database = ["lab"]

[[catalogs]]
name = "broken"
org = "acme"
engine = "sail"
default_database = "nowhere"
[catalogs.properties]
type = "memory"
initial_database = ["lab"]
"#,
        sail = sail.display(),
        spark = spark.display(),
        home = home().display(),
    ))
}
