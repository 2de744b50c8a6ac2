//! session-manager's metrics.

use service_kit::metrics::{Counter, Family, Registry};
use session_core::Status;
use session_core::machine::Effect;
use std::sync::Arc;

service_kit::labels! {
    /// Where a session stands.
    pub(crate) enum To("to") {
        /// Compute is being made ready.
        Pending => "pending",
        /// Compute answers.
        Active => "active",
        /// Unused.
        Idle => "idle",
        /// Over.
        Closed => "closed",
        /// Over, because it could not go on.
        Failed => "failed",
    }
}

service_kit::labels! {
    /// Work that a change starts.
    pub(crate) enum Kind("effect") {
        /// Compute is to be made.
        Ensure => "ensure",
        /// Compute is to be given back.
        Release => "release",
    }
}

service_kit::labels! {
    /// How it went.
    pub(crate) enum Outcome("outcome") {
        /// As it should.
        Ok => "ok",
        /// Not, and it will be tried again.
        Failed => "failed",
    }
}

/// All of them. Registering shows them at zero.
#[derive(Debug)]
pub(crate) struct Metrics {
    changes: Arc<Family<To, Counter>>,
    effects: Arc<Family<(Kind, Outcome), Counter>>,
    looks: Arc<Family<Outcome, Counter>>,
    resolves: Arc<Family<To, Counter>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            changes: registry.counter(
                "session_manager_changes_total",
                "Changes of sessions, by the status after.",
            ),
            effects: registry.counter("session_manager_effects_total", "Starts of work on compute."),
            looks: registry.counter(
                "session_manager_looks_total",
                "Sessions looked at because they were due.",
            ),
            resolves: registry.counter(
                "session_manager_resolves_total",
                "Routes told to proxies, by the session's status.",
            ),
        }
    }

    pub(crate) fn changed(&self, to: Status) {
        self.changes.at(label(to)).inc();
    }

    pub(crate) fn started(&self, effect: &Effect, ok: bool) {
        let kind = match effect {
            Effect::Ensure { .. } => Kind::Ensure,
            Effect::Release { .. } => Kind::Release,
        };
        self.effects.at((kind, outcome(ok))).inc();
    }

    pub(crate) fn looked(&self, ok: bool) {
        self.looks.at(outcome(ok)).inc();
    }

    pub(crate) fn resolved(&self, status: Status) {
        self.resolves.at(label(status)).inc();
    }
}

const fn outcome(ok: bool) -> Outcome {
    if ok { Outcome::Ok } else { Outcome::Failed }
}

const fn label(status: Status) -> To {
    match status {
        Status::Pending => To::Pending,
        Status::Active => To::Active,
        Status::Idle => To::Idle,
        Status::Closed => To::Closed,
        Status::Failed => To::Failed,
    }
}
