//! Runs a suite, or some of its tests, at a place.

use super::outcome::{Outcome, Run, Verdict};
use super::place::Place;
use super::suites::{Pytest, Runner, Suite, matches};
use anyhow::{Context, Result, bail, ensure};
use e2e::{Engine, home, installed, repo};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Beyond a test's limit, for what the runner itself does.
const GRACE: Duration = Duration::from_secs(90);
/// A process that dies in a test is started again for the rest, so often.
const MAX_STARTS: usize = 20;
/// Lines of output that a failure shows.
const SHOWN_LINES: usize = 30;

/// Runs `only` of a suite, or all of it.
///
/// # Errors
/// When the suite itself cannot be run; a failed test is an outcome.
pub(super) async fn run(
    suite: &Suite,
    engine: Engine,
    place: &Place,
    only: Option<&BTreeSet<String>>,
) -> Result<Run> {
    let left_out = suite.left_out(engine);
    let mut run = match &suite.runner {
        Runner::Go { folder } => go(folder, suite, place, &left_out, only).await,
        Runner::Pytest(tests) => pytest(tests, suite, place, &left_out, only).await,
    }?;
    run.outcomes
        .retain(|id, _| !left_out.iter().any(|pattern| matches(pattern, id)));
    ensure!(!run.outcomes.is_empty(), "{}: no test was run", suite.name);
    Ok(run)
}

/// A command of a suite: without the variables of this machine that would lead it elsewhere.
fn prepared(mut command: Command, place: &Place) -> Command {
    command
        .current_dir(place.dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .env_remove("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
        .env_remove("SPARK_REMOTE")
        .env_remove("PYTHONPATH");
    if let Some(ca) = &place.ca {
        command.env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", ca);
        command.env("SSL_CERT_FILE", ca);
    }
    command
}

/// One process per test: a panic ends only its own.
async fn go(
    folder: &str,
    suite: &Suite,
    place: &Place,
    left_out: &[&str],
    only: Option<&BTreeSet<String>>,
) -> Result<Run> {
    let program = installed(folder)?.join("suite.test");
    let release = fs::read_to_string(installed(folder)?.join("release"))?;
    let command = |arguments: &[&str]| {
        let mut command = prepared(Command::new(&program), place);
        command.args(arguments).env("START_SPARK_CONNECT_SERVICE", "0");
        command
    };
    let listed = command(&["-test.list", "."]).output().await?;
    let listed = String::from_utf8(listed.stdout)?;
    let wanted = |id: &&str| {
        only.is_none_or(|only| only.contains(*id)) && !left_out.iter().any(|pattern| matches(pattern, id))
    };
    let mut run = Run {
        release: release.trim().to_owned(),
        ..Run::default()
    };
    for id in listed.lines().filter(wanted) {
        let (pattern, limit) = (format!("^{id}$"), format!("{}s", suite.limit));
        let arguments = ["-test.v", "-test.run", &pattern, "-test.timeout", &limit];
        let ended = command(&arguments).output();
        let ended = tokio::time::timeout(GRACE + Duration::from_secs(suite.limit), ended).await;
        let outcome = match ended {
            Ok(ended) => go_outcome(id, &ended?),
            Err(_) => failed("timeout", String::new()),
        };
        run.outcomes.insert(id.to_owned(), outcome);
    }
    Ok(run)
}

fn failed(error: &str, detail: String) -> Outcome {
    Outcome {
        verdict: Verdict::Failed,
        error: error.to_owned(),
        detail,
    }
}

fn go_outcome(id: &str, ended: &Output) -> Outcome {
    let text = String::from_utf8_lossy(&ended.stdout);
    let has = |mark: &str| text.contains(&format!("--- {mark}: {id} "));
    let verdict = match (ended.status.success(), has("SKIP"), has("PASS")) {
        (true, true, _) => Verdict::Skipped,
        (true, false, true) => Verdict::Passed,
        _ => {
            let all = format!("{text}\n{}", String::from_utf8_lossy(&ended.stderr));
            let error = if all.contains("panic: test timed out") {
                "timeout"
            } else if all.contains("panic: ") {
                "panic"
            } else {
                ""
            };
            return failed(error, end_of(&all));
        }
    };
    Outcome {
        verdict,
        error: String::new(),
        detail: String::new(),
    }
}

/// A line of the plugin `tests/conformance/outcomes.py`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Release {
        release: String,
    },
    Ended {
        ended: i32,
    },
    Test {
        test: String,
        outcome: Verdict,
        #[serde(default)]
        error: String,
        #[serde(default)]
        detail: String,
    },
}

/// One process per argument: what a client leaves behind ends with it.
async fn pytest(
    tests: &Pytest,
    suite: &Suite,
    place: &Place,
    left_out: &[&str],
    only: Option<&BTreeSet<String>>,
) -> Result<Run> {
    let chosen = place.dir.path().join("only");
    if let Some(only) = only {
        let ids: Vec<&str> = only.iter().map(String::as_str).collect();
        fs::write(&chosen, ids.join("\n"))?;
    }
    let mut all = Run::default();
    // Ids begin with the path of their module.
    let wanted = |argument: &&String| {
        let path = argument.replace('.', "/");
        only.is_none_or(|only| only.iter().any(|id| id.starts_with(&path)))
    };
    for argument in tests.arguments.iter().filter(wanted) {
        let run = pytest_process(tests, suite, place, argument, |command| {
            command.env("BERTH_LEFT_OUT", left_out.join("\n"));
            if only.is_some() {
                command.env("BERTH_ONLY", &chosen);
            }
        });
        let run = run.await.with_context(|| argument.clone())?;
        all.release = run.release;
        all.outcomes.extend(run.outcomes);
    }
    Ok(all)
}

/// Starts again for the rest if the process dies.
async fn pytest_process(
    tests: &Pytest,
    suite: &Suite,
    place: &Place,
    argument: &str,
    with: impl Fn(&mut Command),
) -> Result<Run> {
    let lines = place.dir.path().join("outcomes");
    if lines.exists() {
        fs::remove_file(&lines)?;
    }
    for _ in 0..MAX_STARTS {
        let mut command = pytest_command(tests, suite, place)?;
        command.arg(argument).env("BERTH_OUTCOMES", &lines);
        with(&mut command);
        let output = watched(command, &lines, suite).await?;
        let (run, ended) = read(&lines)?;
        match ended {
            // All passed, some failed, none was left to run.
            Some(0 | 1 | 5) => return Ok(run),
            Some(code) => bail!("pytest ended with {code}\n{output}"),
            None if run.release.is_empty() => bail!("pytest did not begin\n{output}"),
            None => println!("{argument}: the process died and continues\n{output}"),
        }
    }
    bail!("the process died {MAX_STARTS} times")
}

/// The command, before the variables of one start.
fn pytest_command(tests: &Pytest, suite: &Suite, place: &Place) -> Result<Command> {
    let own = repo().join("tests/conformance");
    let folders = tests.packages.iter().map(|folder| installed(folder));
    let mut path = folders.collect::<Result<Vec<_>>>()?;
    path.push(own.clone());
    let mut command = Command::new(installed(&tests.python)?);
    command
        .args(["-m", "pytest", "-q", "-p", "outcomes", "-p", "no:cacheprovider"])
        // Pytest's own reader of sources fails on some of the suites; leftovers of clients are not ours.
        .args([
            "--tb=native",
            "-p",
            "no:unraisableexception",
            "-p",
            "no:threadexception",
        ])
        .arg("-c")
        .arg(own.join("pytest.ini"))
        .arg("--rootdir")
        .arg(installed(&tests.root)?)
        .args(["--timeout", &suite.limit.to_string(), "--pyargs"])
        .envs(variables(tests))
        .env("BERTH_RELEASE_OF", &tests.release_of);
    let mut command = prepared(command, place);
    command.env("PYTHONPATH", std::env::join_paths(path)?);
    command.env(&tests.remote, &place.url);
    Ok(command)
}

/// The variables of a suite, with the folder of what is installed.
fn variables(tests: &Pytest) -> impl Iterator<Item = (&str, String)> {
    let installed = home().display().to_string();
    let variables = tests.environment.iter();
    variables.map(move |(name, value)| (name.as_str(), value.replace("{installed}", &installed)))
}

/// Waits for the end of a run, but not for a test that ignores its limit. Returns the end of what it
/// printed.
async fn watched(mut command: Command, lines: &Path, suite: &Suite) -> Result<String> {
    let log = lines.with_extension("log");
    let file = fs::File::create(&log)?;
    let mut child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
    let length = || fs::metadata(lines).map_or(0, |file| file.len());
    let (mut seen, mut at) = (length(), Instant::now());
    loop {
        if let Ok(ended) = tokio::time::timeout(Duration::from_secs(1), child.wait()).await {
            ended?;
            break;
        }
        if length() != seen {
            (seen, at) = (length(), Instant::now());
        }
        if at.elapsed() > GRACE + Duration::from_secs(suite.limit) {
            child.kill().await?;
            break;
        }
    }
    Ok(end_of(&fs::read_to_string(&log)?))
}

/// What the plugin wrote, and the exit code of pytest if it came to its end.
fn read(lines: &Path) -> Result<(Run, Option<i32>)> {
    let (mut run, mut end) = (Run::default(), None);
    let text = fs::read_to_string(lines).unwrap_or_default();
    for line in text.lines() {
        match serde_json::from_str(line).with_context(|| line.to_owned())? {
            Line::Release { release } => run.release = release,
            Line::Ended { ended } => end = Some(ended),
            Line::Test {
                test,
                outcome: verdict,
                error,
                detail,
            } => {
                let outcome = Outcome {
                    verdict,
                    error,
                    detail,
                };
                run.outcomes.insert(test, outcome);
            }
        }
    }
    Ok((run, end))
}

fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
