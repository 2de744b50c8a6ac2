//! Listing: which index to walk, and reading its records page by page.

use super::RedisStore;
use crate::redis::schema::keys::Part;
use crate::redis::schema::record::Stored;
use crate::session_index::Filling;
use crate::{Error, ListQuery, Page, Scope};
use session_core::{Session, SessionId, SessionKey, Status};

/// Records fetched at once when most of the first ones did not match.
const BATCH: usize = 250;

impl RedisStore {
    pub(super) async fn read_page(&self, query: &ListQuery) -> Result<Page, Error> {
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
