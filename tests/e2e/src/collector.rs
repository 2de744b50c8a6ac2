//! A real OpenTelemetry collector: `rotel`, which prints the spans it receives.

use anyhow::{Context as _, Result, ensure};
use local_stack::paths::home;
use local_stack::wait::until;
use local_stack::{Process, until_ready};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use test_support::ports::free_ports;

const READY: Duration = Duration::from_secs(30);
const ARRIVAL: Duration = Duration::from_secs(30);

/// A collector; it ends when dropped.
#[derive(Debug)]
pub struct Collector {
    _process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl Collector {
    /// Starts one and waits until it accepts connections.
    ///
    /// # Errors
    /// When it is not installed or does not start in time.
    pub async fn start() -> Result<Self> {
        let program = program()?;
        let dir = tempfile::tempdir()?;
        let [grpc, http] = free_ports()?;
        let mut command = Command::new(program);
        command
            .arg("start")
            .args(["--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-http-endpoint", &http.to_string()])
            .args(["--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .current_dir(dir.path());
        let process = Process::start(&command, &dir.path().join("spans"), Some(dir.path()))?;
        until_ready("the collector", &process, READY, async || {
            let connected = tokio::net::TcpStream::connect(grpc).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(Self {
            _process: process,
            address: grpc,
            dir,
        })
    }

    /// Its OTLP endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything it printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("spans")).unwrap_or_default()
    }

    /// The spans received, once `enough` of them have arrived.
    ///
    /// # Errors
    /// When they do not arrive in time.
    pub async fn spans(&self, enough: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        until("the spans", ARRIVAL, async || {
            let spans = parse(&self.output());
            if enough(&spans) {
                Ok(spans)
            } else {
                Err(format!("{} spans: {spans:#?}", spans.len()))
            }
        })
        .await
    }
}

/// One span as the collector received it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// The trace it belongs to, in hexadecimal digits.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// The id of the span above it; empty if there is none.
    pub parent: String,
}

fn parse(output: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for line in output.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim().to_owned();
        match (key.trim(), spans.last_mut()) {
            ("Trace ID", _) => spans.push(Span {
                trace: value,
                ..Span::default()
            }),
            ("Parent ID", Some(span)) => span.parent = value,
            ("ID", Some(span)) => span.id = value,
            ("Name", Some(span)) if span.name.is_empty() => span.name = value,
            _ => {}
        }
    }
    spans
}

/// The agent inside the Python package, whose command needs a terminal.
fn program() -> Result<PathBuf> {
    let lib = home().join("venv-rotel/lib");
    let pythons = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let found = pythons
        .map(|python| python.path().join("site-packages/rotel/rotel-agent"))
        .find(|agent| agent.is_file());
    ensure!(
        found.is_some(),
        "the collector is missing: run `deploy/local/setup.sh test` (make test does)"
    );
    found.context("rotel-agent")
}
