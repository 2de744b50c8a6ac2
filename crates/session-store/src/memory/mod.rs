//! The store in one process's memory: for tests, the embedded process and
//! `memory://`. Everything is behind one lock, so every method is one step;
//! counts are taken from the records themselves, so nothing can drift.

mod activity_reports;
mod audit_trail;
mod retention;
mod spark_bindings;
mod spark_sessions;

use crate::session_index::Filling;
use crate::{
    Change, Commit, Create, Created, Definition, DefinitionQuota, Error, Feed, FeedProgress, HISTORY, Heard,
    Kind, ListQuery, Loaded, Page, Proxies, REQUEST_ID_MEMORY, Report, Reported, RequestId, SessionStore,
    TOKEN_MEMORY, TokenRecord, Tombstones, first_use,
};
use activity_reports::{Registry, Used};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use session_core::{
    Activity, AuditRecord, Clock, ClusterName, EventRecord, Limits, Operation, OrgId, PrincipalId, ProxyId,
    Session, SessionId, SessionKey, Status, Timestamp, TokenId, TokenUse, Use,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// A reader of changes that falls this far behind gets a reset.
const FEED_BACKLOG: usize = 1024;
/// The window of `creates_per_minute`.
const MINUTE_MILLIS: u64 = 60_000;

/// A store that forgets everything when the process ends.
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
    shared: spark_bindings::Shared,
    spark_sessions: spark_sessions::Kept,
    leases: HashMap<String, Leased>,
    last_fence: u64,
    definitions: BTreeMap<(Kind, String), Definition>,
    proxies: Registry,
    trail: audit_trail::Trail,
    signing_keys: audit_trail::Keys,
}

type RequestKey = (OrgId, PrincipalId, String);

struct Request {
    fingerprint: String,
    session: SessionKey,
    at: Timestamp,
}

struct Entry {
    session: Session,
    history: VecDeque<EventRecord>,
    due: Option<Timestamp>,
    used: Used,
    tokens: BTreeMap<TokenId, TokenRecord>,
}

impl Entry {
    /// Is the token among those that [`SessionStore::tokens`] tells of?
    fn lists(&self, token: &TokenRecord, now: Timestamp) -> bool {
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
            // What an earlier process knew is forgotten.
            epoch: AtomicU64::new(clock.now().as_millis()),
            clock,
            state: Mutex::default(),
            calls: AtomicU64::new(0),
            feed: broadcast::Sender::new(FEED_BACKLOG),
        }
    }

    /// Sets what [`SessionStore::load`] says of a session's use, whatever
    /// proxies report.
    pub fn set_activity(&self, key: &SessionKey, activity: Activity) {
        if let Some(entry) = self.state().entry_mut(key) {
            entry.used.forced = Some(activity);
        }
    }

    /// How often its state was looked at: a test sees from it how much work
    /// an answer took.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// As after a fail-over: what was written last may be lost.
    pub fn fail_over(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        // Fails only when nobody listens.
        drop(self.feed.send(Feed::Reset));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.state.lock()
    }

    /// Writes a change; only while the use is `quiet`, if that is asked for.
    fn write(&self, commit: Commit, quiet: Option<Activity>) -> Result<(), Error> {
        let now = self.clock.now();
        let key = commit.session.key();
        let mut state = self.state();
        let entry = state.entry_mut(&key).ok_or(Error::NotFound)?;
        let is_quiet = |quiet| quiet == entry.used.activity(entry.session.generation, now);
        if entry.session.version + 1 != commit.session.version || !quiet.is_none_or(is_quiet) {
            return Err(Error::Conflict);
        }
        entry.session = commit.session.clone();
        entry.history.push_back(commit.record.clone());
        if entry.history.len() > HISTORY {
            entry.history.pop_front();
        }
        state.set_due(&key, commit.due);
        state.trail.add(AuditRecord::of_change(&key, &commit.record));
        self.publish(&commit.session, commit.record);
        Ok(())
    }

    fn publish(&self, session: &Session, record: EventRecord) {
        // Fails only when nobody listens.
        drop(self.feed.send(Feed::Change(Box::new(Change {
            key: session.key(),
            record,
            token_epoch: session.token_epoch,
        }))));
    }
}

impl State {
    fn entry(&self, key: &SessionKey) -> Option<&Entry> {
        self.orgs.get(&key.org)?.get(&key.id)
    }

    fn entry_mut(&mut self, key: &SessionKey) -> Option<&mut Entry> {
        self.orgs.get_mut(&key.org)?.get_mut(&key.id)
    }

    fn set_due(&mut self, key: &SessionKey, due: Option<Timestamp>) {
        let Some(entry) = self.entry_mut(key) else { return };
        let before = std::mem::replace(&mut entry.due, due);
        if let Some(at) = before {
            self.due.remove(&(at, key.clone()));
        }
        if let Some(at) = due {
            self.due.insert((at, key.clone()));
        }
    }

    fn repeated(
        &mut self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
        now: Timestamp,
    ) -> Result<Option<Session>, Error> {
        while let Some((at, _)) = self.requests_by_age.front()
            && now.since(*at) >= REQUEST_ID_MEMORY
        {
            let Some((at, key)) = self.requests_by_age.pop_front() else {
                break;
            };
            if self.requests.get(&key).is_some_and(|request| request.at == at) {
                self.requests.remove(&key);
            }
        }
        let Some(first) = self
            .requests
            .get(&(org.clone(), owner.clone(), request.id.clone()))
        else {
            return Ok(None);
        };
        if request.fingerprint != first.fingerprint {
            return Err(Error::RequestIdReused);
        }
        Ok(self.entry(&first.session).map(|entry| entry.session.clone()))
    }

    fn check_quotas(&self, session: &Session, limits: &Limits, now: Timestamp) -> Result<(), Error> {
        let live = |of_owner: bool| {
            let sessions = self.orgs.get(&session.org).into_iter().flat_map(BTreeMap::values);
            sessions
                .filter(|e| {
                    !e.session.status().is_terminal() && (!of_owner || e.session.owner == session.owner)
                })
                .count()
        };
        let used_up = |quota, limit, retry_after| {
            Err(Error::Quota {
                quota,
                limit,
                retry_after,
            })
        };
        if live(true) >= limits.live_sessions_per_owner as usize {
            return used_up("live_sessions_per_owner", limits.live_sessions_per_owner, None);
        }
        if live(false) >= limits.live_sessions as usize {
            return used_up("live_sessions", limits.live_sessions, None);
        }
        let (window, left) = window_of(now);
        let creates = self.creates.get(&(session.org.clone(), session.owner.clone()));
        let count = creates
            .filter(|(seen, _)| *seen == window)
            .map_or(0, |(_, count)| *count);
        if count >= limits.creates_per_minute {
            return used_up("creates_per_minute", limits.creates_per_minute, Some(left));
        }
        Ok(())
    }

    fn count_create(&mut self, session: &Session, now: Timestamp) {
        let (window, _) = window_of(now);
        let creates = self
            .creates
            .entry((session.org.clone(), session.owner.clone()))
            .or_default();
        *creates = if creates.0 == window {
            (window, creates.1 + 1)
        } else {
            (window, 1)
        };
    }
}

/// The minute that `now` is in, and what is left of it.
fn window_of(now: Timestamp) -> (u64, Duration) {
    let window = now.as_millis() / MINUTE_MILLIS;
    (
        window,
        Timestamp::from_millis((window + 1) * MINUTE_MILLIS).since(now),
    )
}

fn request_key(create: &Create) -> Option<RequestKey> {
    let request = create.request.as_ref()?;
    Some((
        create.session.org.clone(),
        create.session.owner.clone(),
        request.id.clone(),
    ))
}

impl State {
    /// Those in an organization's share, or those in nobody's.
    fn definitions_of<'a>(
        &'a self,
        kind: Kind,
        org: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a String, &'a Definition)> {
        self.definitions
            .iter()
            .filter(move |((stored, name), _)| *stored == kind && kind.org_of(name) == org)
            .map(|((_, name), definition)| (name, definition))
    }
}

fn check_definition(stored: Option<&Definition>, expected: u64) -> Result<(), Error> {
    match stored.map_or(0, |definition| definition.version) {
        version if version == expected => Ok(()),
        0 => Err(Error::NotFound),
        _ if expected == 0 => Err(Error::Exists),
        _ => Err(Error::Conflict),
    }
}

/// Who has a lease.
struct Leased {
    owner: String,
    until: Timestamp,
    fence: u64,
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn now(&self) -> Result<Timestamp, Error> {
        Ok(self.clock.now())
    }

    async fn create(&self, create: Create) -> Result<Created, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(request) = &create.request {
            let Session { org, owner, .. } = &create.session;
            if let Some(session) = state.repeated(org, owner, request, now)? {
                return Ok(Created { session, new: false });
            }
        }
        let key = create.session.key();
        if state.entry(&key).is_some() {
            return Err(Error::Exists);
        }
        state.check_quotas(&create.session, &create.limits, now)?;
        state.count_create(&create.session, now);
        if let (Some(request_key), Some(request)) = (request_key(&create), create.request) {
            state.requests_by_age.push_back((now, request_key.clone()));
            let request = Request {
                fingerprint: request.fingerprint,
                session: key.clone(),
                at: now,
            };
            state.requests.insert(request_key, request);
        }
        let entry = Entry {
            session: create.session.clone(),
            history: VecDeque::from([create.record.clone()]),
            due: None,
            used: Used::default(),
            tokens: BTreeMap::new(),
        };
        state
            .orgs
            .entry(key.org.clone())
            .or_default()
            .insert(key.id.clone(), entry);
        state.set_due(&key, Some(create.due));
        state.trail.add(AuditRecord::of_change(&key, &create.record));
        self.publish(&create.session, create.record);
        Ok(Created {
            session: create.session,
            new: true,
        })
    }

    async fn repeated(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error> {
        let now = self.clock.now();
        self.state().repeated(org, owner, request, now)
    }

    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error> {
        Ok(self.state().entry(key).map(|entry| entry.session.clone()))
    }

    async fn load(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        let now = self.clock.now();
        let state = self.state();
        Ok(state.entry(key).map(|e| Loaded {
            session: e.session.clone(),
            activity: e.used.activity(e.session.generation, now),
            at: now,
        }))
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        self.write(commit, None)
    }

    async fn commit_quiet(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error> {
        self.write(commit, Some(Activity::Quiet { last_activity_at }))
    }

    async fn report(&self, key: &SessionKey, report: &Report) -> Result<Reported, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(entry) = state.entry_mut(key) else {
            return Ok(Reported::Unknown);
        };
        let tokens = &entry.tokens;
        let first_used = entry.used.add(report, |id| tokens.contains_key(id), now);
        let status = entry.session.status();
        if !status.is_terminal() {
            entry.used.take(report, entry.session.generation, now);
        }
        for id in first_used {
            state.trail.add(first_use(key, &id, now));
        }
        Ok(if status.is_terminal() {
            Reported::Ended
        } else {
            Reported::Live(status)
        })
    }

    async fn uses(&self, sessions: &[Session]) -> Result<Vec<Use>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let used = |session: &Session| {
            let entry = state.entry(&session.key())?;
            Some(entry.used.seen(session.generation, now))
        };
        Ok(sessions
            .iter()
            .map(|session| used(session).unwrap_or_default())
            .collect())
    }

    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let operations = |e: &Entry| e.used.operations(e.session.generation, now);
        Ok(state.entry(key).map(operations).unwrap_or_default())
    }

    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let uses = |e: &Entry| {
            e.used
                .token_uses(|id| e.tokens.get(id).is_some_and(|token| e.lists(token, now)))
        };
        Ok(state.entry(key).map(uses).unwrap_or_default())
    }

    async fn proxy_reported(&self, proxy: &ProxyId, sequence: u64) -> Result<Heard, Error> {
        let now = self.clock.now();
        Ok(self.state().proxies.heard(proxy, sequence, now))
    }

    async fn proxy_spoke(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error> {
        self.state().proxies.spoke(proxy, at);
        Ok(())
    }

    async fn proxies(&self, silent_after: Duration, gone_after: Option<Duration>) -> Result<Proxies, Error> {
        let now = self.clock.now();
        Ok(self.state().proxies.count(silent_after, gone_after, now))
    }

    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error> {
        let mut state = self.state();
        let entry = state.entry(key).ok_or(Error::NotFound)?;
        if entry.session.version != version {
            return Err(Error::Conflict);
        }
        state.set_due(key, due);
        Ok(())
    }

    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let due = state.due.iter().take_while(|(at, _)| *at <= now).take(limit);
        let keys: Vec<_> = due.map(|(_, key)| key.clone()).collect();
        for key in &keys {
            state.set_due(key, Some(now.after(lease)));
        }
        Ok(keys)
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        let mut page = Filling::begin(query)?;
        let state = self.state();
        let cursor = page.cursor().cloned();
        let below = cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let sessions = state.orgs.get(&query.org).into_iter();
        let mut sessions = sessions
            .flat_map(|of_org| of_org.range::<SessionId, _>((Bound::Unbounded, below)).rev())
            .filter(|(_, entry)| query.scope.admits(&entry.session))
            .peekable();
        while page.lacks() > 0
            && let Some((id, entry)) = sessions.next()
        {
            page.examine(id.clone(), Some(entry.session.clone()));
        }
        let more = sessions.peek().is_some();
        Ok(page.finish(more))
    }

    async fn live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        let state = self.state();
        let all = state
            .orgs
            .values()
            .flat_map(BTreeMap::values)
            .map(|entry| &entry.session);
        let live = all.filter(|session| session.cluster == *cluster && !session.status().is_terminal());
        Ok(live
            .map(Session::key)
            .filter(|key| after.is_none_or(|after| key > after))
            .take(limit)
            .collect())
    }

    async fn orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
        let live = self.live_on_cluster(cluster, None, usize::MAX).await?;
        Ok(live.into_iter().map(|key| key.org).collect())
    }

    async fn counts(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        let state = self.state();
        let mut counts: BTreeMap<_, _> = Status::ALL.map(|status| (status, 0)).into();
        for entry in state.orgs.get(org).into_iter().flat_map(BTreeMap::values) {
            *counts.entry(entry.session.status()).or_default() += 1;
        }
        Ok(counts)
    }

    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error> {
        Ok(self.state().due.first().map(|(at, _)| *at))
    }

    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error> {
        let state = self.state();
        Ok(state
            .entry(key)
            .map(|entry| entry.history.iter().cloned().collect())
            .unwrap_or_default())
    }

    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        progress.in_process();
        let changes = BroadcastStream::new(self.feed.subscribe());
        let feed = changes.map(|feed| match feed {
            Ok(feed) => feed,
            Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(_)) => Feed::Reset,
        });
        futures::stream::iter([Feed::Reset]).chain(feed).boxed()
    }

    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry_mut(key).ok_or(Error::NotFound)?;
        let session = &entry.session;
        if session.status().is_terminal() {
            return Err(Error::TokenRefused("closed"));
        }
        if session.token_epoch != token.epoch {
            return Err(Error::TokenRefused("epoch"));
        }
        entry
            .tokens
            .retain(|_, kept| kept.expires_at.after(TOKEN_MEMORY) > now && kept.epoch == token.epoch);
        if entry
            .tokens
            .get(&token.id)
            .is_some_and(|kept| kept.expires_at > now)
        {
            return Ok(());
        }
        entry.tokens.remove(&token.id);
        let counts = |kept: &&TokenRecord| kept.expires_at > now;
        if entry.tokens.values().filter(counts).count() >= limit as usize {
            entry
                .tokens
                .retain(|id, _| !session.revoked_tokens.contains_key(id));
        }
        if entry.tokens.values().filter(counts).count() >= limit as usize {
            return Err(Error::Quota {
                quota: "tokens_per_session",
                limit,
                retry_after: None,
            });
        }
        let mut expired: Vec<_> = entry
            .tokens
            .values()
            .filter(|kept| !counts(kept))
            .cloned()
            .collect();
        TokenRecord::sort_oldest_first(&mut expired);
        let surplus = (entry.tokens.len() + 1).saturating_sub(limit as usize);
        for gone in expired.iter().take(surplus) {
            entry.tokens.remove(&gone.id);
        }
        entry.used.keep_tokens(|id| entry.tokens.contains_key(id));
        let issued = token.audited(key);
        entry.tokens.insert(token.id.clone(), token);
        state.trail.add(issued);
        Ok(())
    }

    async fn tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let Some(entry) = state.entry(key) else {
            return Ok(Vec::new());
        };
        let tokens = entry.tokens.values();
        let mut tokens: Vec<_> = tokens.filter(|token| entry.lists(token, now)).cloned().collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        let now = self.clock.now();
        let state = self.state();
        let Some(entry) = state.entry(key) else {
            return Ok(Vec::new());
        };
        let recent = |token: &&TokenRecord| {
            token.expires_at.after(TOKEN_MEMORY) > now && token.epoch == entry.session.token_epoch
        };
        let mut tokens: Vec<_> = entry.tokens.values().filter(recent).cloned().collect();
        TokenRecord::sort_oldest_first(&mut tokens);
        Ok(tokens)
    }

    async fn lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let held = state.leases.get(name).filter(|lease| lease.until > now);
        let fence = match held {
            Some(lease) if lease.owner != owner => return Ok(None),
            Some(lease) => lease.fence,
            None => (state.last_fence + 1).max(now.as_millis()),
        };
        state.last_fence = state.last_fence.max(fence);
        let lease = Leased {
            owner: owner.to_owned(),
            until: now.after(ttl),
            fence,
        };
        state.leases.insert(name.to_owned(), lease);
        Ok(Some(fence))
    }

    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error> {
        let mut state = self.state();
        let key = (kind, name.to_owned());
        check_definition(state.definitions.get(&key), expected)?;
        let version = expected + 1;
        state.definitions.insert(
            key,
            Definition {
                version,
                json: json.to_owned(),
            },
        );
        Ok(version)
    }

    async fn put_definition_within(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error> {
        {
            let state = self.state();
            let stored = state.definitions.get(&(kind, name.to_owned()));
            check_definition(stored, expected)?;
            let before = stored.map_or(0, |stored| name.len() + stored.json.len());
            let after = name.len() + json.len();
            if let Some(org) = kind.org_of(name)
                && after > before
            {
                let sizes: Vec<usize> = state
                    .definitions_of(kind, Some(org))
                    .map(|(name, stored)| name.len() + stored.json.len())
                    .collect();
                let bytes = sizes.iter().sum::<usize>() + after - before;
                let over = match (stored, quota.entries, quota.bytes) {
                    (None, (entries, limit), _) if sizes.len() >= limit as usize => Some((entries, limit)),
                    (_, _, (of_bytes, limit)) if bytes > limit as usize => Some((of_bytes, limit)),
                    _ => None,
                };
                if let Some((quota, limit)) = over {
                    return Err(Error::Quota {
                        quota,
                        limit,
                        retry_after: None,
                    });
                }
            }
        }
        self.put_definition(kind, name, expected, json).await
    }

    async fn definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error> {
        Ok(self.state().definitions.get(&(kind, name.to_owned())).cloned())
    }

    async fn some_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error> {
        let state = self.state();
        let stored = |one| state.definitions.get(one).cloned();
        Ok(wanted.iter().map(stored).collect())
    }

    async fn definitions_of(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error> {
        let state = self.state();
        let found = state.definitions_of(kind, org.map(OrgId::as_str));
        Ok(found
            .map(|(name, definition)| (name.clone(), definition.clone()))
            .collect())
    }

    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error> {
        let state = self.state();
        let found = state.definitions_of(kind, org.map(OrgId::as_str));
        Ok(found.map(|(name, _)| name.clone()).collect())
    }

    async fn orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error> {
        let state = self.state();
        let names = state.definitions.keys().filter(|(stored, _)| *stored == kind);
        let orgs = names.filter_map(|(_, name)| kind.org_of(name)?.parse().ok());
        Ok(orgs.collect())
    }

    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error> {
        let mut state = self.state();
        let key = (kind, name.to_owned());
        let stored = state.definitions.get(&key).ok_or(Error::NotFound)?;
        if stored.version != expected {
            return Err(Error::Conflict);
        }
        state.definitions.remove(&key);
        Ok(())
    }

    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error> {
        let now = self.clock.now();
        Ok(self.state().trim(keep, limit, now))
    }

    async fn epoch(&self) -> Result<u64, Error> {
        Ok(self.epoch.load(Ordering::Acquire))
    }

    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }
}
