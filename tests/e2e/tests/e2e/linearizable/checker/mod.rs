//! Judges histories. It knows what Berth promises (docs/lifecycle.md, docs/security.md) and uses
//! none of Berth's code.
//!
//! ```text
//! sequence: is there an order of all calls of a session that explains every answer?   model: one session
//! records:  one version of a session has one content        bounds: what proxies may do, and until when
//! ```

mod bounds;
mod model;
mod records;
mod sequence;
#[cfg(test)]
mod tests;

use super::history::{Event, Fault, History, Micros};
use std::collections::BTreeMap;
use std::fmt;

/// A second.
const SECOND: Micros = 1_000_000;
/// After a fail-over, the writer of an end or a revocation repeats it within this time.
const REPAIR: Micros = 10 * SECOND;

/// What is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Anomaly {
    pub(super) session: u32,
    pub(super) kind: Kind,
    pub(super) what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// No order explains the answers.
    NotLinearizable,
    /// The search for an order was given up.
    Undecided,
    /// One version with two contents.
    SplitVersion,
    /// A proxy accepted a call too long after the session had ended.
    StaleAfterEnd,
    /// A proxy accepted a token too long after its revocation.
    StaleToken,
    /// An older compute answered too long after a newer one.
    StaleGeneration,
    /// A proxy refused a call for an end or a revocation that no client requested.
    RefusedWithoutCause,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}: {:?}: {}", self.session, self.kind, self.what)
    }
}

/// What was judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(super) sessions: usize,
    pub(super) calls: usize,
    /// Calls through proxies after an end or a revocation, under the limit of calm times.
    pub(super) calm: usize,
    /// The same, under the limit of times with faults.
    pub(super) disturbed: usize,
    /// Sessions for which a fail-over lost a write that Berth does not wait for.
    pub(super) lossy: usize,
    /// Why these have no order without a loss.
    pub(super) losses: Vec<String>,
}

/// All anomalies of a history.
pub(super) fn check(history: &History) -> (Vec<Anomaly>, Judged) {
    let mut sessions: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
    for event in &history.events {
        sessions.entry(event.session).or_default().push(event);
    }
    let mut anomalies = Vec::new();
    let mut judged = Judged {
        sessions: sessions.len(),
        calls: history.events.len(),
        ..Judged::default()
    };
    for (session, events) in &mut sessions {
        events.sort_by_key(|event| (event.invoked, event.returned));
        sequence::check(*session, events, &history.faults, &mut anomalies, &mut judged);
        records::check(*session, events, &history.faults, &mut anomalies);
        bounds::check(*session, events, &history.faults, &mut anomalies, &mut judged);
    }
    (anomalies, judged)
}

/// Whether the moment is in a fail-over, or so soon afterwards that what it lost may be missing.
fn may_be_lost(faults: &[Fault], at: Micros) -> bool {
    faults
        .iter()
        .any(|fault| fault.loses && fault.begun <= at && at <= fault.ended)
}
