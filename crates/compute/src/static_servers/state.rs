//! State of one manager about sessions on existing servers. It can be rebuilt: the
//! placements in the store decide.

use crate::ComputeSpec;
use session_core::machine::{Cause, Observation};
use session_core::{Route, SessionKey};
use std::collections::HashMap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct State {
    /// By session: one placement serves all its generations.
    pub(super) assignments: HashMap<SessionKey, Assignment>,
    pub(super) released: HashMap<SessionKey, Release>,
    /// Unhealthy endpoints, with the time of the last failure.
    pub(super) unhealthy: HashMap<String, Instant>,
    pub(super) runs: u64,
}

/// Generations that must not be started again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Release {
    pub(super) up_to: u64,
    /// The placement was removed from the store.
    pub(super) confirmed: bool,
}

#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) run: u64,
    /// The newest generation.
    pub(super) generation: u64,
    /// The server; `None` if no placement was possible.
    pub(super) server: Option<String>,
    pub(super) stage: Stage,
    pub(super) stop: CancellationToken,
}

#[derive(Debug, Clone)]
pub(super) enum Stage {
    Starting {
        cause: Cause,
    },
    Ready {
        route: Route,
    },
    /// A permanent failure.
    Failed {
        cause: Cause,
    },
}

impl Stage {
    pub(super) fn observation(&self) -> Observation {
        match self {
            Self::Starting { cause } => Observation::Starting { cause: cause.clone() },
            Self::Ready { route } => Observation::Ready { route: route.clone() },
            Self::Failed { cause } => Observation::Failed {
                cause: cause.clone(),
                permanent: true,
            },
        }
    }
}

/// Maximum number of stored releases and failures; beyond it, the placements decide.
pub(super) const MAX_STORED: usize = 10_000;
impl State {
    pub(super) fn release_of(&self, spec: &ComputeSpec) -> Option<Release> {
        self.released
            .get(&spec.key)
            .copied()
            .filter(|release| spec.generation <= release.up_to)
    }

    /// The assignment of this generation. A newer generation must read the placement
    /// again: another manager can have removed it.
    pub(super) fn assignment_of(&self, spec: &ComputeSpec) -> Option<&Assignment> {
        self.assignments
            .get(&spec.key)
            .filter(|assignment| assignment.generation >= spec.generation)
    }

    pub(super) fn set_assignment(
        &mut self,
        spec: &ComputeSpec,
        server: Option<String>,
        stage: Stage,
    ) -> (u64, CancellationToken) {
        self.remove_assignment(&spec.key);
        if self.assignments.len() >= MAX_STORED {
            // A caller that repeats receives the failure again.
            self.assignments
                .retain(|_, assignment| assignment.server.is_some());
        }
        self.runs += 1;
        let stop = CancellationToken::new();
        let assignment = Assignment {
            run: self.runs,
            generation: spec.generation,
            server,
            stage,
            stop: stop.clone(),
        };
        self.assignments.insert(spec.key.clone(), assignment);
        (self.runs, stop)
    }

    pub(super) fn remove_assignment(&mut self, key: &SessionKey) {
        if let Some(assignment) = self.assignments.remove(key) {
            assignment.stop.cancel();
        }
    }

    pub(super) fn end_run(&mut self, key: &SessionKey, run: u64) {
        if self
            .assignments
            .get(key)
            .is_some_and(|assignment| assignment.run == run)
        {
            self.assignments.remove(key);
        }
    }

    pub(super) fn write(&mut self, spec: &ComputeSpec, run: u64, stage: Stage) {
        if let Some(assignment) = self
            .assignments
            .get_mut(&spec.key)
            .filter(|assignment| assignment.run == run)
        {
            assignment.stage = stage;
        }
    }
}
