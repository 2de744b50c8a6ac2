//! Replication of changes that must not be lost once acknowledged: the end of a
//! session, and revoked tokens.
//!
//! Redis acknowledges a write before its replicas have it, and a fail-over loses what
//! they lack. If the server has replicas, the writer of such a change waits a short
//! time until one has it. If none has it in time, the change is valid but unreplicated:
//! this process checks it until a replica has it, and writes it again if a fail-over
//! lost it.

use crate::prelude::*;
use crate::redis::connection::{Address, Connections, Dedicated};
use crate::redis::schema::keys::Slot;
use crate::redis::{RedisStore, sessions};
use crate::{Commit, Error};
use parking_lot::{Mutex, MutexGuard};
use session_core::{AuditRecord, ChangeReason, EventRecord, Session, SessionKey, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Replicas that must have a change.
const REPLICAS: u64 = 1;
/// Time limit of the wait for replicas.
const WAIT: Duration = Duration::from_millis(100);
/// Maximum number of unreplicated changes that one process checks.
const MAX_UNREPLICATED: usize = 10_000;
/// Maximum number of them per check.
const MAX_PER_RECHECK: usize = 100;

/// Replica queries by server, and unreplicated changes.
#[derive(Default)]
pub(in crate::redis) struct Replication {
    queries: Mutex<HashMap<Address, Arc<ReplicaQuery>>>,
    unreplicated: Mutex<BTreeMap<SessionKey, Commit>>,
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

    fn unreplicated(&self) -> MutexGuard<'_, BTreeMap<SessionKey, Commit>> {
        lock(&self.unreplicated)
    }

    /// Adds an unreplicated change. The newest change of a session includes the earlier
    /// ones.
    fn add_unreplicated(&self, commit: Commit) {
        let key = commit.session.key();
        let mut unreplicated = self.unreplicated();
        if unreplicated.len() < MAX_UNREPLICATED || unreplicated.contains_key(&key) {
            unreplicated.insert(key, commit);
        } else {
            tracing::error!(session = %key.id, "too many unreplicated changes; a fail-over may lose this one");
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
            store.write_change(&commit, last_activity_at).await?;
            if !store.is_replicated(slot_of(&commit)).await {
                store.audit_unreplicated(&commit).await;
                store.replication.add_unreplicated(commit);
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

    /// Checks unreplicated changes: writes lost ones again, and removes those that a
    /// replica has.
    pub(in crate::redis) async fn recheck_unreplicated(&self) -> Result<(), Error> {
        let unreplicated: Vec<Commit> = self
            .replication
            .unreplicated()
            .values()
            .take(MAX_PER_RECHECK)
            .cloned()
            .collect();
        for commit in unreplicated {
            let before = self.epoch.current().await?;
            self.rewrite_lost(&commit).await?;
            // The result is valid only for the servers that were checked.
            if self.is_replicated(slot_of(&commit)).await && self.epoch.current().await? == before {
                let key = commit.session.key();
                let mut unreplicated = self.replication.unreplicated();
                let is_this = unreplicated
                    .get(&key)
                    .is_some_and(|kept| kept.session.version == commit.session.version);
                if is_this {
                    unreplicated.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// Writes a change again if the stored record does not include it.
    async fn rewrite_lost(&self, commit: &Commit) -> Result<(), Error> {
        let key = commit.session.key();
        let now = self.now().await?;
        let Some(stored) = self.get(&key).await? else {
            // The session itself was lost, which counts as closed.
            return Ok(());
        };
        let Some(change) = reapply(&stored, commit, now) else {
            return Ok(());
        };
        tracing::warn!(
            session = %key.id, org = %key.org, version = change.session.version,
            reason = change.record.reason.as_str(), "writing a change again that a fail-over lost"
        );
        let mut call = self.scripts.rewrite_lost.prepare_invoke();
        sessions::save(&mut call, &self.keys, &[], &change)?;
        call.arg(stored.version);
        self.add_audit_args(&mut call, &sessions::audited(&change))?;
        self.run(&call).await?.done().map(drop)
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
