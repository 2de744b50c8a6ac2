//! session-manager's metrics.

use service_kit::metrics::{Counter, DurationGauge, Family, Gauge, Histogram, Label, Registry, SECONDS};
use session_core::machine::Effect;
use session_core::session::Making;
use session_core::{Session, State, Status};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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
    /// What the door did with a call.
    pub(crate) enum Door("outcome") {
        /// Let it in.
        Open => "open",
        /// It showed no credential that is known.
        Unknown => "unknown",
        /// It was not the caller's to make.
        Refused => "refused",
        /// There was too much of it.
        Limited => "limited",
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

service_kit::labels! {
    /// What a live session is.
    pub(crate) enum Live("status") {
        /// Compute is being made ready.
        Pending => "pending",
        /// Compute answers.
        Active => "active",
        /// Unused.
        Idle => "idle",
    }
}

service_kit::labels! {
    /// Why compute was made.
    pub(crate) enum Provisioned("phase") {
        /// For the first time.
        Provisioning => "provisioning",
        /// An idle session was called.
        Warming => "warming",
        /// The last one was lost.
        Restarting => "restarting",
    }
}

service_kit::labels! {
    /// How compute stands to the records.
    pub(crate) enum Standing("standing") {
        /// Its session uses it.
        Wanted => "wanted",
        /// Its session gives it back.
        Leaving => "leaving",
        /// Its session ended.
        Ended => "ended",
        /// Its session has a newer generation.
        Replaced => "replaced",
        /// There is no record of its session.
        Unknown => "quarantined",
        /// It is newer than the record of its session.
        Ahead => "ahead",
        /// It is of another installation.
        Foreign => "foreign",
    }
}

service_kit::labels! {
    /// Why compute may be given back.
    pub(crate) enum Proof("proof") {
        /// Its session ended.
        Ended => "ended",
        /// Its session has a newer generation.
        Replaced => "replaced",
        /// It was without a record for the whole quarantine.
        Quarantined => "quarantined",
    }
}

/// All of them. Registering shows them at zero.
#[derive(Debug)]
pub(crate) struct Metrics {
    changes: Arc<Family<To, Counter>>,
    effects: Arc<Family<(Kind, Outcome), Counter>>,
    looks: Arc<Family<Outcome, Counter>>,
    resolves: Arc<Family<To, Counter>>,
    reports: Arc<Family<Outcome, Counter>>,
    activity_writes: Arc<Family<Outcome, Counter>>,
    idle_put_off: Arc<Family<(), Counter>>,
    doors: Arc<Family<Door, Counter>>,
    audit_left_out: Arc<Family<(), Counter>>,
    sessions: Arc<Family<Live, Gauge>>,
    due_lag: Arc<Family<(), DurationGauge>>,
    provisioning: Arc<Family<Provisioned, Histogram>>,
    compute: Arc<Family<Standing, Gauge>>,
    brake: Arc<Family<(), Gauge>>,
    passes: Arc<Family<Outcome, Counter>>,
    reconcile_releases: Arc<Family<Proof, Counter>>,
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
                "session_manager_reconciliations_total",
                "Sessions looked at because they were due.",
            ),
            resolves: registry.counter(
                "session_manager_routes_resolved_total",
                "Routes told to proxies, by the session's status.",
            ),
            reports: registry.counter(
                "session_manager_activity_reports_total",
                "Reports of activity that proxies sent.",
            ),
            activity_writes: registry.counter(
                "session_manager_activity_writes_total",
                "Writes of one session's activity to the store.",
            ),
            idle_put_off: registry.counter(
                "session_manager_idle_timeouts_deferred_total",
                "Idle clocks that ran out while not every proxy had reported.",
            ),
            doors: registry.counter(
                "session_manager_calls_total",
                "Calls of the APIs, by what was decided before they were looked at.",
            ),
            audit_left_out: registry.counter(
                "session_manager_audit_records_dropped_total",
                "Refusals that came too fast to be in the audit trail.",
            ),
            sessions: registry.gauge("session_manager_sessions", "Live sessions, by status."),
            due_lag: registry.duration_gauge(
                "session_manager_due_lag_seconds",
                "How long the session that is due longest has been due.",
            ),
            provisioning: registry.histogram(
                "session_manager_provisioning_duration_seconds",
                "Time from the decision to make compute until it was ready, by phase.",
                SECONDS,
            ),
            compute: registry.gauge(
                "session_manager_compute",
                "Compute at the last comparison, by how it stands to the records.",
            ),
            brake: registry.gauge(
                "session_manager_orphan_collection_halted",
                "1 while so much compute is superfluous that none is given back.",
            ),
            passes: registry.counter(
                "session_manager_orphan_collection_passes_total",
                "Comparisons of compute with the records.",
            ),
            reconcile_releases: registry.counter(
                "session_manager_orphans_released_total",
                "Compute that was given back because a comparison found it.",
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

    pub(crate) fn reported(&self, ok: bool) {
        self.reports.at(outcome(ok)).inc();
    }

    pub(crate) fn activity_written(&self, ok: bool) {
        self.activity_writes.at(outcome(ok)).inc();
    }

    pub(crate) fn idle_put_off(&self) {
        self.idle_put_off.at(()).inc();
    }

    pub(crate) fn door(&self, door: Door) {
        self.doors.at(door).inc();
    }

    pub(crate) fn audit_left_out(&self) {
        self.audit_left_out.at(()).inc();
    }

    pub(crate) fn sessions(&self, counts: &BTreeMap<Status, u64>) {
        for (status, live) in [
            (Status::Pending, Live::Pending),
            (Status::Active, Live::Active),
            (Status::Idle, Live::Idle),
        ] {
            let count = counts.get(&status).copied().unwrap_or(0);
            self.sessions
                .at(live)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn due_lag(&self, lag: Duration) {
        self.due_lag.at(()).set(lag);
    }

    /// Observes the provisioning time if this committed change ended it. A
    /// generation begins when the session is created or when it last rose.
    pub(crate) fn provisioned(&self, before: &Session, after: &Session) {
        if let (State::Pending { making, .. }, State::Active { .. }, Some(ready)) =
            (&before.state, &after.state, after.active_at)
        {
            let begun = after.replaced_at.unwrap_or(after.created_at);
            let phase = match making {
                Making::Provisioning => Provisioned::Provisioning,
                Making::Warming => Provisioned::Warming,
                Making::Restarting => Provisioned::Restarting,
            };
            self.provisioning.at(phase).observe(ready.since(begun));
        }
    }

    pub(crate) fn compared(&self, counts: &BTreeMap<Standing, u64>, braked: bool) {
        for standing in Standing::ALL {
            let count = counts.get(standing).copied().unwrap_or(0);
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.compute.at(*standing).set(count);
        }
        self.brake.at(()).set(i64::from(braked));
    }

    pub(crate) fn reconciled(&self, ok: bool) {
        self.passes.at(outcome(ok)).inc();
    }

    pub(crate) fn reconcile_released(&self, proof: Proof) {
        self.reconcile_releases.at(proof).inc();
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
