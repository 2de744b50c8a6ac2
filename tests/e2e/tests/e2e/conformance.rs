//! Test suites of other projects end alike direct to the engine and through Berth, test by test.
//!
//! `tests/conformance/suites.toml` has the suites, `differences.toml` what differs and why. `make
//! conformance` runs them (SELECT="go spark-3.5" ENGINES=sail choose) and writes what it saw to
//! docs/clients.md; `make test` runs a part.

mod outcome;
mod page;
mod place;
mod runner;
mod suites;

use anyhow::{Result, ensure};
use e2e::{Engine, Stack, StackOptions, Tls};
use outcome::{Comparison, Run, Seen, differing};
use page::Row;
use place::Place;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use suites::{Differences, Suite};

/// A test that differs is run again, both ways, so often before it counts.
const RERUNS: usize = 2;

/// A suite on one engine.
struct Trial<'s> {
    suite: &'s Suite,
    engine: Engine,
    stack: Stack,
}

impl<'s> Trial<'s> {
    async fn start(suite: &'s Suite, engine: Engine) -> Result<Self> {
        let options = StackOptions {
            tls: Tls::Auto,
            ..StackOptions::default()
        };
        Ok(Self {
            suite,
            engine,
            stack: Stack::start_with(options).await?,
        })
    }

    async fn run(&self, way: &str, place: Place, only: Option<&BTreeSet<String>>) -> Result<Run> {
        let begun = Instant::now();
        let run = runner::run(self.suite, self.engine, &place, only).await?;
        println!(
            "{} {} on {}, {way}: {} ({:.0} s)",
            self.suite.title,
            run.release,
            self.engine.title(),
            run.summary(),
            begun.elapsed().as_secs_f64()
        );
        place.end(&self.stack)?;
        Ok(run)
    }

    async fn direct(&self, only: Option<&BTreeSet<String>>) -> Result<Run> {
        let place = Place::direct(self.suite, self.engine).await?;
        self.run("direct", place, only).await
    }

    async fn berth(&self, only: Option<&BTreeSet<String>>) -> Result<Run> {
        let place = Place::berth(self.suite, self.engine, &self.stack).await?;
        self.run("through Berth", place, only).await
    }

    async fn calls_seen(&self) -> Result<u64> {
        let metrics = self.stack.proxy.admin("/metrics").await?;
        let opened = |line: &str| line.strip_prefix("spark_proxy_calls_opened_total ")?.parse().ok();
        Ok(metrics.lines().find_map(opened).unwrap_or_default())
    }

    /// Leaves in `differing_tests` those that never ended through Berth as they did direct; returns how
    /// many others there were.
    async fn run_again(&self, differing_tests: &mut BTreeMap<String, Comparison>) -> Result<usize> {
        let before = differing_tests.len();
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        for (id, Comparison { direct, berth }) in &*differing_tests {
            seen.entry(id.clone())
                .or_default()
                .add(direct.as_ref(), berth.as_ref());
        }
        for _ in 0..RERUNS {
            if differing_tests.is_empty() {
                break;
            }
            let only: BTreeSet<String> = differing_tests.keys().cloned().collect();
            let direct = self.direct(Some(&only)).await?;
            let berth = self.berth(Some(&only)).await?;
            for (id, seen) in &mut seen {
                seen.add(direct.outcomes.get(id), berth.outcomes.get(id));
            }
            differing_tests.retain(|id, _| seen.get(id).is_some_and(Seen::always_differs));
        }
        Ok(before - differing_tests.len())
    }

    /// Runs the suite both ways and compares. The failure is what is not as the lists have it.
    async fn judge(&self, differences: &Differences) -> Result<Row> {
        let Self { suite, engine, .. } = self;
        let direct = self.direct(None).await?;
        let berth = self.berth(None).await?;
        let calls = self.calls_seen().await?;
        let mut unlisted = differing(&direct, &berth);
        let (listed, unused) = differences.take_listed(suite, *engine, &mut unlisted);
        for (id, comparison) in &unlisted {
            println!("  differs: {id}{comparison}");
        }
        let flaky = self.run_again(&mut unlisted).await?;
        let row = Row::new(self, &direct, &listed, flaky, calls);
        let which = format!("{} on {}", suite.name, engine.cluster());
        let shown: Vec<String> = unlisted
            .iter()
            .map(|(id, comparison)| format!("{id}{comparison}"))
            .collect();
        ensure!(
            shown.is_empty(),
            "{which}: {} tests differ:\n  {}",
            shown.len(),
            shown.join("\n  ")
        );
        ensure!(
            unused.is_empty(),
            "{which}: listed and no longer different: {unused:?}"
        );
        row.reaches(suite.floor(*engine), &which)?;
        Ok(row)
    }
}

/// The words of an environment variable; none when it is not set.
fn chosen(variable: &str) -> Vec<String> {
    let words = std::env::var(variable).unwrap_or_default();
    words.split_whitespace().map(ToOwned::to_owned).collect()
}

/// Runs suites one after the other: the machine is theirs, or their limits would be meaningless.
async fn run_all(suites: &[&Suite], engines: &[Engine]) -> Result<Vec<Row>> {
    let differences = Differences::read()?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for suite in suites {
        for engine in engines {
            if suite.floor(*engine).is_none() {
                continue;
            }
            let trial = Trial::start(suite, *engine).await?;
            match trial.judge(&differences).await {
                Ok(row) => {
                    println!("{row}");
                    rows.push(row);
                }
                Err(error) => {
                    println!("FAILED {error:#}");
                    failed.push(format!("{error:#}"));
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(rows)
}

/// The lists can be read, and name suites that exist.
#[test]
fn lists_are_sound() -> Result<()> {
    let suites = Suite::all()?;
    let names: BTreeSet<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
    ensure!(names.len() == suites.len(), "two suites have the same name");
    Differences::read()?.concern_only(&suites)
}

/// Those parts of suites that fit into `make test`.
#[tokio::test]
async fn parts_agree() -> Result<()> {
    let all = Suite::all()?;
    let parts: Vec<&Suite> = all.iter().filter(|suite| suite.in_make_test).collect();
    ensure!(!parts.is_empty(), "no suite is marked in_make_test");
    run_all(&parts, &[Engine::Sail]).await?;
    Ok(())
}

/// All suites, or those that `SELECT` names.
#[tokio::test]
#[ignore = "make conformance runs it: an hour"]
async fn suites_agree() -> Result<()> {
    let (select, engines) = (chosen("SELECT"), chosen("ENGINES"));
    let all = Suite::all()?;
    let wanted = |suite: &&Suite| match select.is_empty() {
        true => !suite.in_make_test,
        false => select.contains(&suite.name),
    };
    let suites: Vec<&Suite> = all.iter().filter(wanted).collect();
    ensure!(
        !suites.is_empty() && (select.is_empty() || suites.len() == select.len()),
        "SELECT={select:?} names a suite that tests/conformance/suites.toml has not"
    );
    let engines: Vec<Engine> = [Engine::Sail, Engine::Spark]
        .into_iter()
        .filter(|engine| engines.is_empty() || engines.iter().any(|name| name == engine.cluster()))
        .collect();
    let rows = run_all(&suites, &engines).await?;
    let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
    page::TABLE.write(&lines, select.is_empty() && engines.len() == 2)
}
