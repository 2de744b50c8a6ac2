//! `berth-dev run`: all of Berth on loopback, with a sample catalog, a session
//! and a real PySpark query.

use anyhow::{Context as _, Result, bail, ensure};
use local_stack::config::{Account, Addresses, Console, Issuer, Manager, Proxy, Tls};
use local_stack::paths::{home, installed, repo, write_private};
use local_stack::redis::{Launch, RedisServer};
use local_stack::{Process, Service, Signal, berth, until_ready};
use serde_json::Value;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{ErrorKind, IsTerminal as _, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::net::TcpStream;

/// Owner of the first session.
const USER: &str = "you";
const ORG: &str = "local";
/// Sail makes the tables of the sample catalog at the first start.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(120);
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// The query itself gives up after two minutes.
const QUERY_TIMEOUT: Duration = Duration::from_secs(180);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What is started where. The folder of what `make setup` installed is
/// BERTH_HOME (default: .berth in the repository).
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Stop after the query.
    #[arg(long)]
    exit: bool,

    /// Folder of the keys, the data and the logs [default: local in BERTH_HOME].
    #[arg(long, env = "BERTH_STATE")]
    state: Option<PathBuf>,

    /// Added to every port.
    #[arg(long, env = "BERTH_PORT_OFFSET", default_value_t = 0)]
    port_offset: u16,

    /// File with more of session-manager's configuration: tables, such as
    /// further clusters and service accounts.
    #[arg(long, value_name = "FILE")]
    more: Option<PathBuf>,
}

/// What runs; killed when dropped.
#[derive(Debug, Default)]
pub(crate) struct Stack {
    redis: Option<RedisServer>,
    catalog: Option<Process>,
    services: Vec<Service>,
}

impl Stack {
    /// Ends everything in order, newest first.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for service in self.services.iter_mut().rev() {
            service.terminate().await?;
        }
        if let Some(catalog) = self.catalog.take() {
            catalog.stop(Signal::Term, END_TIMEOUT).await?;
        }
        if let Some(redis) = self.redis.take() {
            redis.stop(END_TIMEOUT).await?;
        }
        Ok(())
    }

    /// A part that ended by itself.
    fn ended(&self) -> Option<&'static str> {
        if self.redis.as_ref().is_some_and(RedisServer::has_ended) {
            Some("redis")
        } else if self.catalog.as_ref().is_some_and(Process::has_ended) {
            Some("sample-catalog")
        } else {
            let ended = self.services.iter().find(|service| service.has_ended());
            ended.map(Service::name)
        }
    }
}

/// The ports: the defaults of the services, and those of Redis and the catalog.
#[derive(Debug)]
struct Ports {
    services: Addresses,
    console: SocketAddr,
    console_admin: SocketAddr,
    redis: SocketAddr,
    catalog: SocketAddr,
}

impl Ports {
    fn new(offset: u16) -> Result<Self> {
        let at = |port: u16| {
            let port = port.checked_add(offset).context("the port offset is too large")?;
            anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        };
        Ok(Self {
            services: Addresses {
                manager: at(8081)?,
                internal: at(8082)?,
                manager_admin: at(9081)?,
                issuer: at(8083)?,
                jwks: at(8084)?,
                issuer_admin: at(9083)?,
                proxy: at(8085)?,
                proxy_admin: at(9085)?,
            },
            console: at(8080)?,
            console_admin: at(9080)?,
            redis: at(6390)?,
            catalog: at(8090)?,
        })
    }

    fn must_be_free(&self) -> Result<()> {
        let at = &self.services;
        let all = [
            self.redis,
            self.catalog,
            at.manager,
            at.internal,
            at.manager_admin,
            at.issuer,
            at.jwks,
            at.issuer_admin,
            at.proxy,
            at.proxy_admin,
            self.console,
            self.console_admin,
        ];
        for address in all {
            match TcpListener::bind(address) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
                    "port {} is taken: stop what listens there, or choose others with BERTH_PORT_OFFSET=100",
                    address.port()
                ),
                other => other.with_context(|| format!("port {} cannot be used", address.port()))?,
            };
        }
        Ok(())
    }
}

/// Starts everything in `stack`, queries, and serves.
pub(crate) async fn run(options: &Options, stack: &mut Stack) -> Result<()> {
    let ports = Ports::new(options.port_offset)?;
    ports.must_be_free()?;
    let python = installed("venv-sail/bin/python")?;
    let state = options.state.clone().unwrap_or_else(|| home().join("local"));
    private_folder(&state)?;
    let state = state.canonicalize()?;
    let account = account(&state)?;
    progress(&format!(
        "starting Redis, the sample catalog and the services (logs in {})",
        state.display()
    ));
    let more = options.more.as_deref().map(std::fs::read_to_string).transpose();
    let more = more
        .context("reading the file of --more failed")?
        .unwrap_or_default();
    start(stack, &state, &ports, &python, &account, &more).await?;

    let client = Client {
        manager: ports.services.manager_uri(),
        issuer: ports.services.issuer_uri(),
        console: format!("http://localhost:{}", ports.console.port()),
        key: account.key,
    };
    let (session, url) = client.first_session().await?;
    progress("querying through the proxy with PySpark");
    query(&python, &url).await?;
    if options.exit {
        client.berth(&["close", &session]).await?;
        progress("done; stopping");
        return Ok(());
    }
    print_help(&state, &client, &url)?;
    // A part that ends also ends the run, so that nobody uses half of Berth.
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if let Some(name) = stack.ended() {
            bail!("{name} ended by itself; the logs are in {}", state.display());
        }
    }
}

async fn start(
    stack: &mut Stack,
    state: &Path,
    ports: &Ports,
    python: &Path,
    account: &Account,
    more: &str,
) -> Result<()> {
    let password = start_redis(stack, state, ports).await?;
    start_catalog(stack, state, ports, python).await?;
    let at = &ports.services;
    let manager = Manager {
        public: at.manager,
        internal: at.internal,
        admin: at.manager_admin,
        store: &format!("redis://{}", ports.redis),
        password: Some(&password),
        keys: &at.keys(),
        compute_dir: &state.join("compute"),
        accounts: std::slice::from_ref(account),
        more: &(cluster_and_catalog(ports) + more),
    };
    let signing_key = state.join("signing.pem");
    if !signing_key.exists() {
        berth::new_signing_key(&signing_key)?;
    }
    let issuer = Issuer {
        addresses: at,
        signing_key: &signing_key,
        tls: false,
        more: "",
    };
    let proxy = Proxy {
        address: at.proxy,
        admin: at.proxy_admin,
        keys: &at.keys(),
        manager_uri: &at.internal_uri(),
        tls: Tls::Off,
        certificates: state,
        more: "",
    };
    let cookie_keys = state.join("cookie-keys");
    if !cookie_keys.exists() {
        berth::new_cookie_key(&cookie_keys)?;
    }
    let console = Console {
        address: ports.console,
        admin: ports.console_admin,
        addresses: at,
        keys: &cookie_keys,
        tls: false,
        more: "",
    };
    for (name, config, admin) in [
        ("token-issuer", issuer.toml(), at.issuer_admin),
        ("session-manager", manager.toml(), at.manager_admin),
        ("spark-proxy", proxy.toml(), at.proxy_admin),
        ("console", console.toml(), ports.console_admin),
    ] {
        // In the stack before it is ready, so that it is stopped in order.
        let service = Service::new(name, state, &config, admin)?;
        stack.services.push(service);
        if let Some(service) = stack.services.last_mut() {
            service.start_ready().await?;
        }
    }
    Ok(())
}

/// Starts Redis; returns its password, which no argument contains.
async fn start_redis(stack: &mut Stack, state: &Path, ports: &Ports) -> Result<String> {
    let password = password(state)?;
    let dir = state.join("redis");
    private_folder(&dir)?;
    let file = state.join("redis.conf");
    write_private(
        &file,
        &format!(
            "bind 127.0.0.1\nport {}\ndir \"{}\"\nrequirepass {password}\nappendonly yes\nsave \"\"\ndaemonize no\n",
            ports.redis.port(),
            dir.display(),
        ),
    )?;
    let launch = Launch {
        dir: &dir,
        temporary: false,
        port: ports.redis.port(),
        args: &[file.display().to_string()],
        login: Some(&password),
        env: &[],
    };
    let redis = RedisServer::launch(launch).await;
    stack.redis = Some(redis.context("starting Redis")?);
    Ok(password)
}

async fn start_catalog(stack: &mut Stack, state: &Path, ports: &Ports, python: &Path) -> Result<()> {
    let data = state.join("sample");
    private_folder(&data)?;
    let mut command = Command::new(python);
    command
        .arg(repo().join("deploy/local/sample_catalog.py"))
        .arg("--data")
        .arg(&data)
        .args(["--port", &ports.catalog.port().to_string()]);
    let process = Process::start(&command, &state.join("sample-catalog.log"), None)?;
    let process = stack.catalog.insert(process);
    until_ready("the sample catalog", process, CATALOG_TIMEOUT, async || {
        let connected = TcpStream::connect(ports.catalog).await;
        connected.map(drop).map_err(|error| error.to_string())
    })
    .await
}

fn cluster_and_catalog(ports: &Ports) -> String {
    format!(
        r#"
[[clusters]]
name = "local"
engine = "sail"
client_versions = ["pyspark-client 4.1"]
process.program = "{sail}"

[[catalogs]]
name = "sample"
org = "{ORG}"
engine = "sail"
default_database = "default"
properties = {{ type = "iceberg-rest", uri = "http://{catalog}" }}
"#,
        sail = home().join("venv-sail/bin/sail").display(),
        catalog = ports.catalog,
    )
}

/// The service account, made at the first start and kept.
fn account(state: &Path) -> Result<Account> {
    let file = state.join("account.json");
    if !file.exists() {
        write_private(&file, &berth::new_account_key()?.to_string())?;
    }
    let made: Value = serde_json::from_slice(&std::fs::read(&file)?)
        .with_context(|| format!("{} is not JSON: remove it", file.display()))?;
    Ok(Account {
        name: USER.to_owned(),
        org: ORG.to_owned(),
        roles: ["member", "org-admin", "platform-admin"]
            .map(str::to_owned)
            .to_vec(),
        key: berth::text(&made, "key")?,
        key_sha256: berth::text(&made, "key_sha256")?,
    })
}

/// The password of Redis, made at the first start and kept.
fn password(state: &Path) -> Result<String> {
    let file = state.join("redis.password");
    if !file.exists() {
        let mut random = [0; 24];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        write_private(&file, &password)?;
    }
    let password = std::fs::read_to_string(&file)?.trim().to_owned();
    ensure!(
        !password.is_empty(),
        "{} is empty: remove it and {}",
        file.display(),
        state.join("redis").display()
    );
    Ok(password)
}

/// A folder that only this user can enter.
fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    Ok(std::fs::set_permissions(path, Permissions::from_mode(0o700))?)
}

/// The `berth` command at this stack.
struct Client {
    manager: String,
    issuer: String,
    console: String,
    key: String,
}

impl Client {
    /// Runs a command; killed with this program and after its time.
    async fn berth(&self, args: &[&str]) -> Result<Value> {
        let env = [
            ("BERTH_MANAGER", self.manager.as_str()),
            ("BERTH_ISSUER", self.issuer.as_str()),
            ("BERTH_KEY", self.key.as_str()),
        ];
        let command = berth::command(args, &env)?;
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(COMMAND_TIMEOUT, output).await;
        let output = output.with_context(|| format!("berth {} hangs", args.join(" ")))??;
        berth::json(&output)
    }

    /// A session and a connection string for it.
    async fn first_session(&self) -> Result<(String, String)> {
        // Sessions of an earlier run lost their compute with it.
        for old in self.berth(&["list"]).await?.as_array().into_iter().flatten() {
            self.berth(&["close", &berth::text(old, "id")?]).await?;
        }
        progress("berth session create --cluster local --catalog sample --wait");
        let create = ["create", "--cluster", "local", "--catalog", "sample"];
        let create = [&create[..], &["--name", "quickstart", "--wait"]].concat();
        let session = berth::text(&self.berth(&create).await?, "id")?;
        progress(&format!("berth token issue {session}"));
        let token = self.berth(&["token", &session, "--ttl", "12h"]).await?;
        Ok((session, berth::text(&token, "connection_url")?))
    }
}

/// Runs the sample query; the connection string is a secret, so it is no argument.
async fn query(python: &Path, url: &str) -> Result<()> {
    let query = tokio::process::Command::new(python)
        .arg(repo().join("deploy/local/hello.py"))
        .env("SPARK_REMOTE", url)
        .kill_on_drop(true)
        .status();
    let status = tokio::time::timeout(QUERY_TIMEOUT, query).await;
    ensure!(status.context("the query hangs")??.success(), "the query failed");
    Ok(())
}

/// One line about what happens now.
fn progress(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\x1b[1mberth:\x1b[0m {text}");
    } else {
        println!("berth: {text}");
    }
}

fn print_help(state: &Path, client: &Client, url: &str) -> Result<()> {
    let berth = local_stack::paths::binary("berth")?;
    println!(
        r#"
Berth is serving. The console in your browser:

  {console}

Sign in with your service-account key, which this prints:

  python3 -c 'import json; print(json.load(open("{state}/account.json"))["key"])'

Connect from a notebook (pip install 'pyspark-client==4.1.3' 'pandas<3'):

  from pyspark.sql import SparkSession
  spark = SparkSession.builder.remote("{url}").getOrCreate()
  spark.sql("SHOW TABLES").show()

More sessions and tokens from another terminal:

  export BERTH_KEY=$(cat {state}/account.json | python3 -c 'import json,sys; print(json.load(sys.stdin)["key"])')
  export BERTH_MANAGER={manager} BERTH_ISSUER={issuer}
  {berth} session list
  {berth} --help

The token is valid for 12 hours and for this session only. Ctrl-C stops everything."#,
        state = state.display(),
        console = client.console,
        manager = client.manager,
        issuer = client.issuer,
        berth = berth.display(),
    );
    Ok(())
}
