//! Runs a suite, or some of its tests, at a place.

mod lines;
mod programs;

use super::outcome::{Outcome, Run, Verdict};
use super::place::Place;
use super::suites::{Runner, Suite, matches};
use anyhow::{Result, ensure};
use e2e::{Engine, installed};
use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Beyond a test's limit, for what the runner itself does.
const GRACE: Duration = Duration::from_secs(90);
/// Lines of output that a failure shows.
const SHOWN_LINES: usize = 30;

/// What is run, and where.
#[derive(Debug, Clone, Copy)]
struct Task<'t> {
    suite: &'t Suite,
    place: &'t Place,
    /// Ids, or their beginnings and `*`.
    left_out: &'t [&'t str],
    /// Ids; none for all.
    only: Option<&'t BTreeSet<String>>,
}

impl Task<'_> {
    fn wants(&self, id: &str) -> bool {
        self.only.is_none_or(|only| only.contains(id))
            && !self.left_out.iter().any(|pattern| matches(pattern, id))
    }

    /// How long a test may go on without an end.
    fn limit(&self) -> Duration {
        GRACE + Duration::from_secs(self.suite.limit)
    }

    /// A command of a suite: without the variables of this machine that would lead it elsewhere.
    fn prepared(&self, mut command: Command) -> Command {
        command
            .current_dir(self.place.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env_remove("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
            .env_remove("SPARK_REMOTE")
            .env_remove("PYTHONPATH");
        if let Some(ca) = &self.place.ca {
            command.env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", ca);
            command.env("SSL_CERT_FILE", ca);
        }
        command
    }
}

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
    let task = Task {
        suite,
        place,
        left_out: &left_out,
        only,
    };
    let mut run = match &suite.runner {
        Runner::Go { folder } => programs::go(folder, task).await,
        Runner::Rust { folder } => programs::rust(folder, task).await,
        Runner::Pytest(tests) => lines::pytest(tests, task).await,
        Runner::Scalatest { folder, arguments } => lines::scalatest(folder, arguments, task).await,
    }?;
    run.outcomes
        .retain(|id, _| !left_out.iter().any(|pattern| matches(pattern, id)));
    ensure!(!run.outcomes.is_empty(), "{}: no test was run", suite.name);
    Ok(run)
}

/// The release of a suite, as setup.sh noted it.
fn release(folder: &str) -> Result<String> {
    let noted = fs::read_to_string(installed(folder)?.join("release"))?;
    Ok(noted.trim().to_owned())
}

/// An outcome without an error.
const fn ended(verdict: Verdict) -> Outcome {
    Outcome {
        verdict,
        error: String::new(),
        detail: String::new(),
    }
}

fn failed(error: &str, detail: String) -> Outcome {
    Outcome {
        verdict: Verdict::Failed,
        error: error.to_owned(),
        detail,
    }
}

fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
