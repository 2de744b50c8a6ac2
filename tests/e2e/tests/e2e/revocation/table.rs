//! The measured times, their limits, and the table in docs/security.md.

use super::{REMOVALS, Removal};
use anyhow::{Context as _, Result};
use e2e::repo;
use session_core::{Clock as _, SystemClock};
use std::collections::BTreeMap;
use std::time::Duration;

const BEGIN: &str = "<!-- revocation: written by make revocation -->\n";
const END: &str = "<!-- end of the revocation table -->\n";
const HEAD: &str = "| removed | new call | open stream | reattach | cached, watch cut | samples |\n|---|---|---|---|---|---|\n";

/// What is tried after a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// A new call.
    NewCall,
    /// A stream that is open.
    OpenStream,
    /// The return to a stream.
    Reattach,
    /// A new call at a proxy that gets no changes.
    WatchCut,
}

pub(super) const STATES: [State; 4] = [
    State::NewCall,
    State::OpenStream,
    State::Reattach,
    State::WatchCut,
];

impl State {
    /// The 99th percentile must not exceed this.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::NewCall | Self::Reattach => 1,
            Self::OpenStream => 5,
            Self::WatchCut => 30,
        })
    }
}

/// Times from the start of a removal until it was effective.
#[derive(Debug, Default)]
pub(super) struct Times(BTreeMap<(Removal, State), Vec<Duration>>);

impl Times {
    pub(super) fn add(&mut self, removal: Removal, state: State, time: Duration) {
        self.0.entry((removal, state)).or_default().push(time);
    }

    /// The 99th percentile, the longest, and how many there are.
    fn of(&self, removal: Removal, state: State) -> Option<(Duration, Duration, usize)> {
        let mut times = self.0.get(&(removal, state))?.clone();
        times.sort();
        let worst = *times.last()?;
        let p99 = *times.get((times.len() * 99).div_ceil(100) - 1)?;
        Some((p99, worst, times.len()))
    }

    /// The cells that are missing or beyond `allowance` times their limit.
    pub(super) fn missed(&self, allowance: u32) -> Vec<String> {
        let cells = REMOVALS
            .into_iter()
            .flat_map(|removal| STATES.map(|state| (removal, state)));
        cells
            .filter_map(|(removal, state)| match self.of(removal, state) {
                None => Some(format!("{removal:?}, {state:?}: not measured")),
                Some((p99, _, _)) if p99 > allowance * state.limit() => {
                    Some(format!("{removal:?}, {state:?}: p99 {p99:.2?}"))
                }
                Some(_) => None,
            })
            .collect()
    }

    /// The lines of the table.
    pub(super) fn lines(&self) -> Vec<String> {
        REMOVALS.into_iter().map(|removal| self.line(removal)).collect()
    }

    fn line(&self, removal: Removal) -> String {
        let cells = STATES.map(|state| match self.of(removal, state) {
            Some((p99, worst, _)) => format!("{}, {}", seconds(p99), seconds(worst)),
            None => "–".to_owned(),
        });
        let samples = STATES.map(|state| self.of(removal, state).map_or(0, |(_, _, count)| count));
        let (most, cut) = (samples[0], samples[3]);
        format!("| {} | {} | {most}, {cut} |", removal.title(), cells.join(" | "))
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Puts the lines into docs/security.md.
///
/// # Errors
/// When the page has no place for them.
pub(super) fn write(lines: &[String]) -> Result<()> {
    let path = repo().join("docs/security.md");
    let page = std::fs::read_to_string(&path)?;
    let (before, rest) = page
        .split_once(BEGIN)
        .context("no begin of the table in the page")?;
    let (_, after) = rest.split_once(END).context("no end of the table in the page")?;
    let now = SystemClock.now().to_string();
    let date = now.get(..10).context("a date")?;
    let table = lines.join("\n");
    std::fs::write(
        &path,
        format!("{before}{BEGIN}\n{HEAD}{table}\n\nMeasured on {date}.\n\n{END}{after}"),
    )?;
    Ok(())
}
