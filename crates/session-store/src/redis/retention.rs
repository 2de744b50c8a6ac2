//! Deletion of ended sessions: finds them by age and by number, and deletes each in one
//! step that another manager can repeat.

use super::sessions::indexes_of;
use super::{RedisStore, score};
use crate::redis::schema::keys::{member, owner_member, parse_owner, partitions};
use crate::{Error, Retention, Tombstones};
use async_trait::async_trait;
use session_core::{OrgId, SessionKey, Timestamp};
use std::collections::BTreeSet;

impl RedisStore {
    /// Finds up to about `limit` ended sessions of a partition beyond the limits of
    /// `keep`, those that ended first of each organization and owner.
    async fn find_expired(
        &self,
        partition: u8,
        keep: &Tombstones,
        now: Timestamp,
        limit: usize,
    ) -> Result<BTreeSet<SessionKey>, Error> {
        let mut found = BTreeSet::new();
        if limit == 0 {
            return Ok(found);
        }
        let until = score(now.before(keep.age));
        let old: Vec<String> = self
            .connections
            .query(
                redis::cmd("ZRANGEBYSCORE")
                    .arg(self.keys.ended_since(partition))
                    .arg("-inf")
                    .arg(until)
                    .arg("LIMIT")
                    .arg(0)
                    .arg(limit),
            )
            .await?;
        for org in old.iter().filter_map(|name| name.parse::<OrgId>().ok()) {
            let mut cmd = redis::cmd("ZRANGEBYSCORE");
            cmd.arg(self.keys.ended(&org)).arg("-inf").arg(until);
            cmd.arg("LIMIT").arg(0).arg(limit);
            self.add_sessions(&mut found, &org, &cmd).await?;
        }
        for (name, number) in self
            .over_limit(self.keys.ended_by_org(partition), keep.per_org, limit)
            .await?
        {
            if let Ok(org) = name.parse() {
                let index = self.keys.ended(&org);
                self.add_sessions(&mut found, &org, &first(index, number - keep.per_org, limit))
                    .await?;
            }
        }
        let owners = self.keys.ended_by_owner(partition);
        for (name, number) in self.over_limit(owners, keep.per_owner, limit).await? {
            if let Some((org, owner)) = parse_owner(&name) {
                let index = self.keys.ended_of_owner(&org, &owner);
                self.add_sessions(&mut found, &org, &first(index, number - keep.per_owner, limit))
                    .await?;
            }
        }
        Ok(found)
    }

    /// Organizations or owners with more than `max` ended sessions, and their number.
    async fn over_limit(
        &self,
        index: String,
        max: usize,
        limit: usize,
    ) -> Result<Vec<(String, usize)>, Error> {
        let mut cmd = redis::cmd("ZRANGEBYSCORE");
        cmd.arg(index)
            .arg(format!("({max}"))
            .arg("+inf")
            .arg("WITHSCORES");
        cmd.arg("LIMIT").arg(0).arg(limit);
        self.connections.query(&cmd).await
    }

    async fn add_sessions(
        &self,
        found: &mut BTreeSet<SessionKey>,
        org: &OrgId,
        cmd: &redis::Cmd,
    ) -> Result<(), Error> {
        let ids: Vec<String> = self.connections.query(cmd).await?;
        found.extend(ids.iter().filter_map(|id| {
            Some(SessionKey {
                org: org.clone(),
                id: id.parse().ok()?,
            })
        }));
        Ok(())
    }

    /// Deletes an ended session with all its data; not if it is live or still due.
    async fn delete_ended(&self, key: &SessionKey) -> Result<bool, Error> {
        let Some(session) = self.read_record(&self.keys.record(key)).await? else {
            // Deleted by another manager, or a dangling entry.
            let mut cmd = redis::cmd("ZREM");
            cmd.arg(self.keys.ended(&key.org)).arg(key.id.as_str());
            return self.connections.query::<u64>(&cmd).await.map(|_| false);
        };
        let indexes = indexes_of(&session, session.status(), &self.keys);
        let mut call = self.scripts.trim_ended.key(self.keys.record(key));
        call.key(self.keys.due(key.org.partition()))
            .key(&self.keys.ended_of(&session))
            .key(self.keys.tokens(key))
            .key(self.keys.leases(key))
            .key(&indexes);
        call.arg(key.id.as_str())
            .arg(member(key))
            .arg(key.org.as_str())
            .arg(owner_member(&key.org, &session.owner));
        let reply = self.run(&call).await?;
        match reply.0.first().map(String::as_str) {
            Some("ok") => Ok(true),
            Some("kept") => Ok(false),
            other => Err(Error::Corrupt(format!("a script answered {other:?}"))),
        }
    }
}

/// The first `number` members of an index, at most `limit`.
fn first(index: String, number: usize, limit: usize) -> redis::Cmd {
    let mut cmd = redis::cmd("ZRANGE");
    cmd.arg(index).arg(0).arg(number.min(limit).saturating_sub(1));
    cmd
}

#[async_trait]
impl Retention for RedisStore {
    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error> {
        let now = crate::StoreHealth::now(self).await?;
        let mut trimmed = 0;
        for partition in partitions() {
            for key in self.find_expired(partition, keep, now, limit - trimmed).await? {
                if trimmed < limit && self.delete_ended(&key).await? {
                    trimmed += 1;
                }
            }
        }
        Ok(trimmed)
    }
}
