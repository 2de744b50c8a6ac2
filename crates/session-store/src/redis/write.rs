//! Writing sessions: what `save.lua` and the scripts around it are given.

use super::keys::{Keys, member};
use super::{RedisStore, decode, encode, score};
use crate::{Commit, Create, Created, Error, HISTORY, REQUEST_ID_MEMORY};
use redis::ScriptInvocation;
use session_core::{AuditRecord, EventRecord, Limits, Session, Status, Timestamp};

/// How many changes a partition's stream keeps, at least; a reader that falls
/// further behind gets a reset.
pub(super) const STREAM_LENGTH: usize = 10_000;

/// The organization's indexes that a session belongs in, and those it must have left.
struct Membership {
    within: Vec<String>,
    without: Vec<String>,
}

impl Membership {
    /// Owner, cluster and team of a session never change, so only statuses and
    /// liveness are ever left. A session that ended leaves the live indexes,
    /// and with them the quotas, at once; it stays listed.
    fn of(session: &Session, keys: &Keys) -> Self {
        let org = &session.org;
        let mut within = vec![
            keys.all(org),
            keys.owner(org, &session.owner),
            keys.cluster(org, &session.cluster),
            keys.status(org, session.status()),
        ];
        within.extend(session.team.as_deref().map(|team| keys.team(org, team)));
        let others = Status::ALL
            .into_iter()
            .filter(|status| *status != session.status());
        let mut without: Vec<_> = others.map(|status| keys.status(org, status)).collect();
        let live = [keys.live(org), keys.live_of_owner(org, &session.owner)];
        if session.status().is_terminal() {
            without.extend(live)
        } else {
            within.extend(live)
        }
        Self { within, without }
    }
}

/// An argument that scripts read as absent when it is empty.
pub(super) fn optional<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// The keys and arguments of `save.lua`; `own` are the calling script's keys.
fn save<'a>(
    script: &mut ScriptInvocation<'a>,
    keys: &Keys,
    own: &[String],
    session: &Session,
    record: &EventRecord,
    due: Option<Timestamp>,
) -> Result<(), Error> {
    let key = session.key();
    let partition = key.org.partition();
    let indexes = Membership::of(session, keys);
    script
        .key(keys.record(&key))
        .key(keys.history(&key))
        .key(keys.due(partition))
        .key(keys.changes(partition))
        .key(keys.live_on_cluster(partition, &session.cluster))
        .key(own)
        .key(&indexes.within)
        .key(&indexes.without)
        .key(keys.audit(partition));
    script
        .arg(key.id.as_str())
        .arg(member(&key))
        .arg(session.version)
        .arg(encode(session)?)
        .arg(session.status().as_str())
        .arg(session.owner.as_str())
        .arg(session.cluster.as_str())
        .arg(session.token_epoch)
        .arg(optional(session.closed_at.map(score)))
        .arg(u8::from(!session.status().is_terminal()))
        .arg(optional(due.map(score)))
        .arg(encode(record)?)
        .arg(HISTORY)
        .arg(STREAM_LENGTH)
        .arg(indexes.within.len())
        .arg(indexes.without.len())
        .arg(session.generation);
    Ok(())
}

impl RedisStore {
    pub(super) async fn write_new(&self, create: Create) -> Result<Created, Error> {
        let Create {
            session,
            record,
            due,
            request,
            limits,
        } = create;
        let (org, owner) = (&session.org, &session.owner);
        let creates = self.keys.creates(org, owner);
        let request_key = request
            .as_ref()
            .map_or_else(|| creates.clone(), |r| self.keys.request(org, owner, &r.id));
        let own = [
            creates,
            self.keys.live(org),
            self.keys.live_of_owner(org, owner),
            request_key,
        ];

        let mut script = self.scripts.create.prepare_invoke();
        save(&mut script, &self.keys, &own, &session, &record, Some(due))?;
        script
            .arg(u8::from(request.is_some()))
            .arg(request.map(|r| r.fingerprint).unwrap_or_default())
            .arg(u64::try_from(REQUEST_ID_MEMORY.as_millis()).unwrap_or(u64::MAX))
            .arg(limits.live_sessions_per_owner)
            .arg(limits.live_sessions)
            .arg(limits.creates_per_minute);
        self.audit_last(&mut script, &AuditRecord::of_change(&session.key(), &record))?;
        let reply = self.run(&script).await?;
        if let [outcome, json] = reply.0.as_slice()
            && outcome == "repeated"
        {
            return Ok(Created {
                session: decode(json)?,
                new: false,
            });
        }
        reply.accepted(|quota| limit_named(&limits, quota))?;
        Ok(Created { session, new: true })
    }

    pub(super) async fn write_change(&self, commit: &Commit) -> Result<(), Error> {
        let mut script = self.scripts.commit.prepare_invoke();
        save(
            &mut script,
            &self.keys,
            &[],
            &commit.session,
            &commit.record,
            commit.due,
        )?;
        self.audit_last(&mut script, &audited(commit))?;
        self.run(&script).await?.done().map(drop)
    }

    /// [`Self::write_change`] while nothing is in flight and nothing happened
    /// since `last_activity_at`.
    pub(super) async fn write_quiet_change(
        &self,
        commit: &Commit,
        last_activity_at: Timestamp,
    ) -> Result<(), Error> {
        let key = commit.session.key();
        let own = [self.keys.used(&key), self.keys.leases(&key)];
        let mut script = self.scripts.commit_quiet.prepare_invoke();
        save(
            &mut script,
            &self.keys,
            &own,
            &commit.session,
            &commit.record,
            commit.due,
        )?;
        script.arg(score(last_activity_at));
        self.audit_last(&mut script, &audited(commit))?;
        self.run(&script).await?.done().map(drop)
    }
}

fn audited(commit: &Commit) -> AuditRecord {
    AuditRecord::of_change(&commit.session.key(), &commit.record)
}

fn limit_named(limits: &Limits, quota: &str) -> u32 {
    match quota {
        "live_sessions_per_owner" => limits.live_sessions_per_owner,
        "live_sessions" => limits.live_sessions,
        "creates_per_minute" => limits.creates_per_minute,
        _ => 0,
    }
}
