//! Lists and counts of sessions in memory.

use super::MemoryStore;
use crate::session_index::PageBuilder;
use crate::{Error, ListQuery, Page, SessionIndex};
use async_trait::async_trait;
use session_core::{ClusterName, OrgId, Session, SessionId, SessionKey, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

#[async_trait]
impl SessionIndex for MemoryStore {
    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        let mut page = PageBuilder::begin(query)?;
        let state = self.state();
        let cursor = page.cursor().cloned();
        let below = cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let sessions = state.orgs.get(&query.org).into_iter();
        let mut sessions = sessions
            .flat_map(|of_org| of_org.range::<SessionId, _>((Bound::Unbounded, below)).rev())
            .filter(|(_, entry)| query.scope.matches(&entry.session))
            .peekable();
        while page.missing() > 0
            && let Some((id, entry)) = sessions.next()
        {
            page.examine(id.clone(), Some(entry.session.clone()));
        }
        let more = sessions.peek().is_some();
        Ok(page.finish(more))
    }

    async fn list_live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        let state = self.state();
        let all = state
            .orgs
            .values()
            .flat_map(BTreeMap::values)
            .map(|entry| &entry.session);
        let live = all.filter(|session| session.cluster == *cluster && !session.status().is_terminal());
        Ok(live
            .map(Session::key)
            .filter(|key| after.is_none_or(|after| key > after))
            .take(limit)
            .collect())
    }

    async fn list_orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
        let live = self.list_live_on_cluster(cluster, None, usize::MAX).await?;
        Ok(live.into_iter().map(|key| key.org).collect())
    }

    async fn count_by_status(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        let state = self.state();
        let mut counts: BTreeMap<_, _> = Status::ALL.map(|status| (status, 0)).into();
        for entry in state.orgs.get(org).into_iter().flat_map(BTreeMap::values) {
            *counts.entry(entry.session.status()).or_default() += 1;
        }
        Ok(counts)
    }
}
