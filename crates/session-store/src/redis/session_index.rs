//! Lists and counts of sessions: which index to walk, reading its records page by
//! page, and queries that indexes answer without records.

use super::RedisStore;
use crate::redis::schema::keys::{Part, partitions};
use crate::redis::schema::record::Stored;
use crate::session_index::Filling;
use crate::{Error, ListQuery, Page, Scope, SessionIndex};
use async_trait::async_trait;
use futures::future::try_join_all;
use redis::Cmd;
use session_core::{ClusterName, OrgId, Session, SessionId, SessionKey, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Records fetched at once when most of the first ones did not match.
const BATCH: usize = 250;
/// Organizations whose sessions are read together.
const ORGS: usize = 32;
/// Organizations that are read together by name alone.
const PAGE: usize = 1000;

impl RedisStore {
    /// Sets of indexes whose union holds every session the query admits. None
    /// holds a session that the caller may not see, so page tokens name none.
    fn walks(&self, query: &ListQuery) -> Vec<Vec<String>> {
        let (keys, org) = (&self.keys, &query.org);
        let admits = |status: &Status| query.statuses.is_empty() || query.statuses.contains(status);
        let statuses: Vec<Status> = Status::ALL.into_iter().filter(admits).collect();
        let parts: Vec<Part> = [Part::Live, Part::Past]
            .into_iter()
            .filter(|part| statuses.iter().any(|status| Part::of(*status) == *part))
            .collect();
        let of_owner =
            |owner| -> Vec<String> { parts.iter().map(|part| keys.owner(org, owner, *part)).collect() };
        let mut walks = Vec::new();
        match &query.scope {
            Scope::Org => {
                walks.push(statuses.iter().map(|status| keys.status(org, *status)).collect());
                walks.extend(query.owner.as_ref().map(of_owner));
                walks.extend(query.cluster.as_ref().map(|cluster| {
                    let of_part = |part: &Part| keys.cluster(org, cluster, *part);
                    parts.iter().map(of_part).collect()
                }));
                walks.extend(query.team.as_ref().map(|team| vec![keys.team(org, team)]));
            }
            Scope::OwnAndTeams { owner, teams } => {
                let mut visible = of_owner(owner);
                visible.extend(teams.iter().map(|team| keys.team(org, team)));
                walks.push(visible);
                if query.owner.as_ref() == Some(owner) {
                    walks.push(of_owner(owner));
                }
                let team = query.team.as_ref().filter(|team| teams.contains(*team));
                walks.extend(team.map(|team| vec![keys.team(org, team)]));
            }
        }
        walks
    }

    async fn smallest(&self, walks: Vec<Vec<String>>) -> Result<Vec<String>, Error> {
        if walks.len() == 1 {
            return Ok(walks.into_iter().flatten().collect());
        }
        let mut pipeline = redis::pipe();
        for key in walks.iter().flatten() {
            pipeline.cmd("ZCARD").arg(key);
        }
        let mut sizes = self
            .connections
            .pipeline::<Vec<u64>>(&pipeline)
            .await?
            .into_iter();
        let sized = walks
            .into_iter()
            .map(|walk| (sizes.by_ref().take(walk.len()).sum::<u64>(), walk));
        Ok(sized
            .min_by_key(|(size, _)| *size)
            .map(|(_, walk)| walk)
            .unwrap_or_default())
    }

    /// The newest ids in any of `indexes` that are older than `cursor`, newest
    /// first. All indexes are read in one step, or a session that changes its
    /// status meanwhile could be in none of them.
    async fn older(
        &self,
        indexes: &[String],
        cursor: Option<&SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, Error> {
        let from = cursor.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        for key in indexes {
            pipeline
                .cmd("ZREVRANGEBYLEX")
                .arg(key)
                .arg(&from)
                .arg("-")
                .arg("LIMIT")
                .arg(0)
                .arg(limit);
        }
        let found: Vec<Vec<String>> = self.connections.pipeline(&pipeline).await?;
        let mut ids: Vec<_> = found.into_iter().flatten().collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.dedup();
        ids.truncate(limit);
        let parse = |id: String| {
            id.parse()
                .map_err(|_| Error::Corrupt(format!("{id:?} names no session")))
        };
        ids.into_iter().map(parse).collect()
    }

    async fn records(&self, query: &ListQuery, ids: &[SessionId]) -> Result<Vec<Option<Session>>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for id in ids {
            let key = SessionKey {
                org: query.org.clone(),
                id: id.clone(),
            };
            pipeline.cmd("GET").arg(self.keys.record(&key));
        }
        let stored: Vec<Option<Vec<u8>>> = self.connections.pipeline(&pipeline).await?;
        stored
            .into_iter()
            .map(|text| text.map(|text| Stored::parse(&text)?.session()).transpose())
            .collect()
    }
}

#[async_trait]
impl SessionIndex for RedisStore {
    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        let mut page = Filling::begin(query)?;
        let indexes = self.smallest(self.walks(query)).await?;
        let mut batch = page.lacks();
        loop {
            let ids = self.older(&indexes, page.cursor(), batch + 1).await?;
            let sessions = self.records(query, &ids[..ids.len().min(batch)]).await?;
            let mut rest = ids.len();
            for (id, session) in ids.into_iter().zip(sessions) {
                if page.lacks() == 0 {
                    break;
                }
                page.examine(id, session);
                rest -= 1;
            }
            if rest == 0 || page.lacks() == 0 {
                return Ok(page.finish(rest > 0));
            }
            batch = page.budget().min(BATCH);
        }
    }

    /// The live sessions on a cluster, in the order of their keys. Members of
    /// indexes that name nothing are dropped: nobody could ever settle them.
    async fn list_live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        let parts = partitions().map(|partition| self.find_in_partition(partition, cluster, after, limit));
        let mut keys = try_join_all(parts).await?.concat();
        keys.sort_unstable();
        keys.truncate(limit);
        Ok(keys)
    }

    /// The organizations with live sessions on a cluster: read from the index
    /// of them, whatever the number of sessions.
    async fn list_orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
        let parts = partitions().map(async |partition| {
            let index = self.keys.orgs_on_cluster(partition, cluster);
            let (mut all, mut from) = (Vec::new(), "-".to_owned());
            loop {
                let orgs = self.orgs(&index, &by_lex(&index, &from, PAGE)).await?;
                let Some(last) = orgs.last() else {
                    return Ok::<_, Error>(all);
                };
                from = format!("({last}");
                all.extend(orgs);
            }
        });
        Ok(try_join_all(parts).await?.into_iter().flatten().collect())
    }

    async fn count_by_status(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        let mut pipeline = redis::pipe();
        for status in Status::ALL {
            pipeline.cmd("ZCARD").arg(self.keys.status(org, status));
        }
        let sizes: Vec<u64> = self.connections.pipeline(&pipeline).await?;
        Ok(Status::ALL.into_iter().zip(sizes).collect())
    }
}

impl RedisStore {
    async fn find_in_partition(
        &self,
        partition: u8,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        let index = self.keys.orgs_on_cluster(partition, cluster);
        let mut from = after.map_or_else(|| "-".to_owned(), |key| format!("[{}", key.org));
        let mut found = Vec::new();
        while found.len() < limit {
            let orgs = self.orgs(&index, &by_lex(&index, &from, ORGS)).await?;
            let Some(last) = orgs.last() else {
                break;
            };
            from = format!("({last}");
            found.extend(self.live_of_orgs(&orgs, cluster, after, limit).await?);
        }
        Ok(found)
    }

    /// Up to `limit` of each organization.
    async fn live_of_orgs(
        &self,
        orgs: &[OrgId],
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        loop {
            let mut pipeline = redis::pipe();
            for org in orgs {
                let from = match after {
                    Some(key) if key.org == *org => format!("({}", key.id),
                    Some(_) | None => "-".to_owned(),
                };
                let index = self.keys.cluster(org, cluster, Part::Live);
                pipeline.add_command(by_lex(&index, &from, limit));
            }
            let members: Vec<Vec<String>> = self.connections.pipeline(&pipeline).await?;
            let (mut found, mut complete) = (Vec::new(), true);
            for (org, members) in orgs.iter().zip(members) {
                let (ids, strays) = parse::<SessionId>(members);
                if !strays.is_empty() {
                    let index = self.keys.cluster(org, cluster, Part::Live);
                    self.drop_strays(&index, &strays).await?;
                    complete = false;
                }
                let key = |id| SessionKey { org: org.clone(), id };
                found.extend(ids.into_iter().map(key));
            }
            // Read again, or a page of strays would look like the end.
            if complete {
                return Ok(found);
            }
        }
    }

    /// The organizations that `cmd` finds in `index`.
    async fn orgs(&self, index: &str, cmd: &Cmd) -> Result<Vec<OrgId>, Error> {
        loop {
            let (names, strays) = parse(self.connections.query(cmd).await?);
            if strays.is_empty() {
                return Ok(names);
            }
            self.drop_strays(index, &strays).await?;
        }
    }
}

/// Members by the names that they are, and those that are none.
fn parse<T: FromStr>(members: Vec<String>) -> (Vec<T>, Vec<String>) {
    let (mut names, mut strays) = (Vec::with_capacity(members.len()), Vec::new());
    for member in members {
        match member.parse() {
            Ok(name) => names.push(name),
            Err(_) => strays.push(member),
        }
    }
    (names, strays)
}

fn by_lex(index: &str, from: &str, limit: usize) -> Cmd {
    let mut cmd = redis::cmd("ZRANGEBYLEX");
    cmd.arg(index).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
    cmd
}
