//! What the kernel says of processes: CPU time and memory.

use anyhow::{Context as _, Result};
use std::fs;

/// CPU seconds of these processes so far, all threads.
///
/// The scheduler's own count is in nanoseconds; `utime + stime` of
/// `/proc/<pid>/stat`, which counts in ticks of 10 ms, is the fallback.
///
/// # Errors
/// When a process is gone.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    pids.iter()
        .map(|&pid| exact(pid).map_or_else(|| ticks(pid), Ok))
        .sum()
}

fn exact(pid: u32) -> Option<f64> {
    let mut nanos = 0_u64;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanos += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(nanos as f64 / 1e9)
}

fn ticks(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    // The second field is the name in brackets, which may hold anything.
    let (_, rest) = text.rsplit_once(')').context("a process's state")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let ticks = next().zip(next()).context("a process's times")?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok((ticks.0 + ticks.1) as f64 / per_second as f64)
}

/// Memory in use, in MiB, of these processes together.
///
/// # Errors
/// When a process is gone.
pub fn rss_mib(pids: &[u32]) -> Result<f64> {
    status_mib(pids, "VmRSS:")
}

/// The most memory that was in use since [`reset_peak`], in MiB.
///
/// # Errors
/// When a process is gone.
pub fn peak_mib(pids: &[u32]) -> Result<f64> {
    status_mib(pids, "VmHWM:")
}

/// From now on the peak is counted anew.
///
/// # Errors
/// When the kernel does not let us.
pub fn reset_peak(pids: &[u32]) -> Result<()> {
    for pid in pids {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak of memory")?;
    }
    Ok(())
}

fn status_mib(pids: &[u32], field: &str) -> Result<f64> {
    let mut kib = 0;
    for pid in pids {
        let text =
            fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let number = line
            .and_then(|line| line.split_whitespace().next())
            .context("a process's memory")?;
        kib += number.parse::<u64>()?;
    }
    Ok(kib as f64 / 1024.0)
}

/// Busy and all CPU seconds of the machine since it started.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn machine() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let times: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let idle = times
        .get(3)
        .zip(times.get(4))
        .map_or(0, |(idle, waiting)| idle + waiting);
    let all: u64 = times.iter().sum();
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok(((all - idle) as f64 / per_second, all as f64 / per_second))
}
