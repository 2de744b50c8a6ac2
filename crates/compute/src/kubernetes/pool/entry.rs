//! The pods of pools as data.

use super::PoolKey;
use session_core::Route;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A pod with the label of a pool, as the watch shows it.
#[derive(Debug, Clone)]
pub(in crate::kubernetes) struct SeenPod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Its resource version.
    pub(super) version: String,
    pub(super) key: PoolKey,
    /// Time since its creation.
    pub(super) age: Duration,
    pub(super) is: SeenState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SeenState {
    Waiting,
    Running(std::net::IpAddr),
    /// It will not run, for this reason.
    Failed(String),
    /// It is being deleted.
    Leaving,
}

/// What the keeper must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Create(PoolKey),
    /// Create the Secret of a pod that waits for it.
    CreateSecret {
        uid: String,
    },
    /// Ask the engine until it answers.
    Ask {
        uid: String,
    },
    Delete {
        uid: String,
        why: &'static str,
    },
}

/// A pod that one starter of this process may claim.
#[derive(Debug, Clone)]
pub(in crate::kubernetes) struct Reserved {
    pub(super) key: PoolKey,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) route: Route,
    /// When the session asked for it.
    pub(super) since: Instant,
}

#[derive(Debug, Clone)]
pub(super) enum Stage {
    Starting,
    /// A task asks the engine.
    Asking,
    Available(Route),
    /// A starter of this process claims it.
    Reserved(Route),
    /// Claimed or deleted from here; the watch is behind.
    Gone,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) seen: SeenPod,
    pub(super) stage: Stage,
    /// Its Secret exists or is being created from here.
    pub(super) has_secret: bool,
    /// When its engine first answered.
    pub(super) answered_at: Option<Instant>,
    /// Its failure is counted.
    pub(super) is_counted: bool,
    /// Ends the task that asks.
    pub(super) stop: CancellationToken,
}

impl Entry {
    /// Whether it counts as a pod of its pool.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.stage, Stage::Gone)
            && matches!(self.seen.is, SeenState::Waiting | SeenState::Running(_))
    }

    pub(super) fn is_available(&self) -> bool {
        matches!(self.stage, Stage::Available(_)) && matches!(self.seen.is, SeenState::Running(_))
    }

    pub(super) fn is_starting(&self) -> bool {
        self.is_alive() && matches!(self.stage, Stage::Starting | Stage::Asking)
    }
}
