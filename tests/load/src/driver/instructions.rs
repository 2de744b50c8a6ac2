//! Instructions of a steady call, counted by valgrind. Unlike CPU time they do not depend on what else
//! the machine does, so a difference of one percent can be seen.

use super::Rig;
use super::peer::{Kind, Peer};
use super::scenario::{Effort, Values};
use crate::protocol::Job;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;

/// The longer of two runs makes this many times the calls of the shorter one.
const LONGER: usize = 10;
const VALGRIND: &str = "/usr/bin/valgrind";

/// Concurrent calls.
#[derive(Clone, Copy)]
struct Load {
    connections: usize,
    concurrency: usize,
}

/// Measures once: thousands of instructions, one call at a time and saturated.
pub(super) async fn measure(rig: &mut Rig, kind: Kind, effort: &Effort) -> Result<Values> {
    let loads = [("one_instructions", 1, 1), ("saturated_instructions", 4, 16)];
    let mut values = Values::new();
    for (row, connections, concurrency) in loads {
        let load = Load {
            connections,
            concurrency,
        };
        let instructions = per_call(rig, kind, effort.counted_calls, load).await?;
        values.push((row, instructions / 1e3));
    }
    Ok(values)
}

/// Two runs differ in nothing but the number of their calls, so what start, handshakes and end cost
/// is not in the difference.
async fn per_call(rig: &mut Rig, kind: Kind, calls: usize, load: Load) -> Result<f64> {
    let short = run(rig, kind, calls, load).await?;
    let long = run(rig, kind, LONGER * calls, load).await?;
    let more = long
        .checked_sub(short)
        .context("more calls had fewer instructions")?;
    Ok(more as f64 / ((LONGER - 1) * calls) as f64)
}

/// The instructions of a proxy's whole life with this many calls.
async fn run(rig: &mut Rig, kind: Kind, calls: usize, load: Load) -> Result<u64> {
    ensure!(
        Path::new(VALGRIND).exists(),
        "{VALGRIND} is missing: run `deploy/local/setup.sh instructions` (`make bench-tracing` does)"
    );
    let log = rig.kit.dir.join("instructions.log");
    let count = [
        VALGRIND,
        "--tool=cachegrind",
        "--cache-sim=no",
        "--cachegrind-out-file=/dev/null",
        &format!("--log-file={}", log.display()),
    ]
    .map(str::to_owned);
    let caller = rig.caller(0)?;
    let peer = Peer::start_under(kind, &rig.kit, &count).await?;
    let job = Job::Each {
        target: peer.target.clone(),
        callers: vec![caller; calls],
        concurrency: load.concurrency,
        connections: load.connections,
        watch: Vec::new(),
    };
    let outcome = rig
        .load(&format!("instructions of {}", kind.name()), &job)
        .await?;
    ensure!(
        outcome.calls == calls as u64,
        "{} of {calls} calls succeeded: {:?}",
        outcome.calls,
        outcome.error
    );
    peer.end().await?;
    let log = std::fs::read_to_string(&log)?;
    counted(&log).with_context(|| format!("valgrind counted nothing: {log}"))
}

/// The count in valgrind's log, e.g. `==7== I   refs:      1,234`.
fn counted(log: &str) -> Option<u64> {
    let digits = log.lines().find_map(|line| {
        let (before, count) = line.split_once("refs:")?;
        before
            .trim_end()
            .ends_with('I')
            .then(|| count.trim().replace(',', ""))
    })?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn the_count_is_read_from_the_log_of_any_valgrind() {
        assert_eq!(
            counted("==7== Cachegrind\n==7== \n==7== I   refs:      1,234,567\n"),
            Some(1_234_567)
        );
        assert_eq!(counted("==7== I refs:        42"), Some(42));
        assert_eq!(
            counted("==7== Cachegrind, a cache profiler\n==7== D   refs: 1"),
            None
        );
    }
}
