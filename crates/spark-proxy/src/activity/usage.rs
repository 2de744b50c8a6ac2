//! Usage of sessions, counted by the calls of all workers.
//!
//! Each session has one [`SessionUsage`] of plain atomics, because every call updates it. The rates
//! of calls and of rejections are lock-free too (`governor`), unlike the limits by key of
//! service-kit, which lock a table: a session holds its limiters, so that a call needs no look-up.

use super::running::RunningSessions;
use super::sail_operations::SailOperations;
use crate::grpc::identity::SparkSessionId;
use crate::grpc::method::Method;
use crate::resource_limits::ResourceUse;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use session_core::{Clock, NewestClient, OrgId, SessionId, Timestamp, TokenId};
use session_proto::convert::timestamp;
use session_proto::internal::{NewerClient, OpenOperation, SessionActivity, TokenUse, Usage};
use session_token::Claims;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Operation ids are cut to this length, as in session-manager.
const MAX_OPERATION_ID_BYTES: usize = 128;
/// Maximum number of operations of a session in a report.
const MAX_OPERATIONS: usize = 64;
/// Maximum number of tokens of a session whose use is recorded between two reports.
const MAX_TOKEN_USES: usize = 256;
/// Maximum number of newer clients of a session that are reported.
const MAX_NEWER_CLIENTS: usize = 8;
/// Rejected calls of one session per second; they do not count against the rate of the
/// organization.
const MAX_REJECTIONS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// Time for which a rejected call marks its session as recently rejected.
const RECENT_REJECTION: Duration = Duration::from_secs(10);

/// Usage of all sessions.
pub(crate) struct UsageRegistry {
    calls_per_second: Option<NonZeroU32>,
    entries: Mutex<Entries>,
    common: Arc<Common>,
}

/// State shared by all sessions.
struct Common {
    clock: Arc<dyn Clock>,
    queue: Queue,
    /// Resources of all organizations together.
    resources: Arc<ResourceUse>,
}

#[derive(Default)]
struct Entries {
    sessions: HashMap<SessionId, Weak<SessionUsage>>,
    orgs: HashMap<OrgId, Weak<OrgUsage>>,
}

/// Sessions with unreported usage.
#[derive(Default)]
struct Queue {
    changed: Mutex<Vec<Arc<SessionUsage>>>,
    /// Signals that an idle session became busy.
    urgent: Notify,
}

/// State shared by all sessions of an organization.
struct OrgUsage {
    id: OrgId,
    rate: Option<DefaultDirectRateLimiter>,
    resources: Arc<ResourceUse>,
    common: Arc<Common>,
}

/// Usage of one session. A proxy keeps it for every session that made a call, so what few sessions
/// need is made when it is needed.
pub(crate) struct SessionUsage {
    session: SessionId,
    org: Arc<OrgUsage>,
    /// Open calls of any kind.
    open: AtomicU32,
    /// Open calls that are work.
    open_work: AtomicU32,
    /// Made at the first held call or unread response.
    resources: OnceLock<Arc<ResourceUse>>,
    generation: AtomicU64,
    last_activity: AtomicU64,
    calls: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    open_millis: AtomicU64,
    /// The usage is in the queue.
    queued: AtomicBool,
    /// The usage is on the reporter's list.
    listed: AtomicBool,
    /// Work was reported immediately since the usage was listed.
    is_work_reported: AtomicBool,
    operations: Mutex<Vec<Arc<OpenOperation>>>,
    /// Mostly one between two reports.
    tokens: Mutex<Vec<UsedToken>>,
    /// Made at the first rejected call.
    rejections: OnceLock<Box<Rejections>>,
    /// Operations on Sail to which clients can reattach.
    pub(crate) sail_operations: SailOperations,
    /// Made at the first operation.
    running: OnceLock<Arc<RunningSessions>>,
    /// Made at the first client that is newer than the engine.
    newer_clients: OnceLock<Box<Mutex<NewerClients>>>,
}

/// Clients that are newer than the engine; each version is reported once.
#[derive(Default)]
struct NewerClients {
    all: Vec<NewerClient>,
    /// Number of those already reported.
    reported: usize,
}

/// Rejected calls of a session.
struct Rejections {
    rate: DefaultDirectRateLimiter,
    /// Time of the last call rejected for a permanent reason.
    at: Mutex<Option<Instant>>,
}

/// When a token was used, first and last, since the last report.
struct UsedToken {
    id: TokenId,
    first: Timestamp,
    last: Timestamp,
}

/// A call that is work; the session is busy while this value exists.
pub(crate) struct BusyGuard {
    usage: Arc<SessionUsage>,
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

impl UsageRegistry {
    pub(crate) fn new(clock: Arc<dyn Clock>, calls_per_second: u32) -> Self {
        Self {
            calls_per_second: NonZeroU32::new(calls_per_second),
            entries: Mutex::default(),
            common: Arc::new(Common {
                clock,
                queue: Queue::default(),
                resources: Arc::default(),
            }),
        }
    }

    /// Returns the usage of the session in the token.
    pub(crate) fn of(&self, claims: &Claims) -> Arc<SessionUsage> {
        let mut entries = self.entries.lock();
        if let Some(usage) = entries.sessions.get(&claims.sid).and_then(Weak::upgrade) {
            return usage;
        }
        let org = entries.orgs.get(&claims.org).and_then(Weak::upgrade);
        let org = org.unwrap_or_else(|| {
            let org = Arc::new(OrgUsage {
                id: claims.org.clone(),
                rate: self
                    .calls_per_second
                    .map(|rate| RateLimiter::direct(Quota::per_second(rate))),
                resources: Arc::default(),
                common: Arc::clone(&self.common),
            });
            entries.orgs.insert(claims.org.clone(), Arc::downgrade(&org));
            org
        });
        let usage = Arc::new(SessionUsage {
            session: claims.sid.clone(),
            org,
            open: AtomicU32::new(0),
            open_work: AtomicU32::new(0),
            resources: OnceLock::new(),
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
            rejections: OnceLock::new(),
            sail_operations: SailOperations::default(),
            running: OnceLock::new(),
            newer_clients: OnceLock::new(),
        });
        entries
            .sessions
            .insert(claims.sid.clone(), Arc::downgrade(&usage));
        usage
    }

    /// Waits until an idle session becomes busy.
    pub(super) async fn urgent(&self) {
        self.common.queue.urgent.notified().await;
    }

    /// Takes the sessions with unreported usage.
    pub(super) fn take_changed(&self) -> Vec<Arc<SessionUsage>> {
        std::mem::take(&mut *self.common.queue.changed.lock())
    }

    /// Removes sessions that no worker uses.
    pub(super) fn sweep(&self) {
        let mut entries = self.entries.lock();
        entries.sessions.retain(|_, usage| usage.strong_count() > 0);
        entries.orgs.retain(|_, org| org.strong_count() > 0);
    }
}

impl SessionUsage {
    /// Counts one more call, unless `max` calls are open.
    pub(crate) fn try_open_call(&self, max: u32) -> bool {
        if self.open.fetch_add(1, Relaxed) < max {
            return true;
        }
        self.open.fetch_sub(1, Relaxed);
        false
    }

    /// Ends a call counted by [`Self::try_open_call`].
    pub(crate) fn close_call(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Returns the resources of the session, of its organization, and of all organizations.
    pub(crate) fn levels(&self) -> [&Arc<ResourceUse>; 3] {
        let session = self.resources.get_or_init(Arc::default);
        [session, &self.org.resources, &self.org.common.resources]
    }

    /// Takes one call from the organization's rate; false if the rate is exceeded.
    pub(crate) fn try_take_call(&self) -> bool {
        self.org.rate.as_ref().is_none_or(|rate| rate.check().is_ok())
    }

    /// Records a call rejected for a permanent reason.
    pub(crate) fn record_rejection(&self) {
        *self.rejections().at.lock() = Some(Instant::now());
    }

    /// Whether a call was rejected within [`RECENT_REJECTION`].
    pub(crate) fn was_rejected_recently(&self) -> bool {
        let last = self.rejections.get().and_then(|rejections| *rejections.at.lock());
        last.is_some_and(|at| at.elapsed() < RECENT_REJECTION)
    }

    /// Takes one rejection from the session's rate; false if the rate is exceeded.
    pub(crate) fn try_take_rejection(&self) -> bool {
        self.rejections().rate.check().is_ok()
    }

    fn rejections(&self) -> &Rejections {
        self.rejections.get_or_init(|| {
            Box::new(Rejections {
                rate: RateLimiter::direct(Quota::per_second(MAX_REJECTIONS_PER_SECOND)),
                at: Mutex::default(),
            })
        })
    }

    /// Spark sessions in which expired tokens may continue operations.
    pub(crate) fn running(&self) -> &Arc<RunningSessions> {
        self.running.get_or_init(Arc::default)
    }

    /// Begins a call that is work.
    pub(crate) fn begin_work(self: &Arc<Self>) -> BusyGuard {
        self.open_work.fetch_add(1, Relaxed);
        self.touch();
        // The usage may be listed for another reason, such as the use of a token.
        if !self.is_work_reported.swap(true, Relaxed) {
            self.queue().urgent.notify_one();
        }
        BusyGuard {
            usage: Arc::clone(self),
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
        let now = self.now();
        let mut tokens = self.tokens.lock();
        if let Some(used) = tokens.iter_mut().find(|used| used.id == *token) {
            used.last = now;
        } else if tokens.len() < MAX_TOKEN_USES {
            tokens.reserve_exact(1);
            tokens.push(UsedToken {
                id: token.clone(),
                first: now,
                last: now,
            });
        }
        drop(tokens);
        self.enqueue();
    }

    /// Records a client that is newer than the engine.
    pub(crate) fn record_newer_client(self: &Arc<Self>, version: &str, newest: NewestClient) {
        let client = NewerClient {
            version: version.to_owned(),
            newest_client: newest.version.to_string(),
            newest_client_declared: newest.declared,
        };
        let mut newer = self.newer_clients.get_or_init(Box::default).lock();
        if newer.all.len() >= MAX_NEWER_CLIENTS || newer.all.contains(&client) {
            return;
        }
        newer.all.push(client);
        drop(newer);
        self.enqueue();
    }

    fn take_newer_clients(&self) -> Vec<NewerClient> {
        let Some(newer) = self.newer_clients.get() else {
            return Vec::new();
        };
        let mut newer = newer.lock();
        let unreported = newer.all[newer.reported..].to_vec();
        newer.reported = newer.all.len();
        unreported
    }

    /// Records activity now.
    pub(crate) fn touch(self: &Arc<Self>) {
        self.last_activity.fetch_max(self.now().as_millis(), Relaxed);
        self.enqueue();
    }

    fn now(&self) -> Timestamp {
        self.org.common.clock.now()
    }

    fn queue(&self) -> &Queue {
        &self.org.common.queue
    }

    fn enqueue(self: &Arc<Self>) {
        if self.queued.swap(true, Relaxed) {
            return;
        }
        self.queue().changed.lock().push(Arc::clone(self));
        if !self.listed.load(Relaxed) {
            self.queue().urgent.notify_one();
        }
    }

    pub(super) fn session(&self) -> &SessionId {
        &self.session
    }

    /// Records that the reporter took this usage from the queue and listed it.
    pub(super) fn mark_listed(&self) {
        self.queued.store(false, Relaxed);
        self.listed.store(true, Relaxed);
    }

    /// Records that the reporter removed this usage from its list.
    pub(super) fn mark_unlisted(&self) {
        self.listed.store(false, Relaxed);
        self.is_work_reported.store(false, Relaxed);
    }

    /// Whether work is in progress, or usage is queued.
    pub(super) fn is_busy(&self) -> bool {
        self.open_work.load(Relaxed) > 0 || self.queued.load(Relaxed)
    }

    /// Takes the unreported usage and resets it.
    pub(super) fn take(&self) -> SessionActivity {
        let last = self.last_activity.load(Relaxed);
        let uses = std::mem::take(&mut *self.tokens.lock());
        SessionActivity {
            session_id: self.session.to_string(),
            org: self.org.id.to_string(),
            generation: self.generation.load(Relaxed),
            open_calls: self.open_work.load(Relaxed),
            last_activity_at: (last > 0).then(|| timestamp(Timestamp::from_millis(last))),
            operations: self
                .operations
                .lock()
                .iter()
                .take(MAX_OPERATIONS)
                .map(|operation| (**operation).clone())
                .collect(),
            token_uses: uses
                .into_iter()
                .map(|used| TokenUse {
                    token_id: used.id.to_string(),
                    first_used_at: Some(timestamp(used.first)),
                    last_used_at: Some(timestamp(used.last)),
                })
                .collect(),
            usage: Some(Usage {
                rpcs: self.calls.swap(0, Relaxed),
                bytes_in: self.bytes_in.swap(0, Relaxed),
                bytes_out: self.bytes_out.swap(0, Relaxed),
                open_stream_millis: self.open_millis.swap(0, Relaxed),
            }),
            newer_clients: self.take_newer_clients(),
        }
    }
}

impl BusyGuard {
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
            started_at: Some(timestamp(self.usage.now())),
        });
        self.usage.operations.lock().push(Arc::clone(&operation));
        self.operation = Some(operation);
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        let usage = &self.usage;
        if let Some(operation) = &self.operation {
            usage
                .operations
                .lock()
                .retain(|open| !Arc::ptr_eq(open, operation));
        }
        // The duration of a call in milliseconds fits into a `u64`.
        let open = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        usage.open_millis.fetch_add(open, Relaxed);
        usage.open_work.fetch_sub(1, Relaxed);
        usage.touch();
    }
}

fn cut(mut id: String) -> String {
    id.truncate(id.floor_char_boundary(MAX_OPERATION_ID_BYTES));
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_ids_are_cut_at_a_character_boundary() {
        assert_eq!(cut("ä".repeat(100)), "ä".repeat(64));
        assert_eq!(cut("a".repeat(129)).len(), 128);
        assert_eq!(cut("short".to_owned()), "short");
    }
}
