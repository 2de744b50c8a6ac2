//! Linearizability of the calls at the APIs: a search, after Wing and Gong with Lowe's memory of
//! failed states, for an order of the calls of one session in which each takes effect between its
//! begin and its end, and every answer fits.

use super::super::history::{Call, Event, Fault, Micros, Outcome};
use super::model::{State, Tokens};
use super::{Anomaly, Judged, Kind, REPAIR, SECOND};
use std::collections::HashSet;

/// A call without an answer takes effect within this time after it was given up, or never.
const LATE_EFFECT: Micros = 60 * SECOND;
/// States that one search may visit.
const MAX_VISITED: usize = 1_000_000;

/// What takes effect at one moment of an interval.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    kind: StepKind<'a>,
    begin: Micros,
    end: Micros,
    /// Need not take effect.
    optional: bool,
}

#[derive(Debug, Clone, Copy)]
enum StepKind<'a> {
    Call(&'a Event),
    /// A fail-over: begin, loss, end, and the repetition of what must not be lost.
    Before,
    Loss,
    After,
    /// After this many of them.
    Repair(usize),
    /// Once no client reaches the former primary.
    LastRepair(usize),
}

pub(super) fn check(
    session: u32,
    events: &[&Event],
    faults: &[Fault],
    anomalies: &mut Vec<Anomaly>,
    judged: &mut Judged,
) {
    let tokens: Tokens = events
        .iter()
        .filter_map(|event| match &event.outcome {
            Outcome::Issued { token, epoch } => Some((token.clone(), *epoch)),
            Outcome::Record(_)
            | Outcome::AllRevoked { .. }
            | Outcome::Done
            | Outcome::Answered { .. }
            | Outcome::Refused(_)
            | Outcome::Failed(_)
            | Outcome::Unknown(_) => None,
        })
        .collect();
    let calls = steps_of(events);
    let mut strict = Search::new(calls.clone(), &tokens);
    let mut outcome = strict.run();
    if !matches!(outcome, Found::Order) {
        let mut steps = calls;
        steps.extend(fail_overs(events, faults));
        if steps.len() > strict.steps.len() {
            let mut lossy = Search::new(steps, &tokens);
            outcome = lossy.run();
            if matches!(outcome, Found::Order) {
                judged.lossy += 1;
                judged
                    .losses
                    .push(format!("session {session}: {}", strict.explanation()));
            } else {
                strict = lossy;
            }
        }
    }
    let (kind, what) = match outcome {
        Found::Order => return,
        Found::Nothing => (Kind::NotLinearizable, strict.explanation()),
        Found::TooMuch => (Kind::Undecided, format!("{MAX_VISITED} states visited")),
    };
    anomalies.push(Anomaly { session, kind, what });
}

fn steps_of<'a>(events: &[&'a Event]) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for event in events {
        let unknown = match &event.outcome {
            Outcome::Failed(_) => continue,
            Outcome::Unknown(_) if !event.call.writes() => continue,
            Outcome::Unknown(_) => true,
            Outcome::Record(_)
            | Outcome::Issued { .. }
            | Outcome::AllRevoked { .. }
            | Outcome::Done
            | Outcome::Answered { .. }
            | Outcome::Refused(_) => false,
        };
        // Proxies answer from caches: they have limits instead.
        if matches!(event.call, Call::Spark { .. }) {
            continue;
        }
        let late = if unknown { LATE_EFFECT } else { 0 };
        steps.push(Step {
            kind: StepKind::Call(event),
            begin: event.invoked,
            end: event.returned + late,
            optional: unknown,
        });
    }
    steps
}

/// The steps of the fail-overs during which the session was written.
fn fail_overs<'a>(events: &[&Event], faults: &[Fault]) -> Vec<Step<'a>> {
    let (mut steps, mut count) = (Vec::new(), 0);
    for fault in faults.iter().filter(|fault| fault.loses) {
        let written = |event: &&Event| {
            event.call.writes() && event.invoked <= fault.ended && event.returned + LATE_EFFECT >= fault.begun
        };
        if !events.iter().any(written) {
            continue;
        }
        count += 1;
        let mut add = |kind, begin, end, optional| {
            steps.push(Step {
                kind,
                begin,
                end,
                optional,
            });
        };
        let (begun, ended) = (fault.begun, fault.ended);
        add(StepKind::Before, begun, begun, false);
        add(StepKind::Loss, begun, ended, false);
        add(StepKind::Repair(count), begun, ended, true);
        add(StepKind::After, ended, ended, false);
        add(StepKind::LastRepair(count), ended, ended + REPAIR, false);
    }
    steps
}

enum Found {
    Order,
    Nothing,
    TooMuch,
}

struct Search<'a> {
    steps: Vec<Step<'a>>,
    tokens: &'a Tokens,
    visited: HashSet<(Vec<u64>, State)>,
    /// The longest order that was found: its length, the state, and what is left.
    longest: (usize, Option<(State, Vec<usize>)>),
}

impl<'a> Search<'a> {
    fn new(mut steps: Vec<Step<'a>>, tokens: &'a Tokens) -> Self {
        steps.sort_by_key(|step| (step.begin, step.end));
        Self {
            steps,
            tokens,
            visited: HashSet::new(),
            longest: (0, None),
        }
    }

    fn run(&mut self) -> Found {
        let first = (vec![0_u64; self.steps.len().div_ceil(64)], State::new());
        let mut open = vec![first];
        while let Some((done, state)) = open.pop() {
            let left: Vec<usize> = (0..self.steps.len())
                .filter(|step| !is_done(&done, *step))
                .collect();
            if left.iter().all(|step| self.steps[*step].optional) {
                return Found::Order;
            }
            let length = self.steps.len() - left.len();
            if length >= self.longest.0 {
                self.longest = (length, Some((state.clone(), left.clone())));
            }
            if self.visited.len() > MAX_VISITED {
                return Found::TooMuch;
            }
            // Whatever takes effect now does so before the first end of the others.
            let mandatory = left
                .iter()
                .map(|step| &self.steps[*step])
                .filter(|step| !step.optional);
            let limit = mandatory.map(|step| step.end).min().unwrap_or(Micros::MAX);
            let all = 0..self.steps.len();
            let begins = all
                .filter(|step| is_done(&done, *step))
                .map(|step| self.steps[step].begin);
            let now = begins.max().unwrap_or(0);
            let mut next = Vec::new();
            for step in left {
                if self.steps[step].begin > limit {
                    break;
                }
                // Too late for it.
                if self.steps[step].end < now {
                    continue;
                }
                let states = self.apply(&self.steps[step], &state);
                // A call without effect is placed first.
                let is_call = matches!(self.steps[step].kind, StepKind::Call(_));
                if is_call && !self.steps[step].optional && states == [state.clone()] {
                    next = vec![(with(&done, step), state.clone())];
                    break;
                }
                next.extend(states.into_iter().map(|state| (with(&done, step), state)));
            }
            // Depth first, the earliest begin first.
            next.reverse();
            for place in next {
                if self.visited.insert(place.clone()) {
                    open.push(place);
                }
            }
        }
        Found::Nothing
    }

    fn apply(&self, step: &Step<'_>, state: &State) -> Vec<State> {
        match step.kind {
            StepKind::Call(event) => state.after(event, self.tokens),
            StepKind::Before => vec![state.with_past()],
            StepKind::Loss => state.failed_over(),
            StepKind::After => vec![state.without_past()],
            StepKind::Repair(after) if state.fail_overs < after => Vec::new(),
            StepKind::LastRepair(after) if state.fail_overs < after || state.is_split() => Vec::new(),
            StepKind::Repair(_) | StepKind::LastRepair(_) => state.repaired(),
        }
    }

    /// Where the longest order ends.
    fn explanation(&self) -> String {
        let Some((state, left)) = &self.longest.1 else {
            return "no order at all".to_owned();
        };
        let next: Vec<String> = left
            .iter()
            .map(|step| &self.steps[*step])
            .filter(|step| !step.optional)
            .take(4)
            .map(|step| format!("{:?}", step.kind))
            .collect();
        format!(
            "{} of {} calls have an order, up to {state:?}; none of these fits: {}",
            self.longest.0,
            self.steps.len(),
            next.join("; ")
        )
    }
}

fn is_done(done: &[u64], step: usize) -> bool {
    done[step / 64] & (1 << (step % 64)) != 0
}

fn with(done: &[u64], step: usize) -> Vec<u64> {
    let mut done = done.to_vec();
    done[step / 64] |= 1 << (step % 64);
    done
}
