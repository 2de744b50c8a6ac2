//! Short of memory, new work is refused before the kernel kills everybody's.
//! A sampler sets one flag; a call reads it and nothing else.

use crate::config::LimitConfig;
use crate::metrics::Metrics;
use session_core::Reason;
use session_proto::error::Refused;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often the memory in use is looked at.
const SAMPLE: Duration = Duration::from_millis(500);
/// The limit can change under a running container: read anew every this many samples.
const LIMIT_EVERY: u32 = 60;
/// When trying again may help.
const RETRY: Duration = Duration::from_secs(5);

/// The flag.
#[derive(Debug, Default)]
pub(crate) struct Shed(AtomicBool);

impl Shed {
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// What a call is told that may not begin.
pub(crate) fn refused() -> Refused {
    Refused::new(
        Reason::RateLimited,
        "This proxy is short of memory and takes no new calls for the moment; running calls go on. Try again in a little while.",
    )
    .with("limit", "limits.shed_above_bytes")
    .retry_after(RETRY)
}

/// Samples for as long as the proxy runs.
pub(crate) async fn sample(shed: Arc<Shed>, limits: LimitConfig, metrics: Arc<Metrics>) {
    let mut ticks = interval(SAMPLE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut above = 0;
    for count in 0_u32.. {
        ticks.tick().await;
        if count % LIMIT_EVERY == 0 {
            above = limits.shed_above_bytes.unwrap_or_else(|| {
                container_limit(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
                    .map_or(0, |limit| limit / 100 * 85)
            });
        }
        let Some(used) = in_use() else { continue };
        metrics.memory.set(i64::try_from(used).unwrap_or(i64::MAX));
        let was = shed.is_on();
        let is = is_short(was, used, above);
        if is != was {
            shed.0.store(is, Relaxed);
            metrics.shedding.set(i64::from(is));
            tracing::warn!(used, above, shedding = is, "memory in use crossed its bound");
        }
    }
}

/// Once short, short until it is clearly below the bound, so that the flag
/// does not flutter.
fn is_short(was: bool, used: u64, above: u64) -> bool {
    let bound = if was { above / 100 * 95 } else { above };
    above > 0 && used > bound
}

/// Resident memory. From `status`, because `statm` counts in pages, whose size
/// differs between machines.
fn in_use() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The least limit of the process's memory cgroup and those around it, as v2
/// and v1 show it; inside a container the path may lead outside of what is
/// mounted, and then the mount itself is ours.
fn container_limit(own: &Path, mount: &Path) -> Option<u64> {
    let own = std::fs::read_to_string(own).ok()?;
    own.lines().filter_map(|line| limit_of(line, mount)).min()
}

/// One line is `<number>:<controllers>:<path>`; v2 has number 0 and no controllers.
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
        // "max", and v1's number near 2^63, are no limits.
        .filter_map(|text| text.trim().parse().ok())
        .filter(|limit| *limit < 1 << 60)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_found_in_both_versions_and_the_least_counts() {
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
        // The path is the host's, the mount the container's.
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
    fn the_flag_does_not_flutter_and_zero_is_off() {
        assert!(!is_short(false, 1000, 1000));
        assert!(is_short(false, 1001, 1000));
        assert!(is_short(true, 990, 1000));
        assert!(!is_short(true, 940, 1000));
        assert!(!is_short(false, u64::MAX, 0));
        assert!(!is_short(true, u64::MAX, 0));
        assert!(in_use().unwrap() > 1 << 20);
    }
}
