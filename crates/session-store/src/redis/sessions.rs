//! Session records in Redis: keys and arguments of `save.lua` and the scripts around
//! it.

use super::safety;
use super::scripts::Call;
use super::{RedisStore, encode, score};
use crate::redis::schema::codec::pack;
use crate::redis::schema::keys::{IndexPart, Keys, Slot, member, owner_member};
use crate::{Commit, Create, Created, Error, MAX_HISTORY, REQUEST_ID_RETENTION, RequestId, Sessions};
use async_trait::async_trait;
use session_core::{AuditRecord, EventRecord, OrgId, PrincipalId, Session, SessionKey, Status, Timestamp};

/// Minimum number of changes in a partition's stream; a reader that falls further
/// behind receives a reset.
pub(super) const STREAM_LENGTH: usize = 10_000;

/// Percentage of `maxmemory` from which new data is rejected.
const MEMORY_GUARD_PERCENT: u64 = 85;

/// The organization's indexes that contain a session with a status. Owner, cluster and
/// team never change. An ended session is in other parts than the live ones, which
/// quotas count; it stays listed.
pub(super) fn indexes_of(session: &Session, status: Status, keys: &Keys) -> Vec<String> {
    let (org, part) = (&session.org, IndexPart::of(status));
    let mut indexes = vec![
        keys.owner(org, &session.owner, part),
        keys.cluster(org, &session.cluster, part),
        keys.status(org, status),
    ];
    indexes.extend(session.team.as_deref().map(|team| keys.team(org, team)));
    indexes
}

/// The indexes to which a change adds its session, and those from which it removes it.
/// Records and indexes change together, so the other indexes are correct.
fn index_changes(commit: &Commit, keys: &Keys) -> (Vec<String>, Vec<String>) {
    let Commit { session, record, .. } = commit;
    let mut added = indexes_of(session, session.status(), keys);
    let mut removed = record
        .from
        .map_or_else(Vec::new, |from| indexes_of(session, from, keys));
    let before = removed.clone();
    removed.retain(|index| !added.contains(index));
    added.retain(|index| !before.contains(index));
    (added, removed)
}

/// An optional argument; scripts read an empty text as absent.
pub(super) fn optional<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// Adds the keys and arguments of `save.lua`; `own` are further keys of the calling
/// script.
pub(super) fn save(script: &mut Call<'_>, keys: &Keys, own: &[String], commit: &Commit) -> Result<(), Error> {
    let Commit { session, record, due } = commit;
    let key = session.key();
    let partition = key.org.partition();
    let (added, removed) = index_changes(commit, keys);
    script
        .key(keys.record(&key))
        .key(keys.tokens(&key))
        .key(keys.due(partition))
        .key(keys.changes(partition))
        .key(keys.orgs_on_cluster(partition, &session.cluster))
        .key(&keys.ended_of(session))
        .key(keys.cluster(&key.org, &session.cluster, IndexPart::Live))
        .key(own)
        .key(&added)
        .key(&removed)
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
        .arg(MAX_HISTORY)
        .arg(STREAM_LENGTH)
        .arg(added.len())
        .arg(removed.len())
        .arg(session.generation)
        .arg(pack(record)?);
    Ok(())
}

impl RedisStore {
    /// Writes a change; with `last_activity_at`, only if no call is in flight and the
    /// activity is unchanged.
    pub(super) async fn write_change(
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
        self.add_audit_args(&mut script, &audited(commit))?;
        self.run(&script).await?.done().map(drop)
    }

    /// Returns whether memory was short at the last check. Then new data is rejected,
    /// to leave room for writes that end something.
    pub(super) async fn is_short_of_memory(&self, slot: Slot) -> bool {
        let server = self.connections.server(slot).await;
        let info = server.map(|server| server.info()).unwrap_or_default();
        info.limit > 0 && info.used >= info.limit / 100 * MEMORY_GUARD_PERCENT
    }
}

/// Audit record of a change.
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
        let mut own = vec![creates, self.keys.owner(org, owner, IndexPart::Live), request_key];
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
            .arg(u64::try_from(REQUEST_ID_RETENTION.as_millis()).unwrap_or(u64::MAX))
            .arg(limits.live_sessions_per_owner)
            .arg(limits.live_sessions)
            .arg(limits.creates_per_minute);
        self.add_audit_args(&mut script, &audited(&first))?;
        let reply = self.run(&script).await?;
        if let (["repeated"], Some(request)) = (reply.fields().as_slice(), &request) {
            let session = &first.session;
            let stored = self
                .find_by_request(&session.org, &session.owner, request)
                .await?;
            // Deleted meanwhile: the caller repeats.
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
        self.write_change(&commit, None).await
    }

    async fn commit_if_idle(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error> {
        if safety::replication::needs_replica(&commit) {
            return self.commit_replicated(commit, Some(last_activity_at)).await;
        }
        self.write_change(&commit, Some(last_activity_at)).await
    }

    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error> {
        self.read_history(&self.keys.record(key)).await
    }
}
