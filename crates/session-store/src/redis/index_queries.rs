//! What indexes tell of sessions without their records: how many there are, and
//! which live on a cluster.

use super::RedisStore;
use crate::Error;
use crate::redis::schema::keys::{Part, partitions};
use futures::future::try_join_all;
use redis::Cmd;
use session_core::{ClusterName, OrgId, SessionId, SessionKey, Status, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Organizations whose sessions are read at once.
/// Organizations whose sessions are read together.
const ORGS: usize = 32;
/// Organizations that are read together by name alone.
const PAGE: usize = 1000;

impl RedisStore {
    pub(super) async fn count_by_status(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        let mut pipeline = redis::pipe();
        for status in Status::ALL {
            pipeline.cmd("ZCARD").arg(self.keys.status(org, status));
        }
        let sizes: Vec<u64> = self.connections.pipeline(&pipeline).await?;
        Ok(Status::ALL.into_iter().zip(sizes).collect())
    }

    pub(super) async fn first_due(&self) -> Result<Option<Timestamp>, Error> {
        let firsts = try_join_all(partitions().map(async |partition| {
            let mut first = redis::cmd("ZRANGE");
            first
                .arg(self.keys.due(partition))
                .arg(0)
                .arg(0)
                .arg("WITHSCORES");
            let found: Vec<(String, f64)> = self.connections.query(&first).await?;
            Ok::<_, Error>(found.into_iter().map(|(_, at)| at).next())
        }))
        .await?;
        let first = firsts.into_iter().flatten().min_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "scores are whole milliseconds, far below 2^53"
        )]
        Ok(first.map(|at| Timestamp::from_millis(at.max(0.0) as u64)))
    }

    /// The live sessions on a cluster, in the order of their keys. Members of
    /// indexes that name nothing are dropped: nobody could ever settle them.
    pub(super) async fn find_on_cluster(
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
    pub(super) async fn find_orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
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
