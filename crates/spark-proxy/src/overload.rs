//! Overload: new work is rejected when memory is short, before the kernel kills the process. A
//! sampler sets one flag; a call only reads it.

use crate::config::LimitConfig;
use crate::metrics::Metrics;
use session_core::Reason;
use session_proto::error::Refused;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Interval between memory samples.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// Number of samples between readings of the limit, which can change while the container runs.
const SAMPLES_PER_LIMIT_READ: u32 = 60;
/// Retry delay.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The overload flag.
#[derive(Debug, Default)]
pub(crate) struct OverloadFlag(AtomicBool);

impl OverloadFlag {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The error for a rejected call.
pub(crate) fn error() -> Refused {
    Refused::new(
        Reason::RateLimited,
        "This proxy is short of memory and accepts no new calls at the moment; running calls continue. Try again in a little while.",
    )
    .with("limit", "limits.shed_above_bytes")
    .retry_after(RETRY_DELAY)
}

/// Takes samples while the proxy runs.
pub(crate) async fn sample(overload: Arc<OverloadFlag>, limits: LimitConfig, metrics: Arc<Metrics>) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut above = 0;
    for count in 0_u32.. {
        ticks.tick().await;
        if count % SAMPLES_PER_LIMIT_READ == 0 {
            above = limits.shed_above_bytes.unwrap_or_else(|| {
                container_limit(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
                    .map_or(0, |limit| limit / 100 * 85)
            });
        }
        let Some(used) = resident_bytes() else { continue };
        metrics
            .process
            .memory
            .set(i64::try_from(used).unwrap_or(i64::MAX));
        let was = overload.is_set();
        let is = exceeds_limit(was, used, above);
        if is != was {
            overload.0.store(is, Relaxed);
            metrics.process.overloaded.set(i64::from(is));
            tracing::warn!(used, above, overloaded = is, "overload state changed");
        }
    }
}

/// Applies hysteresis: overload ends at 95 % of the limit.
fn exceeds_limit(was: bool, used: u64, above: u64) -> bool {
    let bound = if was { above / 100 * 95 } else { above };
    above > 0 && used > bound
}

/// Resident memory, from `status`: `statm` counts in pages, whose size depends on the machine.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The smallest limit of the process's memory cgroup and its ancestors, for v2 and v1. Inside a
/// container the path may lead outside of the mount; then the mount itself is the process's cgroup.
fn container_limit(own: &Path, mount: &Path) -> Option<u64> {
    let own = std::fs::read_to_string(own).ok()?;
    own.lines().filter_map(|line| limit_of(line, mount)).min()
}

/// A line is `<number>:<controllers>:<path>`; v2 has number 0 and no controllers.
fn limit_of(line: &str, mount: &Path) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, file) = if number == "0" && controllers.is_empty() {
        (mount.to_owned(), "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        (mount.join("memory"), "memory.limit_in_bytes")
    } else {
        return None;
    };
    let whole: PathBuf = root.join(path.trim_start_matches('/'));
    whole
        .ancestors()
        .take_while(|folder| folder.starts_with(&root))
        .filter_map(|folder| std::fs::read_to_string(folder.join(file)).ok())
        // "max", and v1's number near 2^63, mean no limit.
        .filter_map(|text| text.trim().parse().ok())
        .filter(|limit| *limit < 1 << 60)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_cgroup_limit_of_v1_and_v2_applies() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let own = dir.path().join("own");
        let limit = |text: &str| {
            std::fs::write(&own, text).unwrap();
            container_limit(&own, dir.path())
        };
        write("pod/memory.max", "1000\n");
        write("pod/app/memory.max", "max\n");
        assert_eq!(limit("0::/pod/app\n"), Some(1000));
        write("pod/app/memory.max", "700\n");
        assert_eq!(limit("0::/pod/app\n"), Some(700));
        // The path is relative to the host, the mount to the container.
        assert_eq!(limit("0::/kubepods/xyz\n"), None);
        write("memory.max", "900\n");
        assert_eq!(limit("0::/kubepods/xyz\n"), Some(900));

        write("memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("5:cpu,memory:/a\n3:cpuset:/a\n"), None);
        write("memory/memory.limit_in_bytes", "500\n");
        assert_eq!(limit("5:cpu,memory:/a\n0::/kubepods\n"), Some(500));
        assert_eq!(limit("nonsense"), None);
    }

    #[test]
    fn overload_has_hysteresis_and_zero_disables_it() {
        assert!(!exceeds_limit(false, 1000, 1000));
        assert!(exceeds_limit(false, 1001, 1000));
        assert!(exceeds_limit(true, 990, 1000));
        assert!(!exceeds_limit(true, 940, 1000));
        assert!(!exceeds_limit(false, u64::MAX, 0));
        assert!(!exceeds_limit(true, u64::MAX, 0));
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
