//! Options, and what this process is: the driver, the backend or the generator.

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use load::driver::peer::Kind;
use load::driver::report::Results;
use load::driver::scenario::{Effort, Scenario};
use load::driver::{Rig, noise};
use local_stack::paths::{binary, home, repo};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Berth's data path beside a direct connection, Envoy, nginx and haproxy.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Only these scenarios, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these peers, by name.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Kind>,
    /// How often each is measured.
    #[arg(long)]
    rounds: Option<usize>,
    /// Longer, with more of everything: for nights.
    #[arg(long)]
    long: bool,
    /// The least that shows that all works; its figures mean nothing.
    #[arg(long, conflicts_with = "long")]
    smoke: bool,
    /// The spark-proxy to measure, if not the one beside this program.
    #[arg(long)]
    proxy: Option<PathBuf>,
    /// Another build of spark-proxy to measure beside it, interleaved.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Where the results go.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Role {
    /// The fake Spark Connect server (the driver starts it).
    Backend {
        /// Ports that look for the right identity in every message.
        #[arg(long)]
        asserting: usize,
        /// Threads.
        #[arg(long)]
        threads: usize,
    },
    /// The load generator (the driver starts it).
    Generate,
}

fn main() -> Result<()> {
    let options = Options::parse();
    match options.role {
        Some(Role::Backend { asserting, threads }) => load::backend::run(asserting, threads),
        Some(Role::Generate) => load::generate::run(),
        None => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(drive(options)),
    }
}

async fn drive(options: Options) -> Result<()> {
    let effort = Effort {
        rounds: options.rounds.unwrap_or(options.effort().rounds).max(1),
        ..options.effort()
    };
    let scenarios = chosen(&options.only)?;
    let proxy = options.proxy.map_or_else(|| binary("spark-proxy"), Ok)?;
    let began = Instant::now();
    let noise_before = noise::at_rest().await?;
    let mut rig = Rig::start(&std::env::current_exe()?, proxy, home()).await?;
    rig.kit.before = options.before.clone();
    let watch = noise::Watch::start(&rig)?;

    for kind in [Kind::Berth, Kind::Envoy] {
        let is_measured = scenarios.iter().any(|scenario| scenario.peers().contains(&kind));
        if is_measured && (options.peers.is_empty() || options.peers.contains(&kind)) {
            rig.prove_refusal(kind).await?;
        }
    }
    let mut results = Results::default();
    let beside_berth = options.before.is_some().then_some(Kind::BerthBefore);
    for scenario in scenarios {
        let kinds: Vec<Kind> = scenario
            .peers()
            .iter()
            .copied()
            .chain(beside_berth.filter(|_| scenario.peers().contains(&Kind::Berth)))
            .filter(|kind| options.peers.is_empty() || options.peers.contains(kind))
            .collect();
        for round in 0..scenario.rounds(&effort) {
            // Turns change, so that drift of the machine favours nobody.
            for place in 0..kinds.len() {
                let kind = kinds[(place + round) % kinds.len()];
                for (row, value) in scenario.measure(&mut rig, kind, &effort).await? {
                    results.add(row, kind, value);
                }
            }
        }
        if !kinds.is_empty() {
            eprintln!(
                "load: {:<16} done at {:>3} s",
                scenario.name(),
                began.elapsed().as_secs()
            );
        }
    }

    let counts = rig.counts().await?;
    if counts.strangers + counts.broken > 0 {
        rig.wrong.push(format!(
            "the backend got {} messages with a wrong identity and {} calls that made no sense",
            counts.strangers, counts.broken
        ));
    }
    let others = watch.others(&rig)?;
    let (kept, missed) = results.musts();
    print!("\n{}", results.table());
    println!(
        "\nidentity: {} request messages through Berth looked at, {} wrong",
        counts.messages, counts.strangers
    );
    println!(
        "machine: {} cores, busy {:.0} % before the run, others took {:.0} % of it during the run",
        noise::cores(),
        noise_before,
        others
    );
    println!(
        "musts: {kept} kept, {} missed; {} s in all",
        missed.len(),
        began.elapsed().as_secs()
    );
    let out = options
        .out
        .unwrap_or_else(|| repo().join("target/bench/load.json"));
    let json = json!({
        "what": "Berth's data path beside others, interleaved",
        "rounds": effort.rounds, "millis": effort.millis, "seconds": began.elapsed().as_secs(),
        "noise": {"busy_before_percent": noise_before, "others_during_percent": others},
        "versions": versions(&rig), "cores": noise::cores(), "cpu": noise::cpu_model(),
        "identity": {"messages": counts.messages, "wrong": counts.strangers},
        "rows": results.json(), "missed": missed, "wrong": rig.wrong,
    });
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&out, format!("{json:#}\n"))?;
    if !rig.wrong.is_empty() {
        bail!("wrong answers:\n  {}", rig.wrong.join("\n  "));
    }
    Ok(())
}

impl Options {
    fn effort(&self) -> Effort {
        match (self.long, self.smoke) {
            (true, _) => Effort::LONG,
            (_, true) => Effort::SMOKE,
            (false, false) => Effort::NORMAL,
        }
    }
}

fn chosen(names: &[String]) -> Result<Vec<Scenario>> {
    if names.is_empty() {
        return Ok(Scenario::ALL.to_vec());
    }
    let find = |name: &String| {
        let all = || Scenario::ALL.into_iter().chain(Scenario::BY_NAME);
        let found = all().find(|scenario| scenario.name() == name);
        found.with_context(|| {
            let known: Vec<&str> = all().map(Scenario::name).collect();
            format!("no scenario {name:?}; known are {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

/// What each program says of itself.
fn versions(rig: &Rig) -> Value {
    let says = |program: &Path, flag: &str| {
        let output = std::process::Command::new(program).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| !line.trim().is_empty())?;
        Some(line.trim().to_owned())
    };
    json!({
        "berth": says(&rig.kit.proxy, "--version"),
        "envoy": says(&rig.kit.home.join("venv-load/bin/envoy"), "--version"),
        "nginx": says(Path::new("/usr/sbin/nginx"), "-v"),
        "haproxy": says(Path::new("/usr/sbin/haproxy"), "-v"),
    })
}
