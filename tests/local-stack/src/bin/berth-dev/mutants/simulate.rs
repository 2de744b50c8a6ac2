//! The simulation in the copy of the tree, as a program of cargo.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// The longest build, and the longest run of the simulation.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// What the simulation reported.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// No fault in all seeds.
    Nothing,
    /// The first fault.
    Fault(String),
    /// It did not build or did not run to its end.
    Unclear(String),
}

/// A tree, and the folder of its builds and logs.
#[derive(Debug)]
pub(super) struct Simulation {
    pub(super) tree: PathBuf,
    pub(super) work: PathBuf,
}

impl Simulation {
    /// Builds the tree as it is and runs the seeds; what was seen, and after
    /// how many seeds.
    pub(super) async fn run(&self, name: &str, seeds: u32) -> Result<(Seen, String)> {
        let build = self.work.join(format!("{name}.build"));
        let built = self.cargo(&["--no-run"], seeds, &build).await?;
        if !built.is_some_and(|status| status.success()) {
            let problem = format!("it does not build, see {}", build.display());
            return Ok((Seen::Unclear(problem), String::new()));
        }
        let log = self.work.join(format!("{name}.log"));
        let test = ["simulation::lives", "--", "--nocapture"];
        let status = self.cargo(&test, seeds, &log).await?;
        if status.is_some_and(|status| status.success()) {
            return Ok((Seen::Nothing, seeds.to_string()));
        }
        let text = std::fs::read(&log)?;
        let seen = first_fault(&String::from_utf8_lossy(&text));
        Ok(seen.unwrap_or_else(|| {
            let problem = format!("it did not run to its end, see {}", log.display());
            (Seen::Unclear(problem), String::new())
        }))
    }

    /// Runs `cargo test` of session-manager; none if it took too long.
    async fn cargo(&self, args: &[&str], seeds: u32, log: &Path) -> Result<Option<ExitStatus>> {
        let log = File::create(log).with_context(|| log.display().to_string())?;
        let child = Command::new("cargo")
            .args(["test", "--locked", "--quiet", "-p", "session-manager", "--lib"])
            .args(args)
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", self.work.join("build"))
            .env("RUST_BACKTRACE", "0")
            .env("SEEDS", seeds.to_string())
            .env("FAILURES", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting cargo")?;
        let mut group = Group(child);
        match tokio::time::timeout(TIMEOUT, group.0.wait()).await {
            Ok(status) => Ok(Some(status?)),
            Err(_) => Ok(None),
        }
    }
}

/// A child and its children; all are killed when dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // None after the end of the child, whose id may be another's by then.
        let pid = self.0.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// The first fault in the output of the simulation, and after how many seeds.
fn first_fault(output: &str) -> Option<(Seen, String)> {
    let (summary, _) = output.split_once(" seeds broke something")?;
    let seeds = summary.rsplit(' ').next()?;
    let mut lines = output.lines().skip_while(|line| !line.starts_with("seed "));
    let fault = lines.nth(1)?.trim();
    let fault = fault.strip_prefix('"')?.trim_end_matches(',').strip_suffix('"')?;
    Some((Seen::Fault(fault.replace('|', "/")), seeds.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_is_found() {
        let output = "running 1 test\nseed 7: [\n    \"7xx is due | late\",\n    \"and more\",\n]\n\
                      seed 9: [\n    \"other\",\n]\n\nthread 'x' panicked at y:\n\
                      1 of 12 seeds broke something. Again, with all that happened:\nSEED=7\n";
        let seen = Seen::Fault("7xx is due / late".to_owned());
        assert_eq!(first_fault(output), Some((seen, "12".to_owned())));
        assert_eq!(first_fault("error: test failed"), None);
        assert_eq!(first_fault(""), None);
    }
}
