//! Lists and counts of sessions: selects an index and reads its records page by page;
//! some queries read indexes only.

use super::RedisStore;
use crate::redis::schema::keys::{IndexPart, partitions};
use crate::redis::schema::record::Stored;
use crate::session_index::PageBuilder;
use crate::{Error, ListQuery, Page, Scope, SessionIndex};
use async_trait::async_trait;
use futures::future::try_join_all;
use redis::Cmd;
use session_core::{ClusterName, OrgId, Session, SessionId, SessionKey, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Records per read after the first one, when most did not match.
const RECORD_BATCH: usize = 250;
/// Organizations whose sessions one pipeline reads.
const ORG_BATCH: usize = 32;
/// Organizations per read of names.
const ORG_PAGE: usize = 1000;

impl RedisStore {
    /// Candidate sets of indexes: the union of each set contains every session that the
    /// query matches, and no session that the caller may not see, so page tokens name
    /// none.
    fn candidate_indexes(&self, query: &ListQuery) -> Vec<Vec<String>> {
        let (keys, org) = (&self.keys, &query.org);
        let admits = |status: &Status| query.statuses.is_empty() || query.statuses.contains(status);
        let statuses: Vec<Status> = Status::ALL.into_iter().filter(admits).collect();
        let parts: Vec<IndexPart> = [IndexPart::Live, IndexPart::Past]
            .into_iter()
            .filter(|part| statuses.iter().any(|status| IndexPart::of(*status) == *part))
            .collect();
        let of_owner =
            |owner| -> Vec<String> { parts.iter().map(|part| keys.owner(org, owner, *part)).collect() };
        let mut candidates = Vec::new();
        match &query.scope {
            Scope::Org => {
                candidates.push(statuses.iter().map(|status| keys.status(org, *status)).collect());
                candidates.extend(query.owner.as_ref().map(of_owner));
                candidates.extend(query.cluster.as_ref().map(|cluster| {
                    let of_part = |part: &IndexPart| keys.cluster(org, cluster, *part);
                    parts.iter().map(of_part).collect()
                }));
                candidates.extend(query.team.as_ref().map(|team| vec![keys.team(org, team)]));
            }
            Scope::OwnAndTeams { owner, teams } => {
                let mut visible = of_owner(owner);
                visible.extend(teams.iter().map(|team| keys.team(org, team)));
                candidates.push(visible);
                if query.owner.as_ref() == Some(owner) {
                    candidates.push(of_owner(owner));
                }
                let team = query.team.as_ref().filter(|team| teams.contains(*team));
                candidates.extend(team.map(|team| vec![keys.team(org, team)]));
            }
        }
        candidates
    }

    async fn smallest_set(&self, candidates: Vec<Vec<String>>) -> Result<Vec<String>, Error> {
        if candidates.len() == 1 {
            return Ok(candidates.into_iter().flatten().collect());
        }
        let mut pipeline = redis::pipe();
        for key in candidates.iter().flatten() {
            pipeline.cmd("ZCARD").arg(key);
        }
        let mut sizes = self
            .connections
            .pipeline::<Vec<u64>>(&pipeline)
            .await?
            .into_iter();
        let sized = candidates
            .into_iter()
            .map(|indexes| (sizes.by_ref().take(indexes.len()).sum::<u64>(), indexes));
        Ok(sized
            .min_by_key(|(size, _)| *size)
            .map(|(_, indexes)| indexes)
            .unwrap_or_default())
    }

    /// Reads the newest ids of `indexes` that are older than `cursor`, newest first, in
    /// one step: otherwise a session whose status changes could be in none of them.
    async fn read_older(
        &self,
        indexes: &[String],
        cursor: Option<&SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, Error> {
        let from = cursor.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let mut script = self.scripts.read_older.prepare_invoke();
        for key in indexes {
            script.key(key);
        }
        script.arg(&from).arg(limit);
        let found: Vec<Vec<String>> = self.connections.run(&script).await?;
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

    async fn read_records(
        &self,
        query: &ListQuery,
        ids: &[SessionId],
    ) -> Result<Vec<Option<Session>>, Error> {
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
        let mut page = PageBuilder::begin(query)?;
        let indexes = self.smallest_set(self.candidate_indexes(query)).await?;
        let mut batch = page.missing();
        loop {
            let ids = self.read_older(&indexes, page.cursor(), batch + 1).await?;
            let sessions = self.read_records(query, &ids[..ids.len().min(batch)]).await?;
            let mut rest = ids.len();
            for (id, session) in ids.into_iter().zip(sessions) {
                if page.missing() == 0 {
                    break;
                }
                page.examine(id, session);
                rest -= 1;
            }
            if rest == 0 || page.missing() == 0 {
                return Ok(page.finish(rest > 0));
            }
            batch = page.budget().min(RECORD_BATCH);
        }
    }

    /// Lists live sessions on a cluster in key order; deletes dangling members of the
    /// indexes.
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

    /// Reads the index of organizations, independent of the number of sessions.
    async fn list_orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
        let parts = partitions().map(async |partition| {
            let index = self.keys.orgs_on_cluster(partition, cluster);
            let (mut all, mut from) = (Vec::new(), "-".to_owned());
            loop {
                let orgs = self.orgs(&index, &by_lex(&index, &from, ORG_PAGE)).await?;
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
            let orgs = self.orgs(&index, &by_lex(&index, &from, ORG_BATCH)).await?;
            let Some(last) = orgs.last() else {
                break;
            };
            from = format!("({last}");
            found.extend(self.live_of_orgs(&orgs, cluster, after, limit).await?);
        }
        Ok(found)
    }

    /// Lists up to `limit` sessions of each organization.
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
                let index = self.keys.cluster(org, cluster, IndexPart::Live);
                pipeline.add_command(by_lex(&index, &from, limit));
            }
            let members: Vec<Vec<String>> = self.connections.pipeline(&pipeline).await?;
            let (mut found, mut complete) = (Vec::new(), true);
            for (org, members) in orgs.iter().zip(members) {
                let (ids, dangling) = parse::<SessionId>(members);
                if !dangling.is_empty() {
                    let index = self.keys.cluster(org, cluster, IndexPart::Live);
                    self.remove_dangling(&index, &dangling).await?;
                    complete = false;
                }
                let key = |id| SessionKey { org: org.clone(), id };
                found.extend(ids.into_iter().map(key));
            }
            // Read again, because a page of dangling entries must not look like the end.
            if complete {
                return Ok(found);
            }
        }
    }

    /// Reads organizations from `index` with `cmd`.
    async fn orgs(&self, index: &str, cmd: &Cmd) -> Result<Vec<OrgId>, Error> {
        loop {
            let (names, dangling) = parse(self.connections.query(cmd).await?);
            if dangling.is_empty() {
                return Ok(names);
            }
            self.remove_dangling(index, &dangling).await?;
        }
    }
}

/// Parses members; returns the names and the dangling members.
fn parse<T: FromStr>(members: Vec<String>) -> (Vec<T>, Vec<String>) {
    let (mut names, mut dangling) = (Vec::with_capacity(members.len()), Vec::new());
    for member in members {
        match member.parse() {
            Ok(name) => names.push(name),
            Err(_) => dangling.push(member),
        }
    }
    (names, dangling)
}

fn by_lex(index: &str, from: &str, limit: usize) -> Cmd {
    let mut cmd = redis::cmd("ZRANGEBYLEX");
    cmd.arg(index).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
    cmd
}
