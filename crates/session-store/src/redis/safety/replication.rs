//! Replication of changes that must not be lost once acknowledged: the end of a
//! session, and revoked tokens.
//!
//! Redis acknowledges a write before its replicas have it, and a fail-over loses what
//! they lack. If the server has replicas, the writer of such a change waits a short
//! time until one has it. If none has it in time, the change is valid but unreplicated:
//! this process checks it until a replica has it, and writes it again if a fail-over
//! lost it.
//!
//! One replica is not all of them: a fail-over can choose another one, and a former
//! primary accepts writes until the store follows the new one. So replicated changes are
//! kept for some time too, and compared when the store epoch increases.

use crate::prelude::*;
use crate::redis::connection::{Address, Connections, Dedicated};
use crate::redis::schema::keys::Slot;
use crate::redis::{RedisStore, sessions};
use crate::{Commit, Error};
use futures::{StreamExt as _, stream};
use parking_lot::{Mutex, MutexGuard};
use session_core::{AuditRecord, ChangeReason, EventRecord, Session, SessionKey, Timestamp};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Replicas that must have a change.
const REPLICAS: u64 = 1;
/// Time limit of the wait for replicas.
const WAIT: Duration = Duration::from_millis(100);
/// Maximum number of unreplicated changes that one process checks.
const MAX_UNREPLICATED: usize = 10_000;
/// Maximum number of them per check.
const MAX_PER_RECHECK: usize = 100;

/// Minimum time for which a replicated change is kept while all servers answer: much longer
/// than a replica may be behind.
const RECENT: Duration = Duration::from_secs(30);
/// Maximum number of replicated changes that are kept; the oldest are removed first.
const MAX_RECENT: usize = 10_000;
/// Attempts to write a change again while others change the session.
const MAX_TRIES: usize = 5;
/// Recent changes that are compared at the same time.
const COMPARED_AT_ONCE: usize = 16;

/// Replica queries by server, and changes that a fail-over may lose.
#[derive(Default)]
pub(in crate::redis) struct Replication {
    queries: Mutex<HashMap<Address, Arc<ReplicaQuery>>>,
    /// The changes of a session that do not include each other.
    unreplicated: Mutex<BTreeMap<SessionKey, Vec<Commit>>>,
    recent: Mutex<VecDeque<Recent>>,
}

/// A replicated change.
struct Recent {
    commit: Commit,
    written_at: Instant,
    /// Store epoch at which the store includes it.
    epoch: u64,
}

/// Queries of the replicas of one server. Callers that arrive while a query runs share
/// the next one.
#[derive(Default)]
struct ReplicaQuery {
    waiting: Mutex<Vec<oneshot::Sender<bool>>>,
    connection: tokio::sync::Mutex<Option<Dedicated>>,
}

impl Replication {
    fn replica_query(&self, address: &Address) -> Arc<ReplicaQuery> {
        let mut queries = lock(&self.queries);
        Arc::clone(queries.entry(address.clone()).or_default())
    }

    fn unreplicated(&self) -> MutexGuard<'_, BTreeMap<SessionKey, Vec<Commit>>> {
        lock(&self.unreplicated)
    }

    /// Adds a change that a replica has.
    fn add_recent(&self, recent: Recent) {
        let mut changes = lock(&self.recent);
        if changes.len() >= MAX_RECENT {
            changes.pop_front();
        }
        changes.push_back(recent);
    }

    /// Removes the changes that must be compared at this epoch, however old they are: the
    /// fail-over may have taken longer than [`RECENT`].
    fn take_recent(&self, epoch: u64) -> VecDeque<Recent> {
        let mut changes = lock(&self.recent);
        let all = std::mem::take(&mut *changes);
        let (same, other) = all.into_iter().partition(|recent| recent.epoch == epoch);
        *changes = same;
        other
    }

    /// Removes the old changes that the store includes at this epoch. Only valid while all
    /// servers answer: otherwise a fail-over may be in progress.
    pub(super) fn forget_old(&self, epoch: u64) {
        lock(&self.recent).retain(|recent| recent.epoch != epoch || recent.written_at.elapsed() <= RECENT);
    }

    /// Adds an unreplicated change in place of those that it includes. A change of a record
    /// that a fail-over took back does not include what was lost.
    fn add_unreplicated(&self, commit: Commit) {
        let key = commit.session.key();
        let mut unreplicated = self.unreplicated();
        if unreplicated.len() >= MAX_UNREPLICATED && !unreplicated.contains_key(&key) {
            tracing::error!(session = %key.id, "too many unreplicated changes; a fail-over may lose this one");
            return;
        }
        let changes = unreplicated.entry(key).or_default();
        let at = commit.record.at;
        changes.retain(|earlier| reapply(&commit.session, earlier, at).is_some());
        changes.push(commit);
    }

    /// Removes a change that a replica has.
    fn remove_unreplicated(&self, commit: &Commit) {
        let mut unreplicated = self.unreplicated();
        let key = commit.session.key();
        let Some(changes) = unreplicated.get_mut(&key) else {
            return;
        };
        changes.retain(|kept| kept.record != commit.record);
        if changes.is_empty() {
            unreplicated.remove(&key);
        }
    }
}

/// Returns whether a replica must have this change.
pub(in crate::redis) fn needs_replica(commit: &Commit) -> bool {
    commit.session.status().is_terminal() || commit.record.reason == ChangeReason::TokensRevoked
}

impl ReplicaQuery {
    /// Returns whether a replica has all writes before this call.
    async fn has_replicated(
        &self,
        connections: &Connections,
        pipeline: &redis::Pipeline,
        slot: Slot,
    ) -> bool {
        loop {
            let (sender, mut receiver) = oneshot::channel();
            lock(&self.waiting).push(sender);
            let mut connection = self.connection.lock().await;
            match receiver.try_recv() {
                Ok(answer) => return answer,
                // The task that ran the shared query was cancelled.
                Err(oneshot::error::TryRecvError::Closed) => continue,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let waiting = std::mem::take(&mut *lock(&self.waiting));
            let answer = query_replicas(connections, pipeline, slot, &mut connection).await;
            if let Err(error) = &answer {
                tracing::debug!(%error, "querying replicas failed");
            }
            let replicated = answer.unwrap_or(false);
            for sender in waiting {
                // A receiver that is gone needs no result.
                let _ = sender.send(replicated);
            }
            return replicated;
        }
    }
}

/// `WAIT` covers the writes of its own connection, so one more write precedes it: a
/// replica that has this write has all earlier ones.
async fn query_replicas(
    connections: &Connections,
    pipeline: &redis::Pipeline,
    slot: Slot,
    connection: &mut Option<Dedicated>,
) -> Result<bool, Error> {
    let mut dedicated = match connection.take() {
        Some(dedicated) => dedicated,
        None => connections.dedicated(slot).await?,
    };
    let (_, replicas): (u64, u64) = dedicated.pipeline(pipeline, WAIT).await?;
    *connection = Some(dedicated);
    Ok(replicas >= REPLICAS)
}

impl RedisStore {
    /// Writes a change that a replica must have. Runs as its own task, so that it
    /// finishes when the caller is cancelled.
    pub(in crate::redis) async fn commit_replicated(
        &self,
        commit: Commit,
        last_activity_at: Option<Timestamp>,
    ) -> Result<(), Error> {
        let store = self.clone();
        let written = tokio::spawn(async move {
            // Before the write: a fail-over in between makes the change one of an old epoch.
            let epoch = store.epoch.current().await?;
            let written_at = Instant::now();
            store.write_change(&commit, last_activity_at).await?;
            if !store.is_replicated(slot_of(&commit)).await {
                store.audit_unreplicated(&commit).await;
                store.replication.add_unreplicated(commit);
            } else {
                store.replication.add_recent(Recent {
                    commit,
                    written_at,
                    epoch,
                });
            }
            Ok(())
        });
        written
            .await
            .unwrap_or_else(|error| Err(Error::unreachable(error.to_string())))
    }

    /// Adds a second audit record that marks the change as unreplicated: the first one
    /// was written with the change.
    async fn audit_unreplicated(&self, commit: &Commit) {
        let record = AuditRecord {
            unreplicated: true,
            ..sessions::audited(commit)
        };
        let session = &commit.session.id;
        tracing::warn!(%session, version = commit.session.version, "change not replicated yet");
        if let Err(error) = self.append_audit(&record).await {
            tracing::warn!(%session, %error, "marking a change as unreplicated in the audit trail failed");
        }
    }

    /// Returns whether a replica has all writes to `slot`; true if the server never had
    /// a replica.
    async fn is_replicated(&self, slot: Slot) -> bool {
        let server = match self.connections.server(slot).await {
            Ok(server) => server,
            Err(_) => return false,
        };
        if !server.is_replicated() {
            return true;
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(self.scripts.heartbeat.key(self.keys.heartbeat(slot)).in_full());
        pipeline
            .cmd("WAIT")
            .arg(REPLICAS)
            .arg(u64::try_from(WAIT.as_millis()).unwrap_or(0));
        let replica_query = self.replication.replica_query(server.address());
        replica_query
            .has_replicated(&self.connections, &pipeline, slot)
            .await
    }

    /// Compares recent changes after a fail-over, and writes lost ones again.
    pub(in crate::redis) async fn recheck_recent(&self, epoch: u64) -> Result<(), Error> {
        let changes = self.replication.take_recent(epoch);
        let mut compared = stream::iter(changes)
            .map(async |recent| (self.rewrite_lost(&recent.commit).await, recent))
            .buffered(COMPARED_AT_ONCE);
        let mut failed = Ok(());
        while let Some((outcome, recent)) = compared.next().await {
            match outcome {
                Ok(true) => self.replication.add_unreplicated(recent.commit),
                Ok(false) => self.replication.add_recent(Recent { epoch, ..recent }),
                // Only an operator can mend the record.
                Err(Error::Corrupt(error)) => {
                    let session = &recent.commit.session.id;
                    tracing::error!(%session, error, "comparing a change after a fail-over failed; it may be lost");
                }
                // Of its old epoch, so it is compared again.
                Err(error) => {
                    self.replication.add_recent(recent);
                    failed = Err(error);
                }
            }
        }
        failed
    }

    /// Checks unreplicated changes: writes lost ones again, and removes those that a
    /// replica has.
    pub(in crate::redis) async fn recheck_unreplicated(&self) -> Result<(), Error> {
        let unreplicated: Vec<Commit> = self
            .replication
            .unreplicated()
            .values()
            .flatten()
            .take(MAX_PER_RECHECK)
            .cloned()
            .collect();
        for commit in unreplicated {
            let before = self.epoch.current().await?;
            self.rewrite_lost(&commit).await?;
            // The result is valid only for the servers that were checked.
            if self.is_replicated(slot_of(&commit)).await && self.epoch.current().await? == before {
                self.replication.remove_unreplicated(&commit);
            }
        }
        Ok(())
    }

    /// Writes a change again if the stored record does not include it; returns whether it
    /// was lost.
    async fn rewrite_lost(&self, commit: &Commit) -> Result<bool, Error> {
        for _ in 1..MAX_TRIES {
            match self.try_rewrite_lost(commit).await {
                Err(Error::Conflict) => {}
                other => return other,
            }
        }
        self.try_rewrite_lost(commit).await
    }

    async fn try_rewrite_lost(&self, commit: &Commit) -> Result<bool, Error> {
        let key = commit.session.key();
        let now = self.now().await?;
        let Some(stored) = self.get(&key).await? else {
            // The session itself was lost, which counts as closed.
            return Ok(false);
        };
        let Some(change) = reapply(&stored, commit, now) else {
            return Ok(false);
        };
        tracing::warn!(
            session = %key.id, org = %key.org, version = change.session.version,
            reason = change.record.reason.as_str(), "writing a change again that a fail-over lost"
        );
        let mut call = self.scripts.rewrite_lost.prepare_invoke();
        sessions::save(&mut call, &self.keys, &[], &change)?;
        call.arg(stored.version);
        self.add_audit_args(&mut call, &sessions::audited(&change))?;
        self.run(&call).await?.done().map(|_| true)
    }
}

fn slot_of(commit: &Commit) -> Slot {
    Slot::Partition(commit.session.org.partition())
}

/// The change that applies `lost` to `stored`, if `stored` does not include it.
fn reapply(stored: &Session, lost: &Commit, now: Timestamp) -> Option<Commit> {
    let ours = &lost.session;
    if stored.status().is_terminal() {
        return None;
    }
    let version = ours.version.max(stored.version + 1);
    let token_epoch = ours.token_epoch.max(stored.token_epoch);
    if ours.status().is_terminal() {
        let generation = ours.generation.max(stored.generation);
        return Some(Commit {
            session: Session {
                version,
                generation,
                token_epoch,
                ..ours.clone()
            },
            record: EventRecord {
                version,
                generation,
                from: Some(stored.status()),
                ..lost.record.clone()
            },
            due: lost.due.or(Some(now)),
        });
    }
    let mut revoked_tokens = stored.revoked_tokens.clone();
    if stored.token_epoch <= ours.token_epoch {
        let still_good = ours.revoked_tokens.iter().filter(|(_, until)| **until > now);
        revoked_tokens.extend(still_good.map(|(id, until)| (id.clone(), *until)));
    }
    let included = token_epoch == stored.token_epoch && revoked_tokens.len() == stored.revoked_tokens.len();
    (!included).then(|| Commit {
        session: Session {
            version,
            token_epoch,
            revoked_tokens,
            ..stored.clone()
        },
        record: EventRecord {
            version,
            generation: stored.generation,
            from: Some(stored.status()),
            to: stored.status(),
            phase: stored.state.phase(),
            ..lost.record.clone()
        },
        due: Some(now),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::machine::{self, Event};
    use session_core::{Actor, TokenId};
    use test_support::fixtures;

    fn change(session: &Session, event: &Event) -> Commit {
        let changed = machine::apply(session, event, &Actor::System, session.created_at).unwrap();
        let changed = changed.unwrap();
        Commit {
            session: changed.session,
            record: changed.record,
            due: None,
        }
    }

    fn revoke(session: &Session, id: &str) -> Commit {
        let event = Event::RevokeToken {
            id: id.parse::<TokenId>().unwrap(),
            until: session.expires_at,
        };
        change(session, &event)
    }

    fn kept(replication: &Replication, session: &Session) -> Vec<EventRecord> {
        let unreplicated = replication.unreplicated();
        let changes = unreplicated.get(&session.key()).into_iter().flatten();
        changes.map(|commit| commit.record.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_kept_during_a_fail_over_of_any_length() {
        let replication = Replication::default();
        let now = Timestamp::from_millis(1_700_000_000_000);
        let session = machine::create(fixtures::new_session(1, "c", fixtures::policy(), now), now).session;
        replication.add_recent(Recent {
            commit: revoke(&session, "t-01m8q467fepdk7de2wnt"),
            written_at: Instant::now(),
            epoch: 1,
        });
        tokio::time::advance(10 * RECENT).await;
        replication.forget_old(2);
        let compared = replication.take_recent(2).pop_front().unwrap();
        replication.add_recent(Recent { epoch: 2, ..compared });
        assert!(replication.take_recent(2).is_empty());
        assert_eq!(lock(&replication.recent).len(), 1);
        replication.forget_old(2);
        assert_eq!(lock(&replication.recent).len(), 0);
    }

    #[test]
    fn a_later_change_replaces_those_that_it_includes_only() {
        let replication = Replication::default();
        let now = Timestamp::from_millis(1_700_000_000_000);
        let session = machine::create(fixtures::new_session(1, "c", fixtures::policy(), now), now).session;
        let one = revoke(&session, "t-01m8q467fepdk7de2wnt");
        let both = revoke(&one.session, "t-01m8q467fgk3dh6m4qnq");
        let both_session = both.session.clone();
        replication.add_unreplicated(one.clone());
        replication.add_unreplicated(both.clone());
        assert_eq!(kept(&replication, &session), [both.record]);
        // A fail-over took the record back to the first change.
        let ended = change(
            &both_session,
            &Event::Close {
                reason: ChangeReason::CloseRequested,
            },
        );
        let other = revoke(&one.session, "t-01m8q467v67pw2rzy57b");
        replication.add_unreplicated(ended.clone());
        replication.add_unreplicated(other.clone());
        assert_eq!(
            kept(&replication, &session),
            [ended.record.clone(), other.record.clone()]
        );
        replication.remove_unreplicated(&other);
        assert_eq!(kept(&replication, &session), std::slice::from_ref(&ended.record));
        replication.remove_unreplicated(&ended);
        assert!(replication.unreplicated().is_empty());
    }
}
