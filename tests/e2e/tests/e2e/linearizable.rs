//! Histories of concurrent clients at two session-managers, two token-issuers and two proxies, on
//! Redis under Sentinel, while processes are killed and stopped, ways are cut, primaries change and
//! clocks jump. A checker that shares no code with Berth judges every history.
//!
//! `make linearizable` takes ROUNDS=10 of SECONDS_EACH=300 (SEED=n is the seed of the first). A
//! history with anomalies is kept in target/linearizable; `HISTORY=file` checks it again.

mod checker;
mod client;
mod clock;
mod dice;
mod history;
mod nemesis;
mod people;
mod rig;

use anyhow::{Context as _, Result, ensure};
use client::Recorder;
use e2e::{Engine, repo};
use history::{Call, History, Outcome};
use people::{Crowd, SHARED};
use rig::Rig;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, LocalSet};

/// Sessions that live at the same time, with three clients each.
const SESSIONS: u32 = 5;
const AUDITORS: usize = 8;
/// After the faults, so that proxies are judged by the short limit at the end.
const SETTLE: Duration = Duration::from_secs(18);

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} must be a number")),
        Err(_) => Ok(default),
    }
}

/// One round: a history, judged.
async fn round(seed: u64, time: Duration) -> Result<()> {
    let life = Box::pin(round_here(seed, time));
    LocalSet::new().run_until(life).await
}

async fn round_here(seed: u64, time: Duration) -> Result<()> {
    let mut rig = Rig::start().await?;
    let crowd = Arc::new(Crowd {
        recorder: Arc::new(Recorder::new()),
        places: rig.places()?,
        key: rig.stack.key_of("ada").to_owned(),
        seed,
        sessions: parking_lot::Mutex::default(),
        next: std::sync::atomic::AtomicU32::new(0),
    });
    let done = live_through(&mut rig, &crowd, time).await;
    let history = crowd.recorder.history();
    // Histories that do not come to their end are judged too.
    let judged = judge(&history, seed, &rig);
    done.context("the end of the round").and(judged)
}

/// Clients work while parts break, then everything must answer.
async fn live_through(rig: &mut Rig, crowd: &Arc<Crowd>, time: Duration) -> Result<()> {
    let mut people = JoinSet::new();
    for place in 0..SESSIONS {
        // Compute that can be lost, and replaced by another generation.
        let cluster = if place == 0 {
            Engine::Sail.cluster()
        } else {
            SHARED
        };
        people.spawn_local(Arc::clone(crowd).sessions_on(cluster, place));
    }
    people.spawn_local(Arc::clone(crowd).look_back(0));
    people.spawn_local(Arc::clone(crowd).look_back(1));
    let recorder = Arc::clone(&crowd.recorder);
    let ends = async {
        tokio::time::sleep(time).await;
        recorder.end();
        Ok(())
    };
    tokio::try_join!(nemesis::strike(rig, &recorder, crowd.seed), ends)?;
    while let Some(done) = people.join_next().await {
        done??;
    }
    tokio::time::sleep(SETTLE.min(time / 5)).await;
    let mut auditors = JoinSet::new();
    for part in 0..AUDITORS {
        auditors.spawn_local(Arc::clone(crowd).all_answer(part, AUDITORS));
    }
    while let Some(done) = auditors.join_next().await {
        done??;
    }
    Ok(())
}

/// Prints what was judged; keeps a history with anomalies, and the logs beside it.
fn judge(history: &History, seed: u64, rig: &Rig) -> Result<()> {
    let (anomalies, judged) = checker::check(history);
    let replaced =
        |event: &&history::Event| matches!(event.outcome, Outcome::Answered { generation } if generation > 1);
    let replaced = history.events.iter().filter(replaced).count();
    let losing = history.faults.iter().filter(|fault| fault.loses).count();
    println!(
        "SEED={seed}: {} calls on {} sessions ({}), {} faults, {losing} of them fail-overs; after an end or a \
         revocation {} calls judged by the short limit and {} by the long one; {replaced} answers of replaced \
         compute; fail-overs undid what they may on {} sessions; {} anomalies",
        judged.calls,
        judged.sessions,
        outcomes(history),
        history.faults.len(),
        judged.calm,
        judged.disturbed,
        judged.lossy,
        anomalies.len()
    );
    ensure!(!history.faults.is_empty(), "nothing broke");
    if anomalies.is_empty() && std::env::var_os("KEEP").is_none() {
        return Ok(());
    }
    let dir = kept(&format!("seed-{seed}"));
    history.write(&dir.join("history.jsonl"))?;
    for (name, log) in rig.logs() {
        std::fs::write(dir.join(format!("{name}.log")), log)?;
    }
    println!("kept: {}", dir.display());
    ensure!(anomalies.is_empty(), "{}", lines(&anomalies));
    Ok(())
}

fn lines(anomalies: &[checker::Anomaly]) -> String {
    let lines: Vec<String> = anomalies.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// How many calls of each kind told something.
fn outcomes(history: &History) -> String {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for event in &history.events {
        let name = match event.call {
            Call::Create { .. } => "create",
            Call::Describe => "describe",
            Call::Rename { .. } => "rename",
            Call::Close => "close",
            Call::Issue => "issue",
            Call::Revoke { .. } | Call::RevokeAll => "revoke",
            Call::Resolve { .. } => "resolve",
            Call::Spark { .. } => "spark",
        };
        let counted = counts.entry(name).or_default();
        counted.0 += usize::from(!matches!(event.outcome, Outcome::Unknown(_) | Outcome::Failed(_)));
        counted.1 += 1;
    }
    let words = counts
        .iter()
        .map(|(name, (told, all))| format!("{name} {told}/{all}"));
    words.collect::<Vec<_>>().join(", ")
}

fn kept(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo().join("target"), PathBuf::from);
    target.join("linearizable").join(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_history_has_an_order() -> Result<()> {
    round(number("SEED", 1)?, Duration::from_secs(15)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make linearizable runs it: most of an hour"]
async fn rounds() -> Result<()> {
    let (rounds, first) = (number("ROUNDS", 10)?, number("SEED", 1)?);
    let time = Duration::from_secs(number("SECONDS_EACH", 300)?);
    let mut failed = Vec::new();
    for seed in first..first + rounds {
        if let Err(error) = round(seed, time).await {
            println!("SEED={seed} failed: {error:#}");
            failed.push(seed);
        }
    }
    ensure!(failed.is_empty(), "rounds with anomalies: {failed:?}");
    println!("{rounds} rounds of {time:?} without anomalies");
    Ok(())
}

#[test]
#[ignore = "checks a history that was kept: HISTORY=target/linearizable/seed-1/history.jsonl"]
fn a_kept_history() -> Result<()> {
    let path = std::env::var("HISTORY").context("HISTORY names no file")?;
    let (anomalies, judged) = checker::check(&History::read(Path::new(&path))?);
    println!("{judged:#?}");
    ensure!(anomalies.is_empty(), "{}", lines(&anomalies));
    Ok(())
}
