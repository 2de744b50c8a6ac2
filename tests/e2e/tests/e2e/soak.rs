//! Clients of all kinds for hours, while keys rotate and every service is restarted again and again:
//! no call fails that a client sees, and nothing grows.
//!
//! `make soak HOURS=0.5`. In the first part of the time services restart and keys rotate, 20 times
//! each; in the rest nothing restarts, and what each process holds must have a slope of zero.

mod api;
mod people;
mod rig;
mod sample;
mod tally;

use anyhow::{Context as _, Result, ensure};
use api::Places;
use e2e::{Client, Forwarder, repo};
use rig::Rig;
use sample::Samples;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;
use tokio::task::{JoinSet, LocalSet};

const CALLERS: u32 = 24;
const STREAMS: usize = 3;
const LIVES: usize = 2;
const IDLE: usize = 20;
/// The owners of the sessions.
const PEOPLE: [&str; 3] = ["ada", "bob", "olga"];
/// A key signs after so long.
const BEFORE_SIGNING: Duration = Duration::from_secs(95);

/// How long, and how often what.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Restarts and rotations.
    restless: Duration,
    /// Nothing but load.
    calm: Duration,
    rounds: u32,
    rotations: u32,
    /// Small calls a second.
    rate: f64,
    /// A long result takes at least so long.
    stream: Duration,
    /// Between two calls of an idle connection.
    idle: Duration,
    sample: Duration,
}

impl Plan {
    fn of(time: Duration, rounds: u32, rate: f64) -> Self {
        let restless = time.mul_f64(0.65);
        Self {
            restless,
            calm: time - restless,
            rounds,
            // A folder has at most 32 keys.
            rotations: rounds.min(30),
            rate,
            // A proxy waits for it when it restarts.
            stream: (restless / rounds.max(1) / 8).min(Duration::from_secs(60)),
            idle: Duration::from_secs(50),
            sample: (time / 300).max(Duration::from_secs(2)),
        }
    }
}

fn number(variable: &str, default: f64) -> Result<f64> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} must be a number")),
        Err(_) => Ok(default),
    }
}

/// Starts all clients.
async fn start_people(rig: &Rig, tally: &Arc<Tally>, people: &mut JoinSet<Result<()>>) -> Result<Forwarder> {
    let owner = |n: usize| Places::of(rig, PEOPLE[n % PEOPLE.len()]);
    for n in 0..CALLERS {
        let rate = tally.plan.rate / f64::from(CALLERS);
        people.spawn_local(people::calls(Arc::clone(tally), owner(n as usize)?, rate));
    }
    for n in 0..STREAMS {
        people.spawn_local(people::streams(Arc::clone(tally), owner(n)?));
    }
    for n in 0..LIVES {
        people.spawn_local(people::lives(Arc::clone(tally), owner(n)?));
    }
    for n in 0..IDLE {
        people.spawn_local(people::idle(Arc::clone(tally), owner(n)?));
    }
    let (console, key) = (rig.balancers.consoles.address, rig.stack.key_of("olga"));
    people.spawn_local(people::reads(Arc::clone(tally), console, key.to_owned()));
    let direct = people::Way::Direct {
        places: owner(0)?,
        ca: rig.stack.ca().context("no authority")?.to_owned(),
    };
    let dir = rig.stack.dir.path();
    people.spawn_local(people::notebook(
        Arc::clone(tally),
        Client::Py41,
        dir.join("notebook"),
        direct,
    ));
    let created = rig
        .stack
        .berth("bob", &["create", "--wait", "--cluster", "shared"])?;
    let session = local_stack::berth::text(&created, "id")?;
    let forwarder = Forwarder::start(&rig.stack, "bob", &[&session, "--ttl", "120s"]).await?;
    let url = forwarder.url.clone();
    people.spawn_local(people::notebook(
        Arc::clone(tally),
        Client::Py43,
        dir.join("forwarded-notebook"),
        people::Way::Forwarded { url },
    ));
    Ok(forwarder)
}

/// Rolling restarts of every service; one at a time, each in order and ready before the next.
async fn restart_all(rig: &mut Rig, tally: &Tally, samples: &mut Samples) -> Result<()> {
    for n in 0..rig.services().len() {
        samples.take(tally.elapsed(), &rig.processes());
        let service = &mut rig.services()[n];
        let name = service.name();
        let ended = service
            .terminate()
            .await
            .with_context(|| format!("ending {name}"))?;
        if !ended.is_some_and(|status| status.success()) {
            tally.failed("a restart", &format!("{name} ended with {ended:?}"));
        }
        service.start_ready().await?;
        tally.did("restarts");
        tally.pause(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Restarts and rotations, then calm; samples all the time.
async fn live_through(rig: &mut Rig, tally: &Tally) -> Result<Samples> {
    let plan = tally.plan;
    let mut samples = Samples::default();
    let rotating = plan
        .restless
        .saturating_sub(BEFORE_SIGNING)
        .max(plan.restless / 2);
    let (mut rounds, mut rotations) = (0, 0);
    while tally.elapsed() < plan.restless || rounds < plan.rounds {
        if rotations < plan.rotations && tally.elapsed() >= rotating * rotations / plan.rotations {
            rig.keys.rotate()?;
            tally.did("rotations");
            rotations += 1;
        }
        if rounds < plan.rounds && tally.elapsed() >= plan.restless * rounds / plan.rounds {
            restart_all(rig, tally, &mut samples).await?;
            rounds += 1;
            println!(
                "after {:.0?}: {rounds} rounds of restarts, {}",
                tally.elapsed(),
                tally.summary()
            );
        }
        tally.pause(Duration::from_millis(500)).await;
    }
    let end = tally.elapsed() + plan.calm;
    while tally.elapsed() < end {
        samples.take(tally.elapsed(), &rig.processes());
        tally.pause(plan.sample).await;
    }
    Ok(samples)
}

async fn soak(plan: Plan) -> Result<()> {
    LocalSet::new().run_until(Box::pin(soak_here(plan))).await
}

async fn soak_here(plan: Plan) -> Result<()> {
    let mut rig = Rig::start().await?;
    let tally = Arc::new(Tally::new(plan));
    let mut people = JoinSet::new();
    let forwarder = start_people(&rig, &tally, &mut people).await?;
    let lived = live_through(&mut rig, &tally).await;
    let calm_from = tally.elapsed().saturating_sub(plan.calm);
    tally.end();
    while let Some(done) = people.join_next().await {
        done??;
    }
    drop(forwarder);
    let samples = lived?;
    let growths = samples.growths(calm_from);
    for growth in &growths {
        println!("{growth}");
    }
    println!("{:.0?}: {}", tally.elapsed(), tally.summary());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo().join("target"), PathBuf::from);
    samples.write(&target.join("soak.csv"))?;
    let failures = tally.failures();
    ensure!(
        failures.is_empty(),
        "{} failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(20)]
    );
    let most: Vec<String> = growths
        .iter()
        .filter(|growth| growth.too_much)
        .map(ToString::to_string)
        .collect();
    ensure!(most.is_empty(), "{most:#?}");
    if plan.restless >= BEFORE_SIGNING {
        let idle = rig.keys.unused(&tally.signed_by());
        ensure!(idle.is_empty(), "new keys that never signed: {idle:?}");
    }
    let wanted = plan.rate * (plan.restless + plan.calm).as_secs_f64();
    ensure!(
        tally.calls() as f64 >= wanted * 0.97,
        "{} calls of {wanted:.0}",
        tally.calls()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak runs it: for half an hour, or for HOURS"]
async fn hours() -> Result<()> {
    let time = Duration::from_secs_f64(number("HOURS", 0.5)? * 3600.0);
    // 10 million calls in 4 h.
    let rate = number("RATE", 700.0)?;
    soak(Plan::of(time, number("RESTARTS", 20.0)? as u32, rate)).await
}

/// One restart of everything and one rotation; too short for a slope.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_call() -> Result<()> {
    soak(Plan {
        stream: Duration::from_secs(4),
        idle: Duration::from_secs(10),
        calm: Duration::from_secs(5),
        restless: Duration::from_secs(30),
        ..Plan::of(Duration::from_secs(45), 1, 60.0)
    })
    .await
}
