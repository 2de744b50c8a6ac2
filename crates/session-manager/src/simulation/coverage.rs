//! Coverage: the pairs of a session's state and a fault that occurred in it.

use super::engines;
use super::store::Run;
use super::world::World;
use compute::ComputeSpec;
use session_core::{Session, SessionKey};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    StoreRequestLost,
    StoreAnswerLost,
    StoreWriteLate,
    StoreOutage,
    ClockStep,
    ManagerCrash,
    ReportLost,
    ReportRepeated,
    ReportAnswerLost,
    ProxyVanishes,
    ComputeRequestLost,
    ComputeRequestSlow,
    ComputeRequestRepeated,
    ComputeAnswerLost,
    ComputeEventLost,
    ComputeHangs,
    ComputeFails,
    ComputeCrashes,
    ComputeVanishes,
    ComputeVanishesSilently,
}

impl Fault {
    pub(super) const ALL: [Self; 20] = [
        Self::StoreRequestLost,
        Self::StoreAnswerLost,
        Self::StoreWriteLate,
        Self::StoreOutage,
        Self::ClockStep,
        Self::ManagerCrash,
        Self::ReportLost,
        Self::ReportRepeated,
        Self::ReportAnswerLost,
        Self::ProxyVanishes,
        Self::ComputeRequestLost,
        Self::ComputeRequestSlow,
        Self::ComputeRequestRepeated,
        Self::ComputeAnswerLost,
        Self::ComputeEventLost,
        Self::ComputeHangs,
        Self::ComputeFails,
        Self::ComputeCrashes,
        Self::ComputeVanishes,
        Self::ComputeVanishesSilently,
    ];

    /// Whether a session in this state can meet the fault at all.
    fn can_meet(self, state: &str) -> bool {
        match self {
            // A session that was never ready has had no calls.
            Self::ReportLost | Self::ReportRepeated | Self::ReportAnswerLost | Self::ProxyVanishes => {
                state != "pending provisioning"
            }
            _ => true,
        }
    }
}

/// The states of sessions, as status and phase.
pub(super) const STATES: [&str; 9] = [
    "pending provisioning",
    "pending warming",
    "pending restarting",
    "active ready",
    "idle kept",
    "idle releasing",
    "idle released",
    "closed ended",
    "failed ended",
];

fn state_of(session: &Session) -> &'static str {
    let name = format!("{} {}", session.status().as_str(), session.state.phase().as_str());
    STATES
        .into_iter()
        .find(|state| *state == name)
        .unwrap_or_else(|| panic!("{name} is missing in STATES"))
}

/// Pairs of a state and a fault that occurred.
#[derive(Debug, Default, Clone)]
pub(super) struct Coverage(BTreeSet<(&'static str, Fault)>);

impl Coverage {
    pub(super) fn merge(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// The number of reachable pairs that occurred and that exist, and those that did not occur.
    pub(super) fn reached(&self) -> (usize, usize, Vec<String>) {
        let (seen, missing): (Vec<_>, Vec<_>) = reachable().partition(|pair| self.0.contains(pair));
        let names = missing
            .iter()
            .map(|(state, fault)| format!("{fault:?} while {state}"));
        (seen.len(), seen.len() + missing.len(), names.collect())
    }

    /// The pairs that occurred although they are said to be unreachable.
    pub(super) fn unexpected(&self) -> Vec<String> {
        let pairs = self.0.iter().filter(|(state, fault)| !fault.can_meet(state));
        pairs
            .map(|(state, fault)| format!("{fault:?} while {state}"))
            .collect()
    }
}

impl World {
    /// Records that a session met a fault.
    pub(super) fn meets(&self, key: &SessionKey, fault: Fault) {
        if let Some(session) = self.recorded(key) {
            self.state().coverage.0.insert((state_of(&session), fault));
        }
    }

    /// Records that all sessions met a fault.
    pub(super) fn all_meet(&self, fault: Fault) {
        let sessions = self.all_sessions();
        let states = sessions.iter().map(|session| (state_of(session), fault));
        let states: Vec<_> = states.collect();
        self.state().coverage.0.extend(states);
    }

    /// Whether a fault of a session occurs now: of this normal probability, in millionths, or one of
    /// three times if this seed looks for it.
    pub(super) fn strikes_session(&self, key: &SessionKey, fault: Fault, per_million: u64) -> bool {
        let strikes = if self.looks_for(key, fault) {
            self.one_in(3)
        } else {
            self.strikes(per_million)
        };
        if strikes {
            self.meets(key, fault);
        }
        strikes
    }

    /// Whether this seed looks for the fault in the present state of the session.
    fn looks_for(&self, key: &SessionKey, fault: Fault) -> bool {
        !self.is_calm()
            && self.focus.is_some_and(|focus| focus.fault == fault)
            && self
                .recorded(key)
                .is_some_and(|session| self.focus.is_some_and(|focus| focus.state == state_of(&session)))
    }
}

/// The pair that a seed looks for: rare states are short, and faults at random seldom meet them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Focus {
    state: &'static str,
    fault: Fault,
}

impl Focus {
    /// Two of three seeds look for a pair, one after the other; the others look for none.
    pub(super) fn of(seed: u64) -> Option<Self> {
        if seed.is_multiple_of(3) {
            return None;
        }
        let pairs: Vec<_> = reachable().collect();
        let nth = seed - seed / 3 - 1;
        let (state, fault) = pairs[usize::try_from(nth % pairs.len() as u64).unwrap()];
        Some(Self { state, fault })
    }

    /// Whether compute must exist that its session gave up: a repeated request makes it.
    fn needs_stale_compute(self) -> bool {
        let has_none = matches!(self.state, "idle released" | "closed ended" | "failed ended");
        let has_started = matches!(self.state, "active ready" | "idle kept" | "idle releasing");
        let of_compute = matches!(
            self.fault,
            Fault::ComputeRequestRepeated
                | Fault::ComputeHangs
                | Fault::ComputeFails
                | Fault::ComputeCrashes
                | Fault::ComputeVanishes
                | Fault::ComputeVanishesSilently
        );
        of_compute
            && (has_none
                || self.fault == Fault::ComputeRequestRepeated
                || has_started && self.starts_compute())
    }

    /// Whether the fault is one of compute that starts.
    fn starts_compute(self) -> bool {
        matches!(self.fault, Fault::ComputeHangs | Fault::ComputeFails)
    }
}

fn reachable() -> impl Iterator<Item = (&'static str, Fault)> {
    Fault::ALL
        .into_iter()
        .flat_map(|fault| STATES.map(|state| (state, fault)))
        .filter(|(state, fault)| fault.can_meet(state))
}

/// A session entered a state. Causes the fault that this seed looks for, if it is not one of a request.
pub(super) fn entered(run: &Run, key: &SessionKey) {
    let world = &run.world;
    let Some(focus) = world.focus.filter(|focus| world.looks_for(key, focus.fault)) else {
        return;
    };
    let (run, key, delay) = (run.clone(), key.clone(), world.between(0, 1500));
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        let world = &run.world;
        if !world.looks_for(&key, focus.fault) {
            return;
        }
        match focus.fault {
            Fault::StoreOutage => world.interrupt_store(),
            Fault::ClockStep => world.step_clock_at_random(),
            Fault::ManagerCrash => run.crash("as this seed wants"),
            // The proxy is to have something to report, or to take with it.
            Fault::ReportLost | Fault::ReportRepeated | Fault::ReportAnswerLost | Fault::ProxyVanishes => {
                // Nobody listens at the end of a simulation.
                let _ = world.late_calls.send(key);
            }
            Fault::ComputeCrashes
            | Fault::ComputeVanishes
            | Fault::ComputeVanishesSilently
            | Fault::ComputeEventLost => {
                let live = world.sim.live();
                if let Some((_, generation)) = live.into_iter().find(|(of, _)| *of == key) {
                    engines::end(world, &key, generation, focus.fault);
                }
            }
            _ => {}
        }
    });
}

/// A second copy of a request for compute, which arrives in the state that this seed looks for.
pub(super) fn repeat_in_focus(world: &Arc<World>, spec: &ComputeSpec) {
    let Some(focus) = world.focus.filter(|focus| focus.needs_stale_compute()) else {
        return;
    };
    if world.is_calm() {
        return;
    }
    let (world, spec) = (Arc::clone(world), spec.clone());
    tokio::spawn(async move {
        while !world.is_calm() {
            tokio::time::sleep(world.between(50, 500)).await;
            let exists = || world.sim.live().contains(&(spec.key.clone(), spec.generation));
            if !world.looks_for(&spec.key, focus.fault) || focus.starts_compute() && exists() {
                continue;
            }
            engines::arrive_again(&world, &spec).await;
            tokio::time::sleep(world.between(0, 1500)).await;
            let ends = matches!(
                focus.fault,
                Fault::ComputeCrashes | Fault::ComputeVanishes | Fault::ComputeVanishesSilently
            );
            if ends && exists() && !world.is_calm() {
                engines::end(&world, &spec.key, spec.generation, focus.fault);
            }
            return;
        }
    });
}
