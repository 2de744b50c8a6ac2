//! Writing sessions: what `save.lua` and the scripts around it are given.

use super::safety;
use super::scripts::Call;
use super::{RedisStore, encode, score};
use crate::redis::schema::codec::pack;
use crate::redis::schema::keys::{Keys, Part, Slot, member, owner_member};
use crate::{Commit, Create, Created, Error, HISTORY, REQUEST_ID_MEMORY, RequestId, Sessions};
use async_trait::async_trait;
use session_core::{AuditRecord, EventRecord, OrgId, PrincipalId, Session, SessionKey, Status, Timestamp};

/// How many changes a partition's stream keeps, at least; a reader that falls
/// further behind gets a reset.
pub(super) const STREAM_LENGTH: usize = 10_000;

/// At so much of `maxmemory`, what adds something is refused.
const MEMORY_GUARD_PERCENT: u64 = 85;

/// The organization's indexes that a session in a status belongs in. Its owner,
/// cluster and team never change. One that ended is in other parts than the live
/// ones, by which quotas count; it stays listed.
pub(super) fn indexes_of(session: &Session, status: Status, keys: &Keys) -> Vec<String> {
    let (org, part) = (&session.org, Part::of(status));
    let mut indexes = vec![
        keys.owner(org, &session.owner, part),
        keys.cluster(org, &session.cluster, part),
        keys.status(org, status),
    ];
    indexes.extend(session.team.as_deref().map(|team| keys.team(org, team)));
    indexes
}

/// The indexes that a change puts its session into, and those that it takes it
/// out of. Records and indexes change together, so the rest is as it must be.
fn moved(commit: &Commit, keys: &Keys) -> (Vec<String>, Vec<String>) {
    let Commit { session, record, .. } = commit;
    let mut within = indexes_of(session, session.status(), keys);
    let mut without = record
        .from
        .map_or_else(Vec::new, |from| indexes_of(session, from, keys));
    let before = without.clone();
    without.retain(|index| !within.contains(index));
    within.retain(|index| !before.contains(index));
    (within, without)
}

/// An argument that scripts read as absent when it is empty.
pub(super) fn optional<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// The keys and arguments of `save.lua`; `own` are the calling script's keys.
pub(super) fn save(script: &mut Call<'_>, keys: &Keys, own: &[String], commit: &Commit) -> Result<(), Error> {
    let Commit { session, record, due } = commit;
    let key = session.key();
    let partition = key.org.partition();
    let (within, without) = moved(commit, keys);
    script
        .key(keys.record(&key))
        .key(keys.tokens(&key))
        .key(keys.due(partition))
        .key(keys.changes(partition))
        .key(keys.orgs_on_cluster(partition, &session.cluster))
        .key(&keys.ended_of(session))
        .key(keys.cluster(&key.org, &session.cluster, Part::Live))
        .key(own)
        .key(&within)
        .key(&without)
        .key(keys.audit(partition));
    script
        .arg(key.id.as_str())
        .arg(member(&key))
        .arg(session.version)
        .arg(pack(session)?)
        .arg(session.status().as_str())
        .arg(key.org.as_str())
        .arg(owner_member(&key.org, &session.owner))
        .arg(session.token_epoch)
        .arg(optional(session.closed_at.map(score)))
        .arg(u8::from(!session.status().is_terminal()))
        .arg(optional(due.map(score)))
        .arg(encode(record)?)
        .arg(HISTORY)
        .arg(STREAM_LENGTH)
        .arg(within.len())
        .arg(without.len())
        .arg(session.generation)
        .arg(pack(record)?);
    Ok(())
}

impl RedisStore {
    /// Writes a change; if `last_activity_at` is given, only while nothing is
    /// in flight and nothing happened since.
    pub(super) async fn write_any(
        &self,
        commit: &Commit,
        last_activity_at: Option<Timestamp>,
    ) -> Result<(), Error> {
        let mut script;
        match last_activity_at {
            None => {
                script = self.scripts.commit.prepare_invoke();
                save(&mut script, &self.keys, &[], commit)?;
            }
            Some(last_activity_at) => {
                let key = commit.session.key();
                let own = [self.keys.leases(&key)];
                script = self.scripts.commit_if_idle.prepare_invoke();
                save(&mut script, &self.keys, &own, commit)?;
                script.arg(score(last_activity_at));
            }
        }
        self.audit_last(&mut script, &audited(commit))?;
        self.run(&script).await?.done().map(drop)
    }

    /// As of a moment ago: what ends things must find room, so nothing new is
    /// taken when most of it is used up.
    pub(super) async fn is_short_of_memory(&self, slot: Slot) -> bool {
        let server = self.connections.server(slot).await;
        let info = server.map(|server| server.info()).unwrap_or_default();
        info.limit > 0 && info.used >= info.limit / 100 * MEMORY_GUARD_PERCENT
    }
}

/// What the trail says of a change.
pub(super) fn audited(commit: &Commit) -> AuditRecord {
    AuditRecord::of_change(&commit.session.key(), &commit.record)
}

#[async_trait]
impl Sessions for RedisStore {
    async fn create(&self, create: Create) -> Result<Created, Error> {
        let Create {
            session,
            record,
            due,
            request,
            limits,
        } = create;
        let (org, owner) = (&session.org, &session.owner);
        if self.is_short_of_memory(Slot::Partition(org.partition())).await {
            let first = match &request {
                Some(request) => self.find_by_request(org, owner, request).await?,
                None => None,
            };
            let repeated = |session| Created { session, new: false };
            return first.map(repeated).ok_or(Error::Full);
        }
        let creates = self.keys.creates(org, owner);
        let request_key = request
            .as_ref()
            .map_or_else(|| creates.clone(), |r| self.keys.request(org, owner, &r.id));
        let mut own = vec![creates, self.keys.owner(org, owner, Part::Live), request_key];
        let live = Status::ALL.into_iter().filter(|status| !status.is_terminal());
        own.extend(live.map(|status| self.keys.status(org, status)));

        let first = Commit {
            session,
            record,
            due: Some(due),
        };
        let mut script = self.scripts.create.prepare_invoke();
        save(&mut script, &self.keys, &own, &first)?;
        script
            .arg(u8::from(request.is_some()))
            .arg(request.as_ref().map_or("", |r| &r.fingerprint))
            .arg(u64::try_from(REQUEST_ID_MEMORY.as_millis()).unwrap_or(u64::MAX))
            .arg(limits.live_sessions_per_owner)
            .arg(limits.live_sessions)
            .arg(limits.creates_per_minute);
        self.audit_last(&mut script, &audited(&first))?;
        let reply = self.run(&script).await?;
        if let (["repeated"], Some(request)) = (reply.words().as_slice(), &request) {
            let session = &first.session;
            let stored = self
                .find_by_request(&session.org, &session.owner, request)
                .await?;
            // Gone again within this moment: the caller asks once more.
            let session = stored.ok_or(Error::Conflict)?;
            return Ok(Created { session, new: false });
        }
        reply.accepted(|quota| limits.of(quota).unwrap_or_default())?;
        Ok(Created {
            session: first.session,
            new: true,
        })
    }

    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error> {
        self.read_record(&self.keys.record(key)).await
    }

    async fn find_by_request(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.request(org, owner, &request.id))
            .arg("fingerprint")
            .arg("record");
        let (fingerprint, record): (Option<String>, Option<String>) = self.connections.query(&cmd).await?;
        let Some(record) = record else { return Ok(None) };
        match self.read_record(&record).await? {
            Some(_) if fingerprint.as_ref() != Some(&request.fingerprint) => Err(Error::RequestIdReused),
            stored => Ok(stored),
        }
    }

    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        if safety::replication::needs_replica(&commit) {
            return self.commit_replicated(commit, None).await;
        }
        self.write_any(&commit, None).await
    }

    async fn commit_if_idle(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error> {
        if safety::replication::needs_replica(&commit) {
            return self.commit_replicated(commit, Some(last_activity_at)).await;
        }
        self.write_any(&commit, Some(last_activity_at)).await
    }

    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error> {
        self.read_history(&self.keys.record(key)).await
    }
}
