//! session-manager's metrics.

use compute::warm_pools::WarmPoolStatus;
use service_kit::metrics::{
    Counter, DurationGauge, Family, Gauge, Histogram, Label, Registry, SECONDS, Series,
};
use session_core::machine::Effect;
use session_core::session::Making;
use session_core::{Session, State, Status};
use session_store::{Error, Memory, OutageCause};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

service_kit::labels! {
    /// Status of a session.
    pub(crate) enum SessionStatus("status") {
        /// Compute is starting.
        Pending => "pending",
        /// Compute is ready.
        Active => "active",
        /// Unused.
        Idle => "idle",
        /// Ended as requested or by a timeout.
        Closed => "closed",
        /// Ended by an error.
        Failed => "failed",
    }
}

service_kit::labels! {
    /// Decision of the admission layer about a call.
    pub(crate) enum AdmissionOutcome("outcome") {
        /// Admitted.
        Admitted => "admitted",
        /// Rejected: no valid credential.
        Unauthenticated => "unauthenticated",
        /// Rejected: the caller is not authorized.
        PermissionDenied => "permission_denied",
        /// Rejected: a limit is exceeded.
        LimitExceeded => "limit_exceeded",
    }
}

service_kit::labels! {
    /// Kind of an effect.
    pub(crate) enum Kind("effect") {
        /// Start compute.
        Ensure => "ensure",
        /// Release compute.
        Release => "release",
    }
}

service_kit::labels! {
    /// Outcome of an operation.
    pub(crate) enum Outcome("outcome") {
        /// Succeeded.
        Ok => "ok",
        /// Failed; it will be retried.
        Failed => "failed",
    }
}

service_kit::labels! {
    /// Status of a live session.
    pub(crate) enum Live("status") {
        /// Compute is starting.
        Pending => "pending",
        /// Compute is ready.
        Active => "active",
        /// Unused.
        Idle => "idle",
    }
}

service_kit::labels! {
    /// Why compute was started.
    pub(crate) enum Provisioned("phase") {
        /// First compute of the session.
        Provisioning => "provisioning",
        /// A call woke an idle session.
        Warming => "warming",
        /// The previous compute was lost.
        Restarting => "restarting",
    }
}

service_kit::labels! {
    /// Compute compared with the record of its session.
    pub(crate) enum ComputeState("state") {
        /// In use by its session.
        InUse => "in_use",
        /// Being released by its session.
        Releasing => "releasing",
        /// The session ended.
        SessionEnded => "session_ended",
        /// The session has a newer generation.
        Replaced => "replaced",
        /// The session has no record.
        Quarantined => "quarantined",
        /// Newer than the record of its session.
        NewerThanRecord => "newer_than_record",
        /// Compute of another installation.
        OtherInstallation => "other_installation",
    }
}

service_kit::labels! {
    /// Proof that compute is an orphan.
    pub(crate) enum Proof("proof") {
        /// The session ended.
        SessionEnded => "session_ended",
        /// The session has a newer generation.
        Replaced => "replaced",
        /// Without a record for the whole quarantine.
        Quarantined => "quarantined",
    }
}

service_kit::labels! {
    /// Why the state store is unavailable.
    pub(crate) enum StoreOutage("cause") {
        /// No connection, or no answer in time.
        Unreachable => "unreachable",
        /// Another server takes over, or one loads its data.
        Moving => "moving",
        /// Too many calls in flight.
        Overloaded => "overloaded",
        /// It cannot write to its disk.
        Disk => "disk",
        /// Too few replicas.
        Replicas => "replicas",
        /// It rejects the credentials or the rights.
        Access => "access",
        /// It may evict records.
        Eviction => "eviction",
        /// An answer that cannot be decoded.
        Other => "other",
    }
}

service_kit::labels! {
    /// How a start used the warm pools of its cluster.
    pub(crate) enum PoolOutcome("outcome") {
        /// Claimed compute of a pool.
        Hit => "hit",
        /// The pool was empty.
        Empty => "empty",
        /// No pool has the start settings of the session.
        Different => "different",
    }
}

/// The metrics of session-manager. All series exist from registration, at zero.
#[derive(Debug)]
pub(crate) struct Metrics {
    changes: Arc<Family<SessionStatus, Counter>>,
    effects: Arc<Family<(Kind, Outcome), Counter>>,
    reconciliations: Arc<Family<Outcome, Counter>>,
    resolves: Arc<Family<SessionStatus, Counter>>,
    reports: Arc<Family<Outcome, Counter>>,
    activity_writes: Arc<Family<Outcome, Counter>>,
    idle_timeout_deferred: Arc<Family<(), Counter>>,
    calls: Arc<Family<AdmissionOutcome, Counter>>,
    audit_dropped: Arc<Family<(), Counter>>,
    sessions: Arc<Family<Live, Gauge>>,
    due_lag: Arc<Family<(), DurationGauge>>,
    provisioning: Arc<Family<Provisioned, Histogram>>,
    orphans: OrphanMetrics,
    pools: PoolMetrics,
    store: StoreMetrics,
}

/// The metrics of warm pools.
#[derive(Debug)]
struct PoolMetrics {
    starts: Arc<Family<PoolOutcome, Counter>>,
    claims: Arc<Family<(), Histogram>>,
    pods: Arc<Series>,
    stopped: Arc<Series>,
    age: Arc<Series>,
}

impl PoolMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            starts: registry.counter(
                "session_manager_warm_pool_starts_total",
                "Starts of compute on clusters with warm pools, by use of the pool.",
            ),
            claims: registry.histogram(
                "session_manager_warm_pool_claim_duration_seconds",
                "Time to claim compute of a warm pool.",
                SECONDS,
            ),
            pods: registry.series(
                "session_manager_warm_pool_pods",
                "Compute in warm pools.",
                &["cluster", "profile", "state"],
            ),
            stopped: registry.series(
                "session_manager_warm_pools_stopped",
                "Warm pools that are not refilled because their starts fail.",
                &["cluster", "profile"],
            ),
            age: registry.series(
                "session_manager_warm_pool_oldest_seconds",
                "Age of the oldest available compute in a warm pool.",
                &["cluster", "profile"],
            ),
        }
    }

    /// Replaces the series by those of these pools; the pools of one cluster and
    /// profile are added up.
    fn show(&self, pools: &[WarmPoolStatus]) {
        let mut all: BTreeMap<(&str, &str), ProfilePools> = BTreeMap::new();
        for pool in pools {
            let sum = all
                .entry((pool.cluster.as_str(), pool.profile.as_str()))
                .or_default();
            sum.available += pool.available;
            sum.starting += pool.starting;
            sum.stopped += usize::from(pool.stopped.is_some());
            sum.oldest = sum.oldest.max(pool.oldest.unwrap_or_default());
        }
        let (mut pods, mut stopped, mut age) = (Vec::new(), Vec::new(), Vec::new());
        for ((cluster, profile), sum) in all {
            let labels = vec![cluster.to_owned(), profile.to_owned()];
            for (state, count) in [("available", sum.available), ("starting", sum.starting)] {
                let mut labels = labels.clone();
                labels.push(state.to_owned());
                pods.push((labels, count as f64));
            }
            stopped.push((labels.clone(), sum.stopped as f64));
            age.push((labels, sum.oldest.as_secs_f64()));
        }
        self.pods.set(pods);
        self.stopped.set(stopped);
        self.age.set(age);
    }
}

/// The figures of all pools of one cluster and profile.
#[derive(Default)]
struct ProfilePools {
    available: usize,
    starting: usize,
    stopped: usize,
    oldest: Duration,
}

/// The metrics of orphan collection.
#[derive(Debug)]
struct OrphanMetrics {
    compute: Arc<Family<ComputeState, Gauge>>,
    halted: Arc<Family<(), Gauge>>,
    passes: Arc<Family<Outcome, Counter>>,
    releases: Arc<Family<Proof, Counter>>,
}

impl OrphanMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            compute: registry.gauge(
                "session_manager_compute",
                "Compute in the last orphan collection, by its state compared with the records.",
            ),
            halted: registry.gauge(
                "session_manager_orphan_collection_halted",
                "1 while the orphans exceed the limit and none is released.",
            ),
            passes: registry.counter(
                "session_manager_orphan_collection_passes_total",
                "Passes of orphan collection.",
            ),
            releases: registry.counter("session_manager_orphans_released_total", "Orphans released."),
        }
    }
}

/// The metrics of the state store.
#[derive(Debug)]
struct StoreMetrics {
    unavailable: Arc<Family<StoreOutage, Gauge>>,
    memory_used: Arc<Family<(), Gauge>>,
    memory_limit: Arc<Family<(), Gauge>>,
}

impl StoreMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            unavailable: registry.gauge(
                "session_manager_store_unavailable",
                "1 while the state store is unavailable or rejects changes, by the cause.",
            ),
            memory_used: registry.gauge(
                "session_manager_store_memory_used_bytes",
                "Used memory of the server of the state store with the smallest free share.",
            ),
            memory_limit: registry.gauge(
                "session_manager_store_memory_limit_bytes",
                "Memory limit of this server; 0 without a limit.",
            ),
        }
    }
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            changes: registry.counter(
                "session_manager_changes_total",
                "Changes of sessions, by the new status.",
            ),
            effects: registry.counter("session_manager_effects_total", "Effects started on compute."),
            reconciliations: registry.counter(
                "session_manager_reconciliations_total",
                "Reconciliations of sessions.",
            ),
            resolves: registry.counter(
                "session_manager_routes_resolved_total",
                "Routes returned to proxies, by the session's status.",
            ),
            reports: registry.counter(
                "session_manager_activity_reports_total",
                "Activity reports received from proxies.",
            ),
            activity_writes: registry.counter(
                "session_manager_activity_writes_total",
                "Writes of one session's activity to the store.",
            ),
            idle_timeout_deferred: registry.counter(
                "session_manager_idle_timeouts_deferred_total",
                "Idle timeouts deferred because reports of proxies were missing.",
            ),
            calls: registry.counter(
                "session_manager_calls_total",
                "API calls by the decision of the admission layer.",
            ),
            audit_dropped: registry.counter(
                "session_manager_audit_records_dropped_total",
                "Rejected calls above the rate limit of the audit trail.",
            ),
            sessions: registry.gauge("session_manager_sessions", "Live sessions, by status."),
            due_lag: registry.duration_gauge(
                "session_manager_due_lag_seconds",
                "Time by which the oldest due session is overdue.",
            ),
            provisioning: registry.histogram(
                "session_manager_provisioning_duration_seconds",
                "Time from the decision to start compute until it is ready, by phase.",
                SECONDS,
            ),
            orphans: OrphanMetrics::new(registry),
            pools: PoolMetrics::new(registry),
            store: StoreMetrics::new(registry),
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

    pub(crate) fn reconciled(&self, ok: bool) {
        self.reconciliations.at(outcome(ok)).inc();
    }

    pub(crate) fn reported(&self, ok: bool) {
        self.reports.at(outcome(ok)).inc();
    }

    pub(crate) fn activity_written(&self, ok: bool) {
        self.activity_writes.at(outcome(ok)).inc();
    }

    pub(crate) fn idle_timeout_deferred(&self) {
        self.idle_timeout_deferred.at(()).inc();
    }

    pub(crate) fn admission(&self, outcome: AdmissionOutcome) {
        self.calls.at(outcome).inc();
    }

    pub(crate) fn audit_dropped(&self) {
        self.audit_dropped.at(()).inc();
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

    /// Records whether the state store is available, and if not, why.
    pub(crate) fn store_available(&self, check: &Result<(), Error>) {
        let cause = check.as_ref().err().map(StoreOutage::of);
        for one in StoreOutage::ALL {
            self.store
                .unavailable
                .at(*one)
                .set(i64::from(cause == Some(*one)));
        }
    }

    pub(crate) fn store_memory(&self, memory: Option<Memory>) {
        let bytes = |value: Option<u64>| i64::try_from(value.unwrap_or(0)).unwrap_or(i64::MAX);
        self.store
            .memory_used
            .at(())
            .set(bytes(memory.map(|memory| memory.used)));
        self.store
            .memory_limit
            .at(())
            .set(bytes(memory.map(|memory| memory.limit)));
    }

    pub(crate) fn due_lag(&self, lag: Duration) {
        self.due_lag.at(()).set(lag);
    }

    /// Observes the provisioning time if this committed change completed
    /// provisioning. A generation begins at the creation of the session or at the
    /// last replacement.
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

    pub(crate) fn compared(&self, counts: &BTreeMap<ComputeState, u64>, halted: bool) {
        for state in ComputeState::ALL {
            let count = counts.get(state).copied().unwrap_or(0);
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.orphans.compute.at(*state).set(count);
        }
        self.orphans.halted.at(()).set(i64::from(halted));
    }

    pub(crate) fn pass_finished(&self, ok: bool) {
        self.orphans.passes.at(outcome(ok)).inc();
    }

    pub(crate) fn orphan_released(&self, proof: Proof) {
        self.orphans.releases.at(proof).inc();
    }

    /// A start claimed compute of a pool in this time.
    pub(crate) fn pool_hit(&self, time: Duration) {
        self.pools.starts.at(PoolOutcome::Hit).inc();
        self.pools.claims.at(()).observe(time);
    }

    pub(crate) fn pool_empty(&self) {
        self.pools.starts.at(PoolOutcome::Empty).inc();
    }

    pub(crate) fn pool_different(&self) {
        self.pools.starts.at(PoolOutcome::Different).inc();
    }

    pub(crate) fn pools(&self, pools: &[WarmPoolStatus]) {
        self.pools.show(pools);
    }

    pub(crate) fn resolved(&self, status: Status) {
        self.resolves.at(label(status)).inc();
    }
}

impl StoreOutage {
    fn of(error: &Error) -> Self {
        let Error::Unavailable(outage) = error else {
            return Self::Other;
        };
        match outage.cause {
            OutageCause::Unreachable => Self::Unreachable,
            OutageCause::Moving => Self::Moving,
            OutageCause::Overloaded => Self::Overloaded,
            OutageCause::Disk => Self::Disk,
            OutageCause::Replicas => Self::Replicas,
            OutageCause::Access => Self::Access,
            OutageCause::Eviction => Self::Eviction,
        }
    }
}

fn outcome(ok: bool) -> Outcome {
    if ok { Outcome::Ok } else { Outcome::Failed }
}

const fn label(status: Status) -> SessionStatus {
    match status {
        Status::Pending => SessionStatus::Pending,
        Status::Active => SessionStatus::Active,
        Status::Idle => SessionStatus::Idle,
        Status::Closed => SessionStatus::Closed,
        Status::Failed => SessionStatus::Failed,
    }
}
