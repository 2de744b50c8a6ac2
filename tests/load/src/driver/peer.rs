//! The proxies that are compared, each a process of its own that is ended by
//! its id.

use super::Kit;
use crate::proc;
use crate::protocol::Target;
use anyhow::{Context as _, Result, bail};
use local_stack::config::Tls;
use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use test_support::ports::free_port;

const START: Duration = Duration::from_secs(60);
/// For a drain, slowed by a tool that counts.
const END: Duration = Duration::from_secs(90);

/// What a load goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nothing: straight to the backend, plaintext.
    Direct,
    /// spark-proxy as it is shipped: one worker per core.
    Berth,
    /// spark-proxy with one worker.
    BerthOne,
    /// spark-proxy without TLS.
    BerthPlain,
    /// spark-proxy that exports traces to a collector, at the default sampling ratio.
    BerthTraced,
    /// Another build of spark-proxy (`--before`), beside [`Berth`](Self::Berth).
    BerthBefore,
    /// Envoy, one worker, tokens checked and cached.
    Envoy,
    /// nginx, one worker, no token check.
    Nginx,
    /// haproxy, one thread, no token check.
    Haproxy,
}

impl Kind {
    /// All of them, in the order of the table's columns.
    pub const ALL: [Self; 9] = [
        Self::Direct,
        Self::Berth,
        Self::BerthOne,
        Self::BerthPlain,
        Self::BerthTraced,
        Self::BerthBefore,
        Self::Envoy,
        Self::Nginx,
        Self::Haproxy,
    ];

    /// Its name on the command line and in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Berth => "berth",
            Self::BerthOne => "berth-1",
            Self::BerthPlain => "berth-plain",
            Self::BerthTraced => "berth-traced",
            Self::BerthBefore => "berth-before",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// Is it ours, so that the backend must find the right identity?
    pub fn is_berth(self) -> bool {
        match self {
            Self::Berth | Self::BerthOne | Self::BerthPlain | Self::BerthTraced | Self::BerthBefore => true,
            Self::Direct | Self::Envoy | Self::Nginx | Self::Haproxy => false,
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let known: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
                format!("known are {}", known.join(", "))
            })
    }
}

/// A proxy that runs.
#[derive(Debug)]
pub struct Peer {
    /// Which.
    pub kind: Kind,
    /// Where, and how, it is called.
    pub target: Target,
    /// Its processes.
    pub pids: Vec<u32>,
    process: Option<Process>,
    _collector: Option<Collector>,
}

/// A real OpenTelemetry collector, `rotel`, which receives spans and drops them.
#[derive(Debug)]
struct Collector {
    endpoint: String,
    _process: Process,
}

impl Collector {
    async fn start(kit: &Kit) -> Result<Self> {
        let lib = kit.home.join("venv-rotel/lib");
        let pythons = std::fs::read_dir(&lib).into_iter().flatten().flatten();
        // The agent inside the Python package, whose command needs a terminal.
        let agent = pythons
            .map(|python| python.path().join("site-packages/rotel/rotel-agent"))
            .find(|agent| agent.is_file());
        let program = installed(&agent.unwrap_or_else(|| lib.join("rotel-agent")))?;
        let (grpc, http) = (free_port()?, free_port()?);
        let log = kit.dir.join("collector.log");
        let words = [
            program.as_str(),
            "start",
            "--otlp-grpc-endpoint",
            &grpc.to_string(),
            "--otlp-http-endpoint",
            &http.to_string(),
            "--exporter",
            "blackhole",
        ]
        .map(str::to_owned);
        let mut process = Process::start(&words, Stdio::null(), File::create(&log)?)?;
        process.listening("the collector", grpc, &log).await?;
        Ok(Self {
            endpoint: format!("http://{grpc}"),
            _process: process,
        })
    }
}

impl Peer {
    /// Starts it and waits until its port is open.
    ///
    /// # Errors
    /// When it is not installed or does not start; with the end of its log.
    pub async fn start(kind: Kind, kit: &Kit) -> Result<Self> {
        Self::start_under(kind, kit, &[]).await
    }

    /// The same as the program that the words of `wrapper` start.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_under(kind: Kind, kit: &Kit, wrapper: &[String]) -> Result<Self> {
        if kind == Kind::Direct {
            let target = Target {
                address: kit.backend.open,
                ca: None,
                anonymous: true,
            };
            return Ok(Self {
                kind,
                target,
                pids: Vec::new(),
                process: None,
                _collector: None,
            });
        }
        let collector = match kind {
            Kind::BerthTraced => Some(Collector::start(kit).await?),
            _ => None,
        };
        let address = free_port()?;
        let log = kit.dir.join(format!("{}.log", kind.name()));
        let words = [wrapper, &command(kind, kit, address, collector.as_ref())?].concat();
        let mut process = Process::start(&words, Stdio::null(), File::create(&log)?)?;
        process.listening(kind.name(), address, &log).await?;
        Ok(Self {
            kind,
            target: Target {
                address,
                ca: (kind != Kind::BerthPlain).then(|| kit.dir.join("ca.pem")),
                anonymous: false,
            },
            pids: vec![process.child.id()],
            process: Some(process),
            _collector: collector,
        })
    }

    /// Ends it. Says how much CPU time it took in its life.
    pub fn stop(self) -> f64 {
        let spent = proc::cpu_seconds(&self.pids).unwrap_or(0.0);
        drop(self.process);
        spent
    }

    /// Lets it end in order, which a tool that reports at the end needs.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn end(self) -> Result<()> {
        match self.process {
            Some(mut process) => process.end(self.kind.name()).await,
            None => Ok(()),
        }
    }
}

/// A child process; killed by its id when dropped, and when the driver dies.
#[derive(Debug)]
pub struct Process {
    /// The child.
    pub child: Child,
}

impl Process {
    /// Starts `words[0]` with the rest as its arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(words: &[String], stdin: Stdio, stderr: File) -> Result<Self> {
        Self::start_with(words, stdin, stderr.try_clone()?.into(), stderr)
    }

    /// The same, with another standard output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with(words: &[String], stdin: Stdio, stdout: Stdio, stderr: File) -> Result<Self> {
        let mut command = match Path::new("/usr/bin/setpriv").exists() {
            true => {
                // Keeps the process id and ends the child with us, even by SIGKILL.
                let mut command = Command::new("/usr/bin/setpriv");
                command.args(["--pdeathsig", "KILL", "--"]).arg(&words[0]);
                command
            }
            false => Command::new(&words[0]),
        };
        let child = command
            .args(&words[1..])
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("starting {}", words[0]))?;
        Ok(Self { child })
    }

    /// Asks it to end, and waits until it has.
    async fn end(&mut self, name: &str) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).context("its id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > END {
                bail!("{name} did not end within {} s", END.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until `address` accepts connections.
    async fn listening(&mut self, name: &str, address: SocketAddr, log: &Path) -> Result<()> {
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || began.elapsed() > START {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let end = log.lines().rev().take(15).collect::<Vec<_>>();
                let end: Vec<&str> = end.into_iter().rev().collect();
                bail!(
                    "{name} does not start ({ended:?}); its log ends:\n{}",
                    end.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // By its id; none of them starts others.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line, its configuration file written.
fn command(kind: Kind, kit: &Kit, address: SocketAddr, collector: Option<&Collector>) -> Result<Vec<String>> {
    let file = |suffix: &str| kit.dir.join(format!("{}.{suffix}", kind.name()));
    let write = |suffix: &str, text: &str| {
        let file = file(suffix);
        std::fs::write(&file, text)?;
        anyhow::Ok(file.display().to_string())
    };
    let words: Vec<String> = match kind {
        Kind::Direct => bail!("there is no program between"),
        Kind::Berth | Kind::BerthOne | Kind::BerthPlain | Kind::BerthTraced | Kind::BerthBefore => {
            let mut config = berth_config(kind, kit, address);
            if let Some(collector) = collector {
                writeln!(config, "telemetry.otlp_endpoint = \"{}\"", collector.endpoint)?;
            }
            let config = write("toml", &config)?;
            let program = match kind {
                Kind::BerthBefore => kit.before.as_ref().context("berth-before needs --before PATH")?,
                _ => &kit.proxy,
            };
            vec![program.display().to_string(), "--config".to_owned(), config]
        }
        Kind::Envoy => {
            let config = write("yaml", &kit.fill(include_str!("../../peers/envoy.yaml"), address))?;
            let program = installed(&kit.home.join("venv-load/bin/envoy"))?;
            [
                &program,
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "error",
                "-c",
                &config,
            ]
            .map(str::to_owned)
            .to_vec()
        }
        Kind::Nginx => {
            let config = write("conf", &kit.fill(include_str!("../../peers/nginx.conf"), address))?;
            let program = installed(Path::new("/usr/sbin/nginx"))?;
            let prefix = kit.dir.display().to_string();
            [&program, "-p", &prefix, "-e", "stderr", "-c", &config]
                .map(str::to_owned)
                .to_vec()
        }
        Kind::Haproxy => {
            let config = write("cfg", &kit.fill(include_str!("../../peers/haproxy.cfg"), address))?;
            let program = installed(Path::new("/usr/sbin/haproxy"))?;
            [&program, "-db", "-f", &config].map(str::to_owned).to_vec()
        }
    };
    Ok(words)
}

fn installed(program: &Path) -> Result<String> {
    if !program.exists() {
        bail!(
            "{} is missing: run `deploy/local/setup.sh load` (`make load` does), or leave it out with --peers",
            program.display()
        );
    }
    Ok(program.display().to_string())
}

fn berth_config(kind: Kind, kit: &Kit, address: SocketAddr) -> String {
    let workers = if kind == Kind::BerthOne { 1 } else { 0 };
    let more = format!(
        "tokens.issuer = \"{}\"\ntokens.audience = \"{}\"\nlisten.workers = {workers}\n\
         limits.connections = 20000\nlimits.connections_per_address = 0\n\
         limits.calls_per_second_per_org = 10000000\n",
        crate::callers::ISSUER,
        crate::callers::AUDIENCE,
    );
    let config = local_stack::config::Proxy {
        address,
        admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        keys: &kit.dir.join("jwks.json").display().to_string(),
        manager_uri: &kit.manager,
        tls: if kind == Kind::BerthPlain {
            Tls::Off
        } else {
            Tls::Required
        },
        certificates: &kit.dir,
        more: &more,
    };
    config.toml()
}

impl Kit {
    /// A template with its words filled in.
    fn fill(&self, template: &str, address: SocketAddr) -> String {
        template
            .replace("@PORT@", &address.port().to_string())
            .replace("@BACKEND@", &self.backend.open.port().to_string())
            .replace("@DIR@", &self.dir.display().to_string())
            .replace("@ISSUER@", crate::callers::ISSUER)
            .replace("@AUDIENCE@", crate::callers::AUDIENCE)
            .replace("@SESSION@", crate::callers::session(0).as_str())
    }
}
