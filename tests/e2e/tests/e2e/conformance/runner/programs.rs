//! Suites that are programs: one process per test, so a panic ends only its own.

use super::{Task, end_of, ended, failed, release};
use crate::conformance::outcome::{Outcome, Run, Verdict};
use anyhow::Result;
use e2e::installed;
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use tokio::process::Command;

/// A program with tests.
#[derive(Debug)]
struct Program<'p> {
    path: PathBuf,
    /// What leads it to the server.
    variable: (&'p str, &'p str),
    task: Task<'p>,
}

impl Program<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let (name, value) = self.variable;
        let mut command = self.task.prepared(Command::new(&self.path));
        command.args(arguments).env(name, value);
        command
    }

    async fn lines(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let listed = self.command(arguments).output().await?;
        let listed = String::from_utf8(listed.stdout)?;
        Ok(listed.lines().map(ToOwned::to_owned).collect())
    }

    async fn test(&self, arguments: &[&str], outcome: impl Fn(&Output) -> Outcome) -> Result<Outcome> {
        let ended = self.command(arguments).output();
        Ok(match tokio::time::timeout(self.task.limit(), ended).await {
            Ok(ended) => outcome(&ended?),
            Err(_) => failed("timeout", String::new()),
        })
    }
}

/// The test program of a Go package.
pub(super) async fn go(folder: &str, task: Task<'_>) -> Result<Run> {
    let program = Program {
        path: installed(folder)?.join("suite.test"),
        variable: ("START_SPARK_CONNECT_SERVICE", "0"),
        task,
    };
    let mut run = empty(folder)?;
    for id in program.lines(&["-test.list", "."]).await? {
        if !task.wants(&id) {
            continue;
        }
        let (pattern, limit) = (format!("^{id}$"), format!("{}s", task.suite.limit));
        let arguments = ["-test.v", "-test.run", &pattern, "-test.timeout", &limit];
        let outcome = program.test(&arguments, |output| go_outcome(&id, output)).await?;
        run.outcomes.insert(id, outcome);
    }
    Ok(run)
}

/// The test programs of a Rust crate. An id is the program and the test in it.
pub(super) async fn rust(folder: &str, task: Task<'_>) -> Result<Run> {
    let mut run = empty(folder)?;
    for file in fs::read_dir(installed(folder)?.join("tests"))? {
        let file = file?;
        let program = Program {
            path: file.path(),
            variable: ("SPARK_REMOTE", &task.place.url),
            task,
        };
        let lines = program.lines(&["--list", "--format", "terse"]).await?;
        for name in lines.iter().filter_map(|line| line.strip_suffix(": test")) {
            let id = format!("{}::{name}", file.file_name().to_string_lossy());
            if task.wants(&id) {
                let arguments = ["--exact", name, "--nocapture"];
                let outcome = program.test(&arguments, rust_outcome).await?;
                run.outcomes.insert(id, outcome);
            }
        }
    }
    Ok(run)
}

/// No outcomes yet, of the release that setup.sh noted.
fn empty(folder: &str) -> Result<Run> {
    Ok(Run {
        release: release(folder)?,
        ..Run::default()
    })
}

fn go_outcome(id: &str, output: &Output) -> Outcome {
    let text = String::from_utf8_lossy(&output.stdout);
    let has = |mark: &str| text.contains(&format!("--- {mark}: {id} "));
    match (output.status.success(), has("SKIP"), has("PASS")) {
        (true, true, _) => return ended(Verdict::Skipped),
        (true, false, true) => return ended(Verdict::Passed),
        _ => {}
    }
    let all = both(output);
    let error = if all.contains("panic: test timed out") {
        "timeout"
    } else if all.contains("panic: ") {
        "panic"
    } else {
        ""
    };
    failed(error, end_of(&all))
}

fn rust_outcome(output: &Output) -> Outcome {
    let text = String::from_utf8_lossy(&output.stdout);
    let counted = |what: &str| text.contains(&format!("test result: ok. {what}"));
    if output.status.success() && counted("1 passed") {
        ended(Verdict::Passed)
    } else if output.status.success() && counted("0 passed; 0 failed; 1 ignored") {
        ended(Verdict::Skipped)
    } else {
        failed("", end_of(&both(output)))
    }
}

/// What a program wrote.
fn both(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
