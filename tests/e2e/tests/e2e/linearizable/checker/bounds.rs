//! Proxies answer from caches. What they accept is right up to a limit of time after a change was
//! acknowledged, and what they refuse has a cause that a client requested.

use super::super::history::{Call, Event, Fault, Life, Micros, Outcome, Refusal};
use super::model::Tokens;
use super::{Anomaly, Judged, Kind, REPAIR, SECOND};
use std::collections::BTreeMap;

/// New calls are refused at p99 within 1 s (docs/security.md); on a busy machine each within this.
const CALM: Micros = 2 * SECOND;
/// A proxy that gets no changes: 12 s, then `routes.stale_if_unreachable`, 15 s in this test.
const DISTURBED: Micros = 30 * SECOND;
/// After a fault its parts start, connect, and read again.
const AFTERMATH: Micros = 15 * SECOND;

/// The limit between these moments.
fn limit(faults: &[Fault], from: Micros, to: Micros) -> Micros {
    let disturbs = |fault: &Fault| fault.begun <= to && fault.ended + AFTERMATH >= from;
    if faults.iter().any(disturbs) {
        DISTURBED
    } else {
        CALM
    }
}

pub(super) fn check(
    session: u32,
    events: &[&Event],
    faults: &[Fault],
    anomalies: &mut Vec<Anomaly>,
    judged: &mut Judged,
) {
    let known = Known::from(events);
    for event in events {
        let Call::Spark { token, .. } = &event.call else {
            continue;
        };
        let found = match &event.outcome {
            Outcome::Answered { generation } => known.stale(event, token, *generation, faults),
            Outcome::Refused(refusal) if !has_cause(events, faults, event, *refusal, token) => {
                vec![(Kind::RefusedWithoutCause, format!("{refusal:?}"))]
            }
            Outcome::Refused(_) => Vec::new(),
            Outcome::Record(_)
            | Outcome::Issued { .. }
            | Outcome::AllRevoked { .. }
            | Outcome::Done
            | Outcome::Failed(_)
            | Outcome::Unknown(_) => continue,
        };
        let since = known.ended.into_iter().chain(known.revoked(token)).min();
        if let Some(since) = since.filter(|since| *since < event.invoked) {
            let limit = limit(faults, since, event.invoked);
            judged.calm += usize::from(limit == CALM);
            judged.disturbed += usize::from(limit == DISTURBED);
        }
        anomalies.extend(found.into_iter().map(|(kind, why)| Anomaly {
            session,
            kind,
            what: format!("{why}: {event:?}"),
        }));
    }
}

/// An end or a revocation in a fail-over may be lost until its writer repeats it.
fn effective(faults: &[Fault], since: Micros) -> Micros {
    let losing = faults.iter().filter(|fault| fault.loses);
    let in_it = losing.filter(|fault| fault.begun <= since && since <= fault.ended);
    in_it.map(|fault| fault.ended + REPAIR).max().unwrap_or(since)
}

/// Since when everybody may know what.
struct Known {
    ended: Option<Micros>,
    revoked: BTreeMap<String, Micros>,
    /// The epochs below which tokens are revoked.
    epochs: Vec<(u64, Micros)>,
    tokens: Tokens,
    /// When a generation had first answered.
    generations: BTreeMap<u64, Micros>,
}

impl Known {
    fn from(events: &[&Event]) -> Self {
        let mut known = Self {
            ended: None,
            revoked: BTreeMap::new(),
            epochs: Vec::new(),
            tokens: Tokens::new(),
            generations: BTreeMap::new(),
        };
        for event in events {
            known.learn(event);
        }
        known
    }

    fn learn(&mut self, event: &Event) {
        let at = event.returned;
        let mut ended = false;
        match (&event.outcome, &event.call) {
            (Outcome::Record(record), _) => {
                ended = record.life != Life::Live;
                self.epochs.push((record.epoch, at));
            }
            (Outcome::Issued { token, epoch }, _) => {
                self.tokens.insert(token.clone(), *epoch);
            }
            (Outcome::AllRevoked { epoch }, _) => self.epochs.push((*epoch, at)),
            (Outcome::Done, Call::Revoke { token })
            | (Outcome::Refused(Refusal::TokenRevoked), Call::Resolve { token }) => {
                let first = self.revoked.entry(token.clone()).or_insert(at);
                *first = at.min(*first);
            }
            (Outcome::Answered { generation }, _) => {
                let first = self.generations.entry(*generation).or_insert(at);
                *first = at.min(*first);
            }
            // What one proxy knows the other need not know.
            (Outcome::Refused(Refusal::Ended), call) => ended = !matches!(call, Call::Spark { .. }),
            (Outcome::Refused(_) | Outcome::Done | Outcome::Failed(_) | Outcome::Unknown(_), _) => {}
        }
        if ended {
            self.ended = Some(self.ended.map_or(at, |known| known.min(at)));
        }
    }

    fn revoked(&self, token: &str) -> Option<Micros> {
        let by_epoch = self.tokens.get(token).and_then(|own| {
            let newer = self.epochs.iter().filter(|(epoch, _)| epoch > own);
            newer.map(|(_, at)| *at).min()
        });
        self.revoked.get(token).copied().into_iter().chain(by_epoch).min()
    }

    /// What is stale about an answer.
    fn stale(&self, event: &Event, token: &str, generation: u64, faults: &[Fault]) -> Vec<(Kind, String)> {
        let too_late =
            |since: &Micros| event.invoked > effective(faults, *since) + limit(faults, *since, event.invoked);
        let acknowledged = [
            (Kind::StaleAfterEnd, self.ended),
            (Kind::StaleToken, self.revoked(token)),
        ];
        let mut found: Vec<(Kind, String)> = acknowledged
            .into_iter()
            .filter_map(|(kind, since)| Some((kind, since.filter(too_late)?)))
            .map(|(kind, since)| (kind, format!("acknowledged at {since}")))
            .collect();
        let newer = self.newer_generation(generation, event.invoked, faults);
        let newer = newer.map(|(newer, at)| format!("generation {newer} answered at {at}"));
        found.extend(newer.map(|why| (Kind::StaleGeneration, why)));
        found
    }

    /// A newer generation that had answered long before a call of this one began.
    fn newer_generation(&self, generation: u64, invoked: Micros, faults: &[Fault]) -> Option<(u64, Micros)> {
        let newer = self.generations.range(generation + 1..);
        newer
            .map(|(newer, at)| (*newer, *at))
            .find(|(_, at)| invoked > at + limit(faults, *at, invoked))
    }
}

/// Whether a client requested the cause of the refusal before it.
fn has_cause(events: &[&Event], faults: &[Fault], refused: &Event, refusal: Refusal, token: &str) -> bool {
    let before =
        |event: &&&Event| event.invoked <= refused.returned && !matches!(event.outcome, Outcome::Failed(_));
    match refusal {
        Refusal::TokenRevoked => events.iter().filter(before).any(|event| match &event.call {
            Call::RevokeAll => true,
            Call::Revoke { token: revoked } => revoked == token,
            Call::Create { .. }
            | Call::Describe
            | Call::Rename { .. }
            | Call::Close
            | Call::Issue
            | Call::Resolve { .. }
            | Call::Spark { .. } => false,
        }),
        Refusal::Ended | Refusal::Absent | Refusal::EndedOrAbsent => {
            let closed = |event: &&Event| matches!(event.call, Call::Close);
            let failed = |event: &&Event| matches!(&event.outcome, Outcome::Record(record) if record.life == Life::Failed);
            // The fail-over may have lost the create.
            let lost = |event: &&Event| {
                let create = matches!(event.call, Call::Create { .. });
                create
                    && faults.iter().any(|fault| {
                        fault.loses
                            && fault.begun <= event.returned
                            && event.invoked <= fault.ended
                            && fault.begun <= refused.returned
                    })
            };
            events.iter().any(failed)
                || events
                    .iter()
                    .filter(before)
                    .any(|event| closed(event) || lost(event))
        }
    }
}
