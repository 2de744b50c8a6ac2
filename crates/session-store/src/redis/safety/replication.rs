//! Changes that must not be lost once they were acknowledged: the end of a
//! session, and tokens taken back.
//!
//! Redis acknowledges a write before its replicas have it, and a fail-over
//! loses what they have not. Where there are replicas, the writer of such a
//! change waits a moment until one has it. If none has it in time, the change
//! is good and is called weak: this process looks after it until a replica has
//! it, and writes it again if a fail-over lost it.

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

/// So many replicas must have it.
const REPLICAS: u64 = 1;
/// They are waited for no longer.
const WAIT: Duration = Duration::from_millis(100);
/// Weak changes that one process looks after.
const MAX_UNREPLICATED: usize = 10_000;
/// How many of them one look takes.
const LOOK: usize = 100;

/// What this process knows of replicas and of weak changes.
#[derive(Default)]
pub(in crate::redis) struct Replication {
    gates: Mutex<HashMap<Address, Arc<Gate>>>,
    weak: Mutex<BTreeMap<SessionKey, Commit>>,
}

/// The way to ask one server's replicas. Everybody who asks while a question
/// is under way shares the next one.
#[derive(Default)]
struct Gate {
    waiting: Mutex<Vec<oneshot::Sender<bool>>>,
    link: tokio::sync::Mutex<Option<Dedicated>>,
}

impl Replication {
    fn gate(&self, address: &Address) -> Arc<Gate> {
        let mut gates = lock(&self.gates);
        Arc::clone(gates.entry(address.clone()).or_default())
    }

    fn weak(&self) -> MutexGuard<'_, BTreeMap<SessionKey, Commit>> {
        lock(&self.weak)
    }

    /// Looks after a weak change. The newest of a session holds what the
    /// earlier ones said.
    fn keep(&self, commit: Commit) {
        let key = commit.session.key();
        let mut weak = self.weak();
        if weak.len() < MAX_UNREPLICATED || weak.contains_key(&key) {
            weak.insert(key, commit);
        } else {
            tracing::error!(session = %key.id, "too many weak changes: a fail-over now may lose this one");
        }
    }
}

/// May this change not be lost?
pub(in crate::redis) fn needs_replica(commit: &Commit) -> bool {
    commit.session.status().is_terminal() || commit.record.reason == ChangeReason::TokensRevoked
}

impl Gate {
    /// Does a replica have all that was written before this call?
    async fn is_passed(&self, connections: &Connections, question: &redis::Pipeline, slot: Slot) -> bool {
        loop {
            let (tell, mut told) = oneshot::channel();
            lock(&self.waiting).push(tell);
            let mut link = self.link.lock().await;
            match told.try_recv() {
                Ok(answer) => return answer,
                // Whoever asked for us was cut off.
                Err(oneshot::error::TryRecvError::Closed) => continue,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let waiting = std::mem::take(&mut *lock(&self.waiting));
            let answer = ask(connections, question, slot, &mut link).await;
            if let Err(error) = &answer {
                tracing::debug!(%error, "replicas cannot be asked");
            }
            let has = answer.unwrap_or(false);
            for one in waiting {
                // One that is gone needs no answer.
                let _ = one.send(has);
            }
            return has;
        }
    }
}

/// `WAIT` counts what its own connection wrote, so one more write goes before
/// it: a replica that has this one has all before it.
async fn ask(
    connections: &Connections,
    question: &redis::Pipeline,
    slot: Slot,
    link: &mut Option<Dedicated>,
) -> Result<bool, Error> {
    let mut dedicated = match link.take() {
        Some(dedicated) => dedicated,
        None => connections.dedicated(slot).await?,
    };
    let (_, replicas): (u64, u64) = dedicated.pipeline(question, WAIT).await?;
    *link = Some(dedicated);
    Ok(replicas >= REPLICAS)
}

impl RedisStore {
    /// Writes a change that must last. The writing goes on when the caller
    /// goes away, so that no change is left without somebody who looks after it.
    pub(in crate::redis) async fn commit_replicated(
        &self,
        commit: Commit,
        last_activity_at: Option<Timestamp>,
    ) -> Result<(), Error> {
        let store = self.clone();
        let written = tokio::spawn(async move {
            store.write_any(&commit, last_activity_at).await?;
            if !store.is_replicated(slot_of(&commit)).await {
                store.audit_unreplicated(&commit).await;
                store.replication.keep(commit);
            }
            Ok(())
        });
        written
            .await
            .unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }

    /// The change's own record in the trail was written with it, before anybody
    /// knew: a second one says that it is weak.
    async fn audit_unreplicated(&self, commit: &Commit) {
        let record = AuditRecord {
            weak: true,
            ..sessions::audited(commit)
        };
        let session = &commit.session.id;
        tracing::warn!(%session, version = commit.session.version, "no replica has this change yet");
        if let Err(error) = self.append_audit(&record).await {
            tracing::warn!(%session, %error, "the audit trail does not say that a change is weak");
        }
    }

    /// Does a replica have all that was written to `slot`? Yes if it never had one.
    async fn is_replicated(&self, slot: Slot) -> bool {
        let server = match self.connections.server(slot).await {
            Ok(server) => server,
            Err(_) => return false,
        };
        if !server.is_replicated() {
            return true;
        }
        let mut question = redis::pipe();
        question.add_command(self.scripts.pulse.key(self.keys.pulse(slot)).in_full());
        question
            .cmd("WAIT")
            .arg(REPLICAS)
            .arg(u64::try_from(WAIT.as_millis()).unwrap_or(0));
        let gate = self.replication.gate(server.address());
        gate.is_passed(&self.connections, &question, slot).await
    }

    /// Looks at weak changes: writes again what was lost, and forgets what a
    /// replica has.
    pub(in crate::redis) async fn recheck_unreplicated(&self) -> Result<(), Error> {
        let weak: Vec<Commit> = self.replication.weak().values().take(LOOK).cloned().collect();
        for commit in weak {
            let before = self.epoch.current().await?;
            self.rewrite_lost(&commit).await?;
            // Only of the servers that were looked at does the answer say something.
            if self.is_replicated(slot_of(&commit)).await && self.epoch.current().await? == before {
                let key = commit.session.key();
                let mut weak = self.replication.weak();
                let is_this = weak
                    .get(&key)
                    .is_some_and(|kept| kept.session.version == commit.session.version);
                if is_this {
                    weak.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// Writes a change again if the stored record does not show it.
    async fn rewrite_lost(&self, commit: &Commit) -> Result<(), Error> {
        let key = commit.session.key();
        let now = self.now().await?;
        let Some(stored) = self.get(&key).await? else {
            // The session itself was lost: to everybody that is a closed one.
            return Ok(());
        };
        let Some(again) = again(&stored, commit, now) else {
            return Ok(());
        };
        tracing::warn!(
            session = %key.id, org = %key.org, version = again.session.version,
            reason = again.record.reason.as_str(), "a change that a fail-over lost is written again"
        );
        let mut call = self.scripts.rewrite_lost.prepare_invoke();
        sessions::save(&mut call, &self.keys, &[], &again)?;
        call.arg(stored.version);
        self.audit_last(&mut call, &sessions::audited(&again))?;
        self.run(&call).await?.done().map(drop)
    }
}

fn slot_of(commit: &Commit) -> Slot {
    Slot::Partition(commit.session.org.partition())
}

/// The change that makes `stored` show what `lost` said, if it does not.
fn again(stored: &Session, lost: &Commit, now: Timestamp) -> Option<Commit> {
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
    let shows = token_epoch == stored.token_epoch && revoked_tokens.len() == stored.revoked_tokens.len();
    (!shows).then(|| Commit {
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
