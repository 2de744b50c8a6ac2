//! How quiet the machine is: figures of a busy one say little.

use super::Rig;
use crate::proc;
use anyhow::Result;
use std::time::Duration;

const LOOK: Duration = Duration::from_secs(1);

/// Percent of the machine that is busy while the rig does nothing yet.
///
/// # Errors
/// When `/proc` cannot be read.
pub async fn at_rest() -> Result<f64> {
    let before = proc::machine()?;
    tokio::time::sleep(LOOK).await;
    let after = proc::machine()?;
    Ok(percent(after.0 - before.0, after.1 - before.1))
}

/// Watches what others take of the machine during the run.
#[derive(Debug)]
pub struct Watch {
    busy: f64,
    all: f64,
    ours: f64,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn start(rig: &Rig) -> Result<Self> {
        let (busy, all) = proc::machine()?;
        Ok(Self {
            busy,
            all,
            ours: rig.spent(),
        })
    }

    /// Percent of the machine that was busy, but not with anything of the rig.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn others(&self, rig: &Rig) -> Result<f64> {
        let (busy, all) = proc::machine()?;
        let others = (busy - self.busy) - (rig.spent() - self.ours);
        Ok(percent(others, all - self.all))
    }
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole <= 0.0 {
        return 0.0;
    }
    (part / whole * 1000.0).round().max(0.0) / 10.0
}

/// How many cores there are.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What the processor calls itself.
pub fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
