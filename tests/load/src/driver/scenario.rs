//! What is measured: one scenario gives values for one or more rows.

use super::peer::Kind;
use super::run::Run;
use super::{Rig, instructions};
use crate::protocol::{Job, Outcome};
use crate::wire::Method;
use anyhow::{Context as _, Result};

/// Sizes and times of a run.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How often each scenario is measured with each peer.
    pub rounds: usize,
    /// One measurement.
    pub millis: u64,
    /// Before it.
    pub warmup_ms: u64,
    /// Connections that are opened, one call on each.
    pub connects: usize,
    /// Connections that are kept open and idle.
    pub idle: usize,
    /// Those that are kept beside other load.
    pub idle_beside: usize,
    /// Routes in the proxy's book.
    pub routes: u64,
    /// Tokens that are each used once.
    pub tokens: u64,
    /// Bytes of the stream whose memory is looked at.
    pub stream_bytes: usize,
    /// Calls whose instructions are counted, in the shorter of two runs.
    pub counted_calls: usize,
}

impl Effort {
    /// `make load`: under five minutes.
    pub const NORMAL: Self = Self {
        rounds: 3,
        millis: 1000,
        warmup_ms: 200,
        connects: 250,
        idle: 1000,
        idle_beside: 2000,
        routes: 50_000,
        tokens: 8000,
        stream_bytes: 1 << 30,
        counted_calls: 2000,
    };

    /// `--long`, for nights.
    pub const LONG: Self = Self {
        rounds: 7,
        millis: 4000,
        warmup_ms: 500,
        connects: 2000,
        idle: 5000,
        idle_beside: 10_000,
        routes: 100_000,
        tokens: 40_000,
        stream_bytes: 4 << 30,
        counted_calls: 10_000,
    };

    /// A second of everything, for the test that the rig works.
    pub const SMOKE: Self = Self {
        rounds: 1,
        millis: 200,
        warmup_ms: 50,
        connects: 5,
        idle: 10,
        idle_beside: 10,
        routes: 50,
        tokens: 50,
        stream_bytes: 32 << 20,
        counted_calls: 20,
    };
}

/// A way to load a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// One connection, one call at a time.
    Latency,
    /// Four connections, sixteen calls at once on each.
    Saturate,
    /// A result in messages of 1 MiB.
    Download,
    /// An upload in messages of 1 MiB.
    Upload,
    /// An upload in messages of 32 KiB, PySpark's.
    UploadChunks,
    /// A result in messages of 1 KiB.
    SmallMessages,
    /// New TLS connections with one call on each.
    Connects,
    /// 1000 calls a second, whatever happens.
    Open,
    /// Memory: at rest, with idle connections, while streaming.
    Memory,
    /// Each call with a token that was never seen.
    NewTokens,
    /// 100 sessions over 10 backends.
    Sessions,
    /// Many routes known.
    Routes,
    /// Small calls beside a big download.
    Mixed,
    /// Load beside many idle connections.
    IdleBeside,
    /// Without TLS, against apache/spark-connect-gateway's figures.
    Plain,
    /// Instructions of a call, counted by valgrind.
    Instructions,
}

/// What one measurement says: row by row.
pub type Values = Vec<(&'static str, f64)>;

const MIB: usize = 1 << 20;

impl Scenario {
    /// Those that are measured only by name: slow, and with a program that other runs need not have.
    pub const BY_NAME: [Self; 1] = [Self::Instructions];

    /// All others, in order. Those that fill the proxy's tables come late.
    pub const ALL: [Self; 15] = [
        Self::Latency,
        Self::Saturate,
        Self::Download,
        Self::Upload,
        Self::UploadChunks,
        Self::SmallMessages,
        Self::Connects,
        Self::Open,
        Self::Mixed,
        Self::IdleBeside,
        Self::Plain,
        Self::Sessions,
        Self::NewTokens,
        Self::Routes,
        Self::Memory,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Saturate => "saturate",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::UploadChunks => "upload-chunks",
            Self::SmallMessages => "small-messages",
            Self::Connects => "connects",
            Self::Open => "open",
            Self::Memory => "memory",
            Self::NewTokens => "new-tokens",
            Self::Sessions => "sessions",
            Self::Routes => "routes",
            Self::Mixed => "mixed",
            Self::IdleBeside => "idle-beside",
            Self::Plain => "plain",
            Self::Instructions => "instructions",
        }
    }

    /// With whom it is measured.
    pub fn peers(self) -> &'static [Kind] {
        const THROUGH: [Kind; 4] = [Kind::Berth, Kind::Envoy, Kind::Nginx, Kind::Haproxy];
        const ALL: [Kind; 5] = [Kind::Direct, Kind::Berth, Kind::Envoy, Kind::Nginx, Kind::Haproxy];
        const WITH_VARIANTS: [Kind; 7] = [
            Kind::Direct,
            Kind::Berth,
            Kind::BerthOne,
            Kind::BerthTraced,
            Kind::Envoy,
            Kind::Nginx,
            Kind::Haproxy,
        ];
        match self {
            Self::Latency | Self::Saturate => &WITH_VARIANTS,
            Self::Download | Self::Upload | Self::UploadChunks | Self::SmallMessages | Self::Open => &ALL,
            Self::Connects | Self::Memory => &THROUGH,
            Self::NewTokens | Self::Sessions | Self::Routes | Self::Mixed | Self::IdleBeside => {
                &[Kind::Berth]
            }
            Self::Plain => &[Kind::BerthPlain],
            Self::Instructions => &[Kind::Berth, Kind::BerthTraced],
        }
    }

    /// How often it is measured: what restarts its peer is not repeated as often.
    pub fn rounds(self, effort: &Effort) -> usize {
        match self {
            Self::Memory | Self::Routes => effort.rounds.div_ceil(3),
            _ => effort.rounds,
        }
    }

    /// Measures once.
    ///
    /// # Errors
    /// When a process is gone. Wrong answers are written down in the rig.
    pub async fn measure(self, rig: &mut Rig, kind: Kind, effort: &Effort) -> Result<Values> {
        let what = format!("{} through {}", self.name(), kind.name());
        let mut run = Run::new(rig, kind, effort, what).await?;
        match self {
            Self::Latency => {
                let got = run.calls(1, 1).await?;
                Ok(vec![("lat_p50", got.p50), ("lat_p99", got.p99)])
            }
            Self::Saturate => {
                let got = run.calls(4, 16).await?;
                let calls = got.calls as f64;
                let micros = |place: usize| got.cpu.get(place).map(|cpu| cpu * 1e6 / calls);
                let mut values = vec![("sat_calls", calls / got.seconds / 1e3)];
                values.extend(
                    micros(0)
                        .filter(|_| kind != Kind::Direct)
                        .map(|cpu| ("sat_cpu", cpu)),
                );
                values.extend(micros(1).map(|cpu| ("sat_generator_cpu", cpu)));
                values.extend(micros(2).map(|cpu| ("sat_backend_cpu", cpu)));
                Ok(values)
            }
            Self::Download => {
                let got = run.stream(Method::Execute, MIB, 64).await?;
                Ok(run.bulk(&got, "down_mb", "down_cpu"))
            }
            Self::Upload => {
                let got = run.stream(Method::AddArtifacts, MIB, 64).await?;
                Ok(run.bulk(&got, "up_mb", "up_cpu"))
            }
            Self::UploadChunks => {
                let got = run.stream(Method::AddArtifacts, 32 << 10, 2048).await?;
                Ok(run.bulk(&got, "chunks_mb", "chunks_cpu"))
            }
            Self::SmallMessages => {
                let got = run.stream(Method::Execute, 1 << 10, 20_000).await?;
                let messages = got.bytes as f64 / 1024.0;
                let mut values = vec![("small_rate", messages / got.seconds / 1e3)];
                values.extend(run.proxy_cpu(&got).map(|cpu| ("small_cpu", cpu * 1e6 / messages)));
                Ok(values)
            }
            Self::Connects => {
                let job = Job::Connects {
                    target: run.target.clone(),
                    caller: run.caller.clone(),
                    count: effort.connects,
                    watch: run.watch.clone(),
                };
                let got = run.rig.load(&run.what, &job).await?;
                let cpu = run.proxy_cpu(&got).context("no process is watched")?;
                Ok(vec![("connect_cpu", cpu * 1e6 / got.calls as f64)])
            }
            Self::Open => {
                let job = Job::Open {
                    target: run.target.clone(),
                    caller: run.caller.clone(),
                    rate: 1000,
                    connections: 2,
                    warmup_ms: effort.warmup_ms,
                    millis: effort.millis * 3 / 2,
                    watch: run.watch.clone(),
                };
                let got = run.rig.load(&run.what, &job).await?;
                Ok(vec![("open_p50", got.p50), ("open_p99", got.p99)])
            }
            Self::Memory => run.memory().await,
            Self::Instructions => instructions::measure(run.rig, kind, effort).await,
            Self::NewTokens => run.new_tokens().await,
            Self::Sessions => run.sessions().await,
            Self::Routes => run.routes().await,
            Self::Mixed => run.mixed().await,
            Self::IdleBeside => run.idle_beside().await,
            Self::Plain => {
                let calls = run.calls(4, 16).await?;
                let down = run.stream(Method::Execute, MIB, 64).await?;
                let up = run.stream(Method::AddArtifacts, MIB, 64).await?;
                let per = |got: &Outcome, unit: f64| run.proxy_cpu(got).unwrap_or(0.0) / unit;
                Ok(vec![
                    ("plain_cpu", per(&calls, calls.calls as f64) * 1e6),
                    ("plain_down", per(&down, down.bytes as f64) * 1e9),
                    ("plain_up", per(&up, up.bytes as f64) * 1e9),
                ])
            }
        }
    }
}
