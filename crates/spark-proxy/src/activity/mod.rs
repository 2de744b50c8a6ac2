//! Session usage, reported to session-manager: calls in flight, the end of the last call, running
//! operations, bytes and times.
//!
//! Each session has one [`Tally`] of plain atomics, shared by all workers. [`run`] reports every
//! five seconds, and at once when an idle session gets a call, because session-manager could
//! otherwise end it as idle.

pub(crate) mod running;
pub(crate) mod sail_operations;

use crate::activity::running::RunningSessions;
use crate::activity::sail_operations::Operations;
use crate::grpc::identity::SparkSessionId;
use crate::grpc::method::Method;
use crate::metrics::Metrics;
use crate::shares::Shares;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use prost::Message as _;
use service_kit::grpc::MAX_MESSAGE;
use service_kit::service_account_token::ServiceChannel;
use session_core::{Clock, OrgId, SessionId, Timestamp, TokenId};
use session_proto::convert::timestamp;
use session_proto::error::reason_of;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::{OpenOperation, ReportActivityRequest, SessionActivity, TokenUse, Usage};
use session_token::Claims;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// Interval between activity reports.
const INTERVAL: Duration = Duration::from_secs(5);
/// Calls that begin within this time share a report.
const GATHER: Duration = Duration::from_millis(20);
/// Maximum number of sessions in a report.
const MOST_SESSIONS: usize = 1000;
/// Maximum size of a report with more than one session: a quarter of session-manager's limit.
const MAX_REPORT_BYTES: usize = MAX_MESSAGE / 4;
/// Operation ids are cut to this length, as in session-manager.
const MAX_OPERATION_ID_BYTES: usize = 128;
/// Rejected reports before the unsent usage is dropped: isolating one bad record in a full report
/// takes several.
const MAX_REFUSED_REPORTS: usize = 64;
/// Maximum number of operations of a session in a report.
const MOST_OPERATIONS: usize = 64;
/// Maximum number of tokens of a session whose use is recorded between two reports.
const MOST_TOKENS: usize = 256;
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Rejected calls of one session per second; they do not count against the rate of the
/// organization.
const MAX_REFUSALS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// Time for which a rejected call marks its session as recently rejected.
const REFUSED_LATELY: Duration = Duration::from_secs(10);

/// The tallies of all sessions.
pub(crate) struct Ledger {
    calls_per_second: Option<NonZeroU32>,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
    queue: Arc<Queue>,
    /// Usage of all organizations together.
    shares: Arc<Shares>,
}

#[derive(Default)]
struct Known {
    sessions: HashMap<SessionId, Weak<Tally>>,
    orgs: HashMap<OrgId, Weak<Org>>,
}

/// Tallies with unreported usage.
#[derive(Default)]
struct Queue {
    changed: Mutex<Vec<Arc<Tally>>>,
    /// Signals that an idle session became busy.
    urgent: Notify,
}

/// State shared by all sessions of an organization.
struct Org {
    id: OrgId,
    rate: Option<DefaultDirectRateLimiter>,
    shares: Shares,
    /// Usage of all organizations together.
    all: Arc<Shares>,
}

/// Usage of one session.
pub(crate) struct Tally {
    session: SessionId,
    org: Arc<Org>,
    clock: Arc<dyn Clock>,
    queue: Arc<Queue>,
    /// Open calls of any kind.
    open: AtomicU32,
    /// Open calls that are work.
    working: AtomicU32,
    shares: Shares,
    generation: AtomicU64,
    last_activity: AtomicU64,
    calls: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    open_millis: AtomicU64,
    /// The tally is in the queue.
    queued: AtomicBool,
    /// The tally is on the reporter's list.
    listed: AtomicBool,
    /// Work was reported immediately since the tally was listed.
    is_work_reported: AtomicBool,
    operations: Mutex<Vec<Arc<OpenOperation>>>,
    tokens: Mutex<HashMap<TokenId, (Timestamp, Timestamp)>>,
    refusals: DefaultDirectRateLimiter,
    /// Time of the last call rejected for a permanent reason.
    refused_at: Mutex<Option<Instant>>,
    /// Operations on Sail to which clients can reattach.
    pub(crate) on_sail: Operations,
    /// Spark sessions in which expired tokens may continue operations.
    pub(crate) running: Arc<RunningSessions>,
}

/// A call that is work; the session is busy while this value exists.
pub(crate) struct Working {
    tally: Arc<Tally>,
    began: Instant,
    operation: Option<Arc<OpenOperation>>,
}

/// The engine's names for an operation.
pub(crate) struct OperationName {
    pub(crate) spark_session: SparkSessionId,
    /// The `user_id`, which is part of Spark's session key.
    pub(crate) user_id: String,
    pub(crate) operation: String,
}

impl Ledger {
    pub(crate) fn new(clock: Arc<dyn Clock>, calls_per_second: u32) -> Self {
        Self {
            calls_per_second: NonZeroU32::new(calls_per_second),
            clock,
            known: Mutex::default(),
            queue: Arc::default(),
            shares: Arc::default(),
        }
    }

    /// Returns the tally of the session in the token.
    pub(crate) fn of(&self, claims: &Claims) -> Arc<Tally> {
        let mut known = self.known.lock();
        if let Some(tally) = known.sessions.get(&claims.sid).and_then(Weak::upgrade) {
            return tally;
        }
        let org = known.orgs.get(&claims.org).and_then(Weak::upgrade);
        let org = org.unwrap_or_else(|| {
            let org = Arc::new(Org {
                id: claims.org.clone(),
                rate: self
                    .calls_per_second
                    .map(|rate| RateLimiter::direct(Quota::per_second(rate))),
                shares: Shares::default(),
                all: Arc::clone(&self.shares),
            });
            known.orgs.insert(claims.org.clone(), Arc::downgrade(&org));
            org
        });
        let tally = Arc::new(Tally {
            session: claims.sid.clone(),
            org,
            clock: Arc::clone(&self.clock),
            queue: Arc::clone(&self.queue),
            open: AtomicU32::new(0),
            working: AtomicU32::new(0),
            shares: Shares::default(),
            generation: AtomicU64::new(0),
            last_activity: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            open_millis: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            is_work_reported: AtomicBool::new(false),
            operations: Mutex::default(),
            tokens: Mutex::default(),
            refusals: RateLimiter::direct(Quota::per_second(MAX_REFUSALS_PER_SECOND)),
            refused_at: Mutex::default(),
            on_sail: Operations::default(),
            running: Arc::default(),
        });
        known.sessions.insert(claims.sid.clone(), Arc::downgrade(&tally));
        tally
    }

    /// Removes sessions that no worker uses.
    fn sweep(&self) {
        let mut known = self.known.lock();
        known.sessions.retain(|_, tally| tally.strong_count() > 0);
        known.orgs.retain(|_, org| org.strong_count() > 0);
    }
}

impl Tally {
    /// Counts one more call, unless `most` calls are open.
    pub(crate) fn enter(&self, most: u32) -> bool {
        if self.open.fetch_add(1, Relaxed) < most {
            return true;
        }
        self.open.fetch_sub(1, Relaxed);
        false
    }

    /// Ends a call counted by [`Self::enter`].
    pub(crate) fn leave(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Returns the shares of the session, of its organization, and of all organizations.
    pub(crate) fn shares(&self) -> [&Shares; 3] {
        [&self.shares, &self.org.shares, &self.org.all]
    }

    /// Takes one call from the organization's rate; false if the rate is exceeded.
    pub(crate) fn is_within_rate(&self) -> bool {
        self.org.rate.as_ref().is_none_or(|rate| rate.check().is_ok())
    }

    /// Records a call rejected for a permanent reason.
    pub(crate) fn note_refusal(&self) {
        *self.refused_at.lock() = Some(Instant::now());
    }

    /// Whether a call was rejected within [`REFUSED_LATELY`].
    pub(crate) fn was_refused_lately(&self) -> bool {
        self.refused_at
            .lock()
            .is_some_and(|at| at.elapsed() < REFUSED_LATELY)
    }

    /// Takes one rejection from the session's rate; false if the rate is exceeded.
    pub(crate) fn is_within_refusals(&self) -> bool {
        self.refusals.check().is_ok()
    }

    /// Begins a call that is work.
    pub(crate) fn work(self: &Arc<Self>) -> Working {
        self.working.fetch_add(1, Relaxed);
        self.touch();
        // The tally may be listed for another reason, such as the use of a token.
        if !self.is_work_reported.swap(true, Relaxed) {
            self.queue.urgent.notify_one();
        }
        Working {
            tally: Arc::clone(self),
            began: Instant::now(),
            operation: None,
        }
    }

    /// Records the generation of compute that calls use.
    pub(crate) fn on_generation(&self, generation: u64) {
        self.generation.fetch_max(generation, Relaxed);
    }

    /// Counts a forwarded call.
    pub(crate) fn count_call(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    /// Counts message bytes sent to the compute.
    pub(crate) fn count_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts message bytes sent to the client.
    pub(crate) fn count_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// Records the use of a token.
    pub(crate) fn token_used(self: &Arc<Self>, token: &TokenId) {
        let now = self.clock.now();
        let mut tokens = self.tokens.lock();
        if tokens.len() < MOST_TOKENS || tokens.contains_key(token) {
            tokens.entry(token.clone()).or_insert((now, now)).1 = now;
        }
        drop(tokens);
        self.enqueue();
    }

    fn touch(self: &Arc<Self>) {
        self.last_activity
            .fetch_max(self.clock.now().as_millis(), Relaxed);
        self.enqueue();
    }

    fn enqueue(self: &Arc<Self>) {
        if self.queued.swap(true, Relaxed) {
            return;
        }
        self.queue.changed.lock().push(Arc::clone(self));
        if !self.listed.load(Relaxed) {
            self.queue.urgent.notify_one();
        }
    }

    /// Takes the unreported usage and resets it.
    fn take(&self) -> SessionActivity {
        let last = self.last_activity.load(Relaxed);
        let uses: Vec<_> = self.tokens.lock().drain().collect();
        SessionActivity {
            session_id: self.session.to_string(),
            org: self.org.id.to_string(),
            generation: self.generation.load(Relaxed),
            open_calls: self.working.load(Relaxed),
            last_activity_at: (last > 0).then(|| timestamp(Timestamp::from_millis(last))),
            operations: self
                .operations
                .lock()
                .iter()
                .take(MOST_OPERATIONS)
                .map(|operation| (**operation).clone())
                .collect(),
            token_uses: uses
                .into_iter()
                .map(|(id, (first, last))| TokenUse {
                    token_id: id.to_string(),
                    first_used_at: Some(timestamp(first)),
                    last_used_at: Some(timestamp(last)),
                })
                .collect(),
            usage: Some(Usage {
                rpcs: self.calls.swap(0, Relaxed),
                bytes_in: self.bytes_in.swap(0, Relaxed),
                bytes_out: self.bytes_out.swap(0, Relaxed),
                open_stream_millis: self.open_millis.swap(0, Relaxed),
            }),
        }
    }
}

impl Working {
    /// Sets the operation of the call.
    pub(crate) fn on_operation(&mut self, operation: OperationName, method: Method) {
        if self.operation.is_some() {
            return;
        }
        let operation = Arc::new(OpenOperation {
            spark_session_id: operation.spark_session.as_str().to_owned(),
            operation_id: cut(operation.operation),
            user_id: operation.user_id,
            method: method.as_str().to_owned(),
            started_at: Some(timestamp(self.tally.clock.now())),
        });
        self.tally.operations.lock().push(Arc::clone(&operation));
        self.operation = Some(operation);
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let tally = &self.tally;
        if let Some(operation) = &self.operation {
            tally
                .operations
                .lock()
                .retain(|open| !Arc::ptr_eq(open, operation));
        }
        // The duration of a call in milliseconds fits into a `u64`.
        let open = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tally.open_millis.fetch_add(open, Relaxed);
        tally.working.fetch_sub(1, Relaxed);
        tally.touch();
    }
}

fn cut(mut id: String) -> String {
    id.truncate(id.floor_char_boundary(MAX_OPERATION_ID_BYTES));
    id
}

/// Sends reports until `stop`.
pub(crate) async fn run(
    ledger: Arc<Ledger>,
    client: RouteServiceClient<ServiceChannel>,
    proxy_id: String,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut reporter = Reporter {
        client,
        proxy_id,
        metrics,
        sequence: 0,
        listed: HashMap::new(),
        unsent: VecDeque::new(),
    };
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reporting = async {
        loop {
            let all = tokio::select! {
                _ = tick.tick() => true,
                () = ledger.queue.urgent.notified() => false,
            };
            if all {
                ledger.sweep();
            } else {
                tokio::time::sleep(GATHER).await;
            }
            let changed = std::mem::take(&mut *ledger.queue.changed.lock());
            reporter.report(changed, all).await;
        }
    };
    stop.run_until_cancelled(reporting).await;
}

struct Reporter {
    client: RouteServiceClient<ServiceChannel>,
    proxy_id: String,
    metrics: Arc<Metrics>,
    sequence: u64,
    /// Sessions that were busy or used in the last report.
    listed: HashMap<SessionId, Arc<Tally>>,
    /// Usage taken from the tallies whose delivery is unconfirmed; sent before newer usage.
    unsent: VecDeque<Part>,
}

/// One report.
struct Part {
    sessions: Vec<SessionActivity>,
    /// Set when first sent; session-manager counts the usage of a sequence number once.
    sequence: Option<u64>,
}

impl Part {
    fn new(sessions: Vec<SessionActivity>) -> Self {
        Self {
            sessions,
            sequence: None,
        }
    }

    /// Fills one report; also returns the record that exceeded its limit.
    fn fill(mut next: impl FnMut() -> Option<SessionActivity>) -> (Self, Option<SessionActivity>) {
        let (mut sessions, mut bytes) = (Vec::new(), 0);
        while sessions.len() < MOST_SESSIONS
            && let Some(activity) = next()
        {
            bytes += activity.encoded_len();
            if bytes > MAX_REPORT_BYTES && !sessions.is_empty() {
                return (Self::new(sessions), Some(activity));
            }
            sessions.push(activity);
        }
        (Self::new(sessions), None)
    }
}

/// Whether a report fails each time that it is sent. `RESOURCE_EXHAUSTED` without a Berth reason
/// means that the message is too large.
fn is_final(status: &tonic::Status) -> bool {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => true,
        Code::ResourceExhausted => reason_of(status).is_none(),
        _ => false,
    }
}

impl Reporter {
    /// Reports changed sessions and, with `all`, every listed session.
    async fn report(&mut self, changed: Vec<Arc<Tally>>, all: bool) {
        let mut batch: HashMap<SessionId, Arc<Tally>> = HashMap::with_capacity(changed.len());
        for tally in changed {
            tally.queued.store(false, Relaxed);
            tally.listed.store(true, Relaxed);
            self.listed.insert(tally.session.clone(), Arc::clone(&tally));
            batch.insert(tally.session.clone(), tally);
        }
        let chosen: Vec<Arc<Tally>> = if all {
            self.listed.values().cloned().collect()
        } else {
            batch.values().cloned().collect()
        };
        if !self.send().await {
            // Usage stays in the tallies until session-manager can be reached.
            return;
        }
        // An empty report still proves that this proxy is alive.
        let mut left = chosen.iter().map(|tally| tally.take());
        let mut beyond = None;
        loop {
            let (part, carried) = Part::fill(|| beyond.take().or_else(|| left.next()));
            self.unsent.push_back(part);
            let is_sent = self.send().await;
            beyond = carried;
            if !is_sent {
                self.unsent
                    .extend(beyond.map(|activity| Part::new(vec![activity])));
                return;
            }
            if beyond.is_none() && left.len() == 0 {
                break;
            }
        }
        // Sessions already reported as idle are not reported again.
        self.listed.retain(|_, tally| {
            let busy = tally.working.load(Relaxed) > 0 || tally.queued.load(Relaxed);
            if !busy && all {
                tally.listed.store(false, Relaxed);
                tally.is_work_reported.store(false, Relaxed);
            }
            busy || !all
        });
    }

    /// Sends unsent reports; false if session-manager cannot be reached. A permanently rejected
    /// report is halved until the invalid record is isolated.
    async fn send(&mut self) -> bool {
        let mut refused = 0;
        while let Some(mut part) = self.unsent.pop_front() {
            let sequence = *part.sequence.get_or_insert_with(|| {
                self.sequence += 1;
                self.sequence
            });
            let report = ReportActivityRequest {
                proxy_id: self.proxy_id.clone(),
                sessions: part.sessions.clone(),
                sequence,
            };
            let sent = tokio::time::timeout(ANSWER_TIME, self.client.report_activity(report)).await;
            match sent {
                Ok(Ok(_)) => continue,
                Ok(Err(status)) if is_final(&status) => {
                    refused += 1;
                    self.split(part, &status);
                    if refused >= MAX_REFUSED_REPORTS {
                        tracing::error!("activity reports rejected repeatedly; unsent reports dropped");
                        self.unsent.clear();
                    }
                }
                Ok(Err(status)) => {
                    tracing::debug!(code = ?status.code(), "activity report failed");
                    self.unsent.push_front(part);
                }
                Err(_) => self.unsent.push_front(part),
            }
            self.metrics.reports_failed.inc();
            if self.unsent.front().is_some_and(|part| part.sequence.is_some()) {
                return false;
            }
        }
        true
    }

    /// Halves a permanently rejected report; drops it if it holds one session.
    fn split(&mut self, part: Part, status: &tonic::Status) {
        let mut first = part.sessions;
        if first.len() > 1 {
            let second = first.split_off(first.len() / 2);
            self.unsent.push_front(Part::new(second));
            self.unsent.push_front(Part::new(first));
            return;
        }
        tracing::error!(
            session = first.first().map(|activity| activity.session_id.as_str()),
            code = ?status.code(),
            message = status.message(),
            "activity report rejected; usage of the session dropped"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(bytes: usize) -> SessionActivity {
        SessionActivity {
            session_id: "x".repeat(bytes),
            ..SessionActivity::default()
        }
    }

    /// Sessions and bytes of each report, given the size of each session.
    fn parts(sessions: &[usize]) -> Vec<(usize, usize)> {
        let mut left = sessions.iter().map(|bytes| activity(*bytes));
        let mut beyond = None;
        let mut parts = Vec::new();
        loop {
            let (part, carried) = Part::fill(|| beyond.take().or_else(|| left.next()));
            beyond = carried;
            let report = ReportActivityRequest {
                sessions: part.sessions,
                ..ReportActivityRequest::default()
            };
            parts.push((report.sessions.len(), report.encoded_len()));
            if beyond.is_none() && left.len() == 0 {
                return parts;
            }
        }
    }

    #[test]
    fn a_report_is_split_by_sessions_and_by_bytes() {
        assert_eq!(parts(&[]), [(0, 0)], "one without anything says that we live");
        let sessions = |parts: &[(usize, usize)]| parts.iter().map(|part| part.0).collect::<Vec<_>>();
        assert_eq!(sessions(&parts(&[10; 2500])), [1000, 1000, 500]);
        let large = parts(&[10_000; 1000]);
        assert_eq!(large.iter().map(|part| part.0).sum::<usize>(), 1000);
        assert!(
            large
                .iter()
                .all(|part| part.1 <= MAX_REPORT_BYTES + 8 * MOST_SESSIONS)
        );
        assert_eq!(sessions(&parts(&[10, 3 * MAX_REPORT_BYTES, 10])), [1, 1, 1]);
    }

    #[test]
    fn an_id_is_cut_between_characters() {
        assert_eq!(cut("ä".repeat(100)), "ä".repeat(64));
        assert_eq!(cut("a".repeat(129)).len(), 128);
        assert_eq!(cut("short".to_owned()), "short");
    }
}
