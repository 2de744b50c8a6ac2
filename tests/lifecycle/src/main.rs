//! `make bench-lifecycle`: the life of sessions on a real Redis and real
//! engines, measured against docs/benchmarks.md's limits. Everything is on
//! loopback and bounded in number and time; a missed limit is printed, a wrong
//! answer is an error.

mod activity;
mod calls;
mod clocks;
mod engines;
mod instant;
mod rates;
mod rows;
mod seed;
mod stage;
mod weights;

use anyhow::Result;
use clap::Parser;
use rows::Rows;
use seed::Depth;
use serde_json::json;
use stage::Stage;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the life of sessions.
#[derive(Debug, Parser)]
struct Args {
    /// Live sessions of the rows that need many.
    #[arg(long, default_value_t = 100_000)]
    sessions: usize,
    /// Sessions of the memory row; 1000000 takes more than ten minutes.
    #[arg(long, default_value_t = 100_000)]
    stored: usize,
    /// Only these of clocks, creates, routes, activity, stored, wake, close.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often creates and routes are measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Be a manager: what the benchmark starts itself as.
    #[arg(long, hide = true)]
    manager: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(config) = &args.manager {
        return stage::be_a_manager(config).await;
    }
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let begun = Instant::now();
    let noise = idle_noise().await?;
    let mut rows = Rows::default();
    if wanted("clocks") {
        eprintln!("clocks: {} live sessions, 2 managers", args.sessions);
        clocks::measure(&Stage::set().await?, args.sessions, &mut rows).await?;
    }
    if wanted("creates") {
        eprintln!("creates");
        for _ in 0..args.rounds {
            let stage = Stage::set().await?;
            let manager = stage.manager().await?;
            rates::creates(&stage, &manager, &mut rows).await?;
        }
    }
    if wanted("routes") || wanted("activity") {
        eprintln!("routes and activity: {} active sessions", args.sessions);
        let stage = Stage::set().await?;
        let sessions = seed::sessions(&stage, args.sessions, Depth::Plain).await?;
        let manager = stage.manager().await?;
        // It compares all sessions with their compute when it starts.
        rates::settle(&manager).await?;
        if wanted("routes") {
            for _ in 0..args.rounds {
                rates::routes(&stage, &manager, &sessions, &mut rows).await?;
            }
        }
        if wanted("activity") {
            activity::measure(&stage, &manager, &sessions, &mut rows).await?;
        }
    }
    if wanted("stored") {
        eprintln!(
            "stored: {} sessions with five events, a token, a Spark session",
            args.stored
        );
        stored(args.stored, &mut rows).await?;
    }
    if wanted("wake") {
        eprintln!("wake: real Sail, some two minutes until its sessions are idle");
        engines::wake(&mut rows).await?;
    }
    if wanted("close") {
        eprintln!("close: real Sail, two proxies");
        engines::close(&mut rows).await?;
    }
    rows.print();
    let file = e2e::repo().join("target/bench");
    std::fs::create_dir_all(&file)?;
    let result = json!({
        "what": "the life of sessions, real Redis and engines on loopback",
        "sessions": args.sessions, "stored": args.stored, "rounds": args.rounds,
        "seconds": begun.elapsed().as_secs(),
        "busy_by_others_before": noise,
        "rows": rows.json(),
    });
    std::fs::write(file.join("lifecycle.json"), format!("{result:#}\n"))?;
    Ok(())
}

/// Kinds of keys whose length is bounded. A million sessions leave 65 bytes of
/// the 1610 that each may take for them.
const STREAMS: [&str; 2] = ["audit", "changes"];

/// Memory of many sessions, and what is as quick with them as without.
async fn stored(count: usize, rows: &mut Rows) -> Result<()> {
    let stage = Stage::set().await?;
    let before = stage.info("memory", "used_memory").await?;
    drop(seed::sessions(&stage, count, Depth::Full).await?);
    let used = stage.info("memory", "used_memory").await? - before;
    eprintln!("  bytes per session by kind of key, as Redis weighs them:");
    let mut streams = 0.0;
    for (kind, bytes) in weights::by_kind(&stage).await? {
        eprintln!("    {kind:<24}{:>8.0}", bytes / count as f64);
        if STREAMS.contains(&&*kind) {
            streams += bytes;
        }
    }
    rows.at_most(
        "Redis memory per session (1.5 GiB for a million)",
        "bytes",
        (used - streams) / count as f64,
        1545.0,
    );
    rows.tell(
        "streams, whatever the number of sessions",
        "MiB",
        streams / 1_048_576.0,
    );
    let manager = stage.manager().await?;
    rows.at_most(
        "start of a manager to ready",
        "s",
        manager.ready_after.as_secs_f64(),
        5.0,
    );
    rates::settle(&manager).await?;
    rates::lists(&stage, &manager, rows).await
}

/// How busy the machine is when nothing of ours runs, 0 to 1.
async fn idle_noise() -> Result<f64> {
    let read = || -> Result<[f64; 2]> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let idle = ticks.get(3).copied().unwrap_or_default() + ticks.get(4).copied().unwrap_or_default();
        Ok([idle, ticks.iter().sum()])
    };
    let before = read()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = read()?;
    Ok(1.0 - (after[0] - before[0]) / (after[1] - before[1]).max(1.0))
}
