//! Suites whose runners write a JSON line per test: pytest with `tests/conformance/outcomes.py`, ScalaTest with
//! `tests/conformance/scala/Outcomes.java`.

use super::{Task, end_of, release};
use crate::conformance::outcome::{Outcome, Run, Verdict};
use crate::conformance::suites::Pytest;
use anyhow::{Context, Result, bail};
use e2e::{home, installed, java, repo};
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// A process that dies in a test is started again for the rest, so often.
const MAX_STARTS: usize = 20;

/// A line of those.
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

/// One process per module: what a client leaves behind ends with it.
pub(super) async fn pytest(tests: &Pytest, task: Task<'_>) -> Result<Run> {
    let of_module = |module: &str, id: &str| id.starts_with(&module.replace('.', "/"));
    each(&tests.arguments, of_module, task, |module| {
        let mut command = pytest_command(tests, task)?;
        command.arg(module);
        Ok(command)
    })
    .await
}

/// One process per class, each with a server of its own as it believes.
pub(super) async fn scalatest(folder: &str, classes: &[String], task: Task<'_>) -> Result<Run> {
    let of_class = |class: &str, id: &str| id.split_once(": ").is_some_and(|(of, _)| of == class);
    each(classes, of_class, task, |class| {
        let mut command = scalatest_command(folder, task)?;
        command.arg(class);
        Ok(command)
    })
    .await
}

/// A process for each of `parts` that has something to run.
async fn each(
    parts: &[String],
    is_of: impl Fn(&str, &str) -> bool,
    task: Task<'_>,
    command: impl Fn(&str) -> Result<Command>,
) -> Result<Run> {
    let chosen = task.place.dir.path().join("only");
    if let Some(only) = task.only {
        let ids: Vec<&str> = only.iter().map(String::as_str).collect();
        fs::write(&chosen, ids.join("\n"))?;
    }
    let mut all = Run::default();
    let wanted = |part: &&String| task.only.is_none_or(|only| only.iter().any(|id| is_of(part, id)));
    for part in parts.iter().filter(wanted) {
        let run = process(part, task, || {
            let mut command = command(part)?;
            command.env("BERTH_LEFT_OUT", task.left_out.join("\n"));
            if task.only.is_some() {
                command.env("BERTH_ONLY", &chosen);
            }
            Ok(command)
        });
        let run = run.await.with_context(|| part.clone())?;
        all.release = run.release;
        all.outcomes.extend(run.outcomes);
    }
    Ok(all)
}

/// Starts again for the rest if the process dies.
async fn process(part: &str, task: Task<'_>, command: impl Fn() -> Result<Command>) -> Result<Run> {
    let lines = task.place.dir.path().join("outcomes");
    if lines.exists() {
        fs::remove_file(&lines)?;
    }
    for _ in 0..MAX_STARTS {
        let mut command = command()?;
        command.env("BERTH_OUTCOMES", &lines);
        let output = watched(command, &lines, task.limit()).await?;
        let (run, ended) = read(&lines)?;
        match ended {
            // All passed, some failed, none was left to run.
            Some(0 | 1 | 5) => return Ok(run),
            Some(code) => bail!("the runner ended with {code}\n{output}"),
            None if run.release.is_empty() => bail!("the runner did not begin\n{output}"),
            None => println!("{part}: the process died and continues\n{output}"),
        }
    }
    bail!("the process died {MAX_STARTS} times")
}

/// Without the module.
fn pytest_command(tests: &Pytest, task: Task<'_>) -> Result<Command> {
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
        .args(["--timeout", &task.suite.limit.to_string(), "--pyargs"])
        .envs(variables(tests))
        .env("BERTH_RELEASE_OF", &tests.release_of);
    let mut command = task.prepared(command);
    command.env("PYTHONPATH", std::env::join_paths(path)?);
    command.env(&tests.remote, &task.place.url);
    Ok(command)
}

/// Without the class. What the tests start as their server is a relay (`tests/conformance/scala/spark-submit`).
fn scalatest_command(folder: &str, task: Task<'_>) -> Result<Command> {
    let (dir, release) = (installed(folder)?, release(folder)?);
    let client = installed(&format!("scala-{release}"))?;
    let path = format!("{0}/classes:{1}/*:{0}/jars/*", dir.display(), client.display());
    let server = task.place.address.context("the suite needs a forwarder")?;
    let mut command = task.prepared(java(task.place.dir.path(), None)?);
    for package in ["java.lang", "java.lang.invoke", "java.util"] {
        command.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
    }
    command
        .args(["-Xmx2g", "-Xss4m", "-cp", &path, "Outcomes"])
        .env("SPARK_HOME", dir.join("home"))
        .env("BERTH_SUITE_SERVER", server.to_string())
        .env("BERTH_RELEASE", release);
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
async fn watched(mut command: Command, lines: &Path, limit: Duration) -> Result<String> {
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
        if at.elapsed() > limit {
            child.kill().await?;
            break;
        }
    }
    Ok(end_of(&fs::read_to_string(&log)?))
}

/// What the runner wrote, and its exit code if it came to its end.
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
