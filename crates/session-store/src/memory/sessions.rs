//! Session records in memory.

use super::MemoryStore;
use super::activity_reports::SessionUse;
use super::{Entry, State};
use crate::{
    Change, Commit, Create, Created, Error, Feed, MAX_HISTORY, REQUEST_ID_RETENTION, RequestId, Sessions,
};
use async_trait::async_trait;
use session_core::{
    Activity, AuditRecord, EventRecord, Limits, OrgId, PrincipalId, Quota, Session, SessionKey, Timestamp,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Window of `creates_per_minute`, in milliseconds.
const MINUTE_MILLIS: u64 = 60_000;

pub(super) type RequestKey = (OrgId, PrincipalId, String);

pub(super) struct Request {
    fingerprint: String,
    session: SessionKey,
    at: Timestamp,
}

#[async_trait]
impl Sessions for MemoryStore {
    async fn create(&self, create: Create) -> Result<Created, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(request) = &create.request {
            let Session { org, owner, .. } = &create.session;
            if let Some(session) = state.find_by_request(org, owner, request, now)? {
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
            used: SessionUse::default(),
            tokens: BTreeMap::new(),
        };
        state
            .orgs
            .entry(key.org.clone())
            .or_default()
            .insert(key.id.clone(), entry);
        state.set_due(&key, Some(create.due));
        state
            .trail
            .add(AuditRecord::of_change(&key, &create.record), self.clock.now());
        self.publish(&create.session, create.record);
        Ok(Created {
            session: create.session,
            new: true,
        })
    }

    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error> {
        Ok(self.state().entry(key).map(|entry| entry.session.clone()))
    }

    async fn find_by_request(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error> {
        let now = self.clock.now();
        self.state().find_by_request(org, owner, request, now)
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        self.write(commit, None)
    }

    async fn commit_if_idle(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error> {
        self.write(commit, Some(Activity::Quiet { last_activity_at }))
    }

    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error> {
        let state = self.state();
        Ok(state
            .entry(key)
            .map(|entry| entry.history.iter().cloned().collect())
            .unwrap_or_default())
    }
}

impl MemoryStore {
    /// Writes a change; if `quiet` is given, only while the activity equals it.
    pub(super) fn write(&self, commit: Commit, quiet: Option<Activity>) -> Result<(), Error> {
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
        if entry.history.len() > MAX_HISTORY {
            entry.history.pop_front();
        }
        state.set_due(&key, commit.due);
        state.trail.add(AuditRecord::of_change(&key, &commit.record), now);
        self.publish(&commit.session, commit.record);
        Ok(())
    }

    pub(super) fn publish(&self, session: &Session, record: EventRecord) {
        // Fails only without subscribers.
        drop(self.feed.send(Feed::Change(Box::new(Change {
            key: session.key(),
            record,
            token_epoch: session.token_epoch,
        }))));
    }
}

impl State {
    pub(super) fn find_by_request(
        &mut self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
        now: Timestamp,
    ) -> Result<Option<Session>, Error> {
        while let Some((at, _)) = self.requests_by_age.front()
            && now.since(*at) >= REQUEST_ID_RETENTION
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

    pub(super) fn check_quotas(
        &self,
        session: &Session,
        limits: &Limits,
        now: Timestamp,
    ) -> Result<(), Error> {
        let live = |of_owner: bool| {
            let sessions = self.orgs.get(&session.org).into_iter().flat_map(BTreeMap::values);
            sessions
                .filter(|e| {
                    !e.session.status().is_terminal() && (!of_owner || e.session.owner == session.owner)
                })
                .count()
        };
        let exhausted = |quota, limit, retry_after| {
            Err(Error::Quota {
                quota,
                limit,
                retry_after,
            })
        };
        if live(true) >= limits.live_sessions_per_owner as usize {
            return exhausted(Quota::LiveSessionsPerOwner, limits.live_sessions_per_owner, None);
        }
        if live(false) >= limits.live_sessions as usize {
            return exhausted(Quota::LiveSessions, limits.live_sessions, None);
        }
        let (window, left) = window_of(now);
        let creates = self.creates.get(&(session.org.clone(), session.owner.clone()));
        let count = creates
            .filter(|(seen, _)| *seen == window)
            .map_or(0, |(_, count)| *count);
        if count >= limits.creates_per_minute {
            return exhausted(Quota::CreatesPerMinute, limits.creates_per_minute, Some(left));
        }
        Ok(())
    }

    pub(super) fn count_create(&mut self, session: &Session, now: Timestamp) {
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

/// The minute that contains `now`, and the rest of it.
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
