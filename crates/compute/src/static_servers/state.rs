//! What one manager knows of the sessions on existing servers. It is found again
//! when it is lost: the places in the store decide.

use crate::ComputeSpec;
use session_core::machine::{Cause, Observation};
use session_core::{Route, SessionKey};
use std::collections::HashMap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct State {
    /// By session: one place serves all its generations.
    pub(super) uses: HashMap<SessionKey, Use>,
    pub(super) released: HashMap<SessionKey, Release>,
    /// Endpoints that did not answer, and when that was seen last.
    pub(super) unhealthy: HashMap<String, Instant>,
    pub(super) runs: u64,
}

/// Generations that must not come back.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Release {
    pub(super) up_to: u64,
    /// The store has taken the place back.
    pub(super) confirmed: bool,
}

#[derive(Debug)]
pub(super) struct Use {
    pub(super) run: u64,
    /// The newest generation that asked for it.
    pub(super) generation: u64,
    /// The server where it has its place; none if it never came to that.
    pub(super) place: Option<String>,
    pub(super) stage: Stage,
    pub(super) stop: CancellationToken,
}

#[derive(Debug, Clone)]
pub(super) enum Stage {
    Starting {
        detail: String,
    },
    Ready {
        route: Route,
    },
    /// Asking again cannot help.
    Failed {
        cause: Cause,
    },
}

impl Stage {
    pub(super) fn observation(&self) -> Observation {
        match self {
            Self::Starting { detail } => Observation::Starting {
                detail: detail.clone(),
            },
            Self::Ready { route } => Observation::Ready { route: route.clone() },
            Self::Failed { cause } => Observation::Failed {
                cause: cause.clone(),
                permanent: true,
            },
        }
    }
}

/// More released sessions are not remembered one by one; the places decide.
pub(super) const REMEMBER_MANY: usize = 10_000;
impl State {
    pub(super) fn release_of(&self, spec: &ComputeSpec) -> Option<Release> {
        self.released
            .get(&spec.key)
            .copied()
            .filter(|release| spec.generation <= release.up_to)
    }

    /// What is known of this generation. One place serves all of a session's
    /// generations, but for a newer one it must be looked up: another manager
    /// may have given it back in between.
    pub(super) fn use_of(&self, spec: &ComputeSpec) -> Option<&Use> {
        self.uses
            .get(&spec.key)
            .filter(|used| used.generation >= spec.generation)
    }

    pub(super) fn put_use(
        &mut self,
        spec: &ComputeSpec,
        place: Option<String>,
        stage: Stage,
    ) -> (u64, CancellationToken) {
        self.drop_use(&spec.key);
        if self.uses.len() >= REMEMBER_MANY {
            // Whoever still asks is told again.
            self.uses.retain(|_, used| used.place.is_some());
        }
        self.runs += 1;
        let stop = CancellationToken::new();
        let used = Use {
            run: self.runs,
            generation: spec.generation,
            place,
            stage,
            stop: stop.clone(),
        };
        self.uses.insert(spec.key.clone(), used);
        (self.runs, stop)
    }

    pub(super) fn drop_use(&mut self, key: &SessionKey) {
        if let Some(used) = self.uses.remove(key) {
            used.stop.cancel();
        }
    }

    pub(super) fn end_run(&mut self, key: &SessionKey, run: u64) {
        if self.uses.get(key).is_some_and(|used| used.run == run) {
            self.uses.remove(key);
        }
    }

    pub(super) fn write(&mut self, spec: &ComputeSpec, run: u64, stage: Stage) {
        if let Some(used) = self.uses.get_mut(&spec.key).filter(|used| used.run == run) {
            used.stage = stage;
        }
    }
}
