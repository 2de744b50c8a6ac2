//! What processes hold over time, and whether it grows.

use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// At one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    at: f64,
    /// Resident memory, in MiB; open descriptors; threads.
    values: [f64; 3],
}

/// Names of the values, and how much each may grow from the begin to the end of the measurement:
/// this much, or this part of its median.
const LIMITS: [(&str, f64, f64); 3] = [
    ("MiB", 4.0, 0.05),
    ("descriptors", 8.0, 0.05),
    ("tasks", 2.0, 0.0),
];
/// The first part is left out: memory that is used for the first time.
const WARM_UP: f64 = 0.2;
/// Minimum number of samples for a slope.
const MIN_SAMPLES: usize = 8;

/// The samples of each process.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<(String, u32), Vec<Sample>>);

/// How one value of a process changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Growth {
    process: String,
    value: &'static str,
    median: f64,
    growth: f64,
    pub(super) too_much: bool,
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.too_much { "  GROWS" } else { "" };
        write!(
            f,
            "{:<12} {:>8.1} {:<11} {:+.1}{mark}",
            self.process, self.median, self.value, self.growth
        )
    }
}

/// What the kernel says of a process; none if it has ended.
fn values(pid: u32) -> Option<[f64; 3]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some([
        number("VmRSS:")? / 1024.0,
        descriptors as f64,
        number("Threads:")?,
    ])
}

impl Samples {
    pub(super) fn take(&mut self, time: Duration, processes: &[(String, Option<u32>)]) {
        for (name, pid) in processes {
            let Some(pid) = *pid else { continue };
            let Some(values) = values(pid) else { continue };
            let at = time.as_secs_f64();
            let samples = self.0.entry((name.clone(), pid)).or_default();
            samples.push(Sample { at, values });
        }
    }

    /// The growth of every value of each process that lived from `begun` on.
    pub(super) fn growths(&self, begun: Duration) -> Vec<Growth> {
        let mut growths = Vec::new();
        for ((process, _), samples) in &self.0 {
            let tail: Vec<&Sample> = samples
                .iter()
                .filter(|sample| sample.at >= begun.as_secs_f64())
                .collect();
            let tail = &tail[(tail.len() as f64 * WARM_UP) as usize..];
            if tail.len() < MIN_SAMPLES {
                continue;
            }
            for (n, (value, absolute, relative)) in LIMITS.into_iter().enumerate() {
                let points: Vec<(f64, f64)> =
                    tail.iter().map(|sample| (sample.at, sample.values[n])).collect();
                let median = median(points.iter().map(|(_, value)| *value).collect());
                let growth = slope(&points) * (points[points.len() - 1].0 - points[0].0);
                growths.push(Growth {
                    process: process.clone(),
                    value,
                    median,
                    growth,
                    too_much: growth > absolute.max(relative * median),
                });
            }
        }
        growths
    }

    /// All of it, as comma-separated values.
    pub(super) fn write(&self, path: &std::path::Path) -> Result<()> {
        let mut text = "process,pid,seconds,mib,descriptors,tasks\n".to_owned();
        for ((process, pid), samples) in &self.0 {
            for Sample { at, values } in samples {
                let [memory, descriptors, tasks] = values;
                text += &format!("{process},{pid},{at:.1},{memory:.2},{descriptors},{tasks}\n");
            }
        }
        Ok(std::fs::write(path, text)?)
    }
}

/// Theil and Sen: the median of the slopes of all pairs, which single peaks do not move.
fn slope(points: &[(f64, f64)]) -> f64 {
    let mut slopes = Vec::new();
    for (n, one) in points.iter().enumerate() {
        for other in points.iter().skip(n + 1).filter(|other| other.0 > one.0) {
            slopes.push((other.1 - one.1) / (other.0 - one.0));
        }
    }
    median(slopes)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 samples of 10 s each; the tail begins at 200 s.
    fn grown(value: impl Fn(f64) -> [f64; 3]) -> Vec<Growth> {
        let samples = (0..100).map(|n| Sample {
            at: f64::from(n) * 10.0,
            values: value(f64::from(n) * 10.0),
        });
        let samples = Samples(BTreeMap::from([(("manager".to_owned(), 1), samples.collect())]));
        samples.growths(Duration::from_secs(200))
    }

    fn too_much(growths: &[Growth]) -> Vec<&'static str> {
        let all = growths.iter().filter(|growth| growth.too_much);
        all.map(|growth| growth.value).collect()
    }

    #[test]
    fn a_leak_is_found_in_each_value() {
        assert_eq!(too_much(&grown(|at| [50.0 + at / 100.0, 40.0, 8.0])), ["MiB"]);
        assert_eq!(
            too_much(&grown(|at| [50.0, 40.0 + at / 50.0, 8.0])),
            ["descriptors"]
        );
        assert_eq!(too_much(&grown(|at| [50.0, 40.0, 8.0 + at / 200.0])), ["tasks"]);
    }

    /// Noise, single peaks, and what grows before the tail or in its beginning.
    #[test]
    fn what_does_not_grow_is_not_reported() {
        let noisy = grown(|at| {
            let noise = (at / 10.0 * 7919.0) % 5.0;
            let start = (at - 300.0).min(0.0) / 10.0;
            let peak = if at % 170.0 == 0.0 { 80.0 } else { 0.0 };
            [50.0 + noise + start + peak, 40.0 + noise, 8.0]
        });
        assert_eq!(noisy.len(), 3);
        assert!(too_much(&noisy).is_empty(), "{noisy:?}");
    }

    #[test]
    fn a_short_life_is_not_judged() {
        let few = (0..8).map(|n| Sample {
            at: f64::from(n),
            values: [f64::from(n) * 100.0; 3],
        });
        let samples = Samples(BTreeMap::from([(("proxy".to_owned(), 1), few.collect())]));
        assert!(samples.growths(Duration::ZERO).is_empty());
    }
}
