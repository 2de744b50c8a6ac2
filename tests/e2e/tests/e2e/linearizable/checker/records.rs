//! One version of a session has one content, whichever service returns it.

use super::super::history::{Event, Fault, Life, Outcome, Record};
use super::{Anomaly, Kind, may_be_lost};
use std::collections::BTreeMap;

pub(super) fn check(session: u32, events: &[&Event], faults: &[Fault], anomalies: &mut Vec<Anomaly>) {
    let mut known: BTreeMap<u64, &Record> = BTreeMap::new();
    for event in events {
        let Outcome::Record(record) = &event.outcome else {
            continue;
        };
        // The record of a lost change may have been replaced by another one of its version.
        if may_be_lost(faults, event.returned) || may_be_lost(faults, event.invoked) {
            continue;
        }
        match known.get(&record.version) {
            Some(first) if !agree(first, record) => anomalies.push(Anomaly {
                session,
                kind: Kind::SplitVersion,
                what: format!("{first:?} and {record:?}"),
            }),
            Some(first) if first.name.is_some() => {}
            Some(_) | None => {
                known.insert(record.version, record);
            }
        }
    }
    ends_stay(session, &known, anomalies);
}

fn agree(one: &Record, other: &Record) -> bool {
    let same = |one: Option<&str>, other: Option<&str>| one.is_none() || other.is_none() || one == other;
    one.id == other.id
        && one.generation == other.generation
        && one.epoch == other.epoch
        && one.life == other.life
        && same(one.name.as_deref(), other.name.as_deref())
}

/// A higher version is not of an older generation, and none follows the end.
fn ends_stay(session: u32, known: &BTreeMap<u64, &Record>, anomalies: &mut Vec<Anomaly>) {
    let records: Vec<&&Record> = known.values().collect();
    for pair in records.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        if before.id == after.id
            && (before.life != Life::Live && after.life == Life::Live || before.generation > after.generation)
        {
            anomalies.push(Anomaly {
                session,
                kind: Kind::SplitVersion,
                what: format!("{before:?}, later {after:?}"),
            });
        }
    }
}
