//! The store in the memory of one process: for tests, the embedded process and
//! `memory://`. One lock guards all state, so every method is one step. Counts are
//! computed from the records, so they cannot drift.

mod activity_reports;
mod audit_trail;
mod change_feed;
mod definitions;
mod due_queue;
mod leases;
mod placements;
mod retention;
mod session_index;
mod sessions;
mod signing_keys;
mod spark_bindings;
mod spark_sessions;
mod store_health;
mod tokens;

use crate::{Definition, Feed, Kind, TokenRecord};
use activity_reports::{ProxyRegistry, SessionUse};
use leases::HeldLease;
use parking_lot::{Mutex, MutexGuard};
use session_core::{
    Activity, Clock, EventRecord, OrgId, PrincipalId, Session, SessionId, SessionKey, Timestamp, TokenId,
};
use sessions::{Request, RequestKey};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::broadcast;

/// A reader of changes that falls further behind receives a reset.
const FEED_BACKLOG: usize = 1024;

/// A store whose state ends with the process.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    epoch: AtomicU64,
    state: Mutex<State>,
    calls: AtomicU64,
    feed: broadcast::Sender<Feed>,
}

#[derive(Default)]
struct State {
    orgs: BTreeMap<OrgId, BTreeMap<SessionId, Entry>>,
    due: BTreeSet<(Timestamp, SessionKey)>,
    requests: HashMap<RequestKey, Request>,
    requests_by_age: VecDeque<(Timestamp, RequestKey)>,
    creates: HashMap<(OrgId, PrincipalId), (u64, u32)>,
    placements: BTreeMap<String, BTreeSet<SessionKey>>,
    spark_bindings: spark_bindings::Bindings,
    spark_sessions: spark_sessions::Sessions,
    leases: HashMap<String, HeldLease>,
    last_fence: u64,
    definitions: BTreeMap<(Kind, String), Definition>,
    proxies: ProxyRegistry,
    trail: audit_trail::Trail,
    signing_keys: signing_keys::Keys,
}

struct Entry {
    session: Session,
    history: VecDeque<EventRecord>,
    due: Option<Timestamp>,
    used: SessionUse,
    tokens: BTreeMap<TokenId, TokenRecord>,
}

impl Entry {
    /// Returns whether [`crate::Tokens::live_tokens`] lists the token.
    fn is_listed(&self, token: &TokenRecord, now: Timestamp) -> bool {
        token.expires_at > now && token.epoch == self.session.token_epoch
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store on `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            // The state of an earlier process is lost: a new epoch.
            epoch: AtomicU64::new(clock.now().as_millis()),
            clock,
            state: Mutex::default(),
            calls: AtomicU64::new(0),
            feed: broadcast::Sender::new(FEED_BACKLOG),
        }
    }

    /// Sets the activity that [`crate::ActivityReports::get_with_activity`] returns,
    /// whatever proxies report.
    pub fn set_activity(&self, key: &SessionKey, activity: Activity) {
        if let Some(entry) = self.state().entry_mut(key) {
            entry.used.forced = Some(activity);
        }
    }

    /// Number of accesses to the state, so that a test can measure the cost of an
    /// operation.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Simulates a fail-over: the last writes may be lost.
    pub fn fail_over(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        // Fails only without subscribers.
        drop(self.feed.send(Feed::Reset));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.state.lock()
    }
}

impl State {
    fn entry(&self, key: &SessionKey) -> Option<&Entry> {
        self.orgs.get(&key.org)?.get(&key.id)
    }

    fn entry_mut(&mut self, key: &SessionKey) -> Option<&mut Entry> {
        self.orgs.get_mut(&key.org)?.get_mut(&key.id)
    }
}
