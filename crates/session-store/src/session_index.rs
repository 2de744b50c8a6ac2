//! Meaning of list queries for every store: which sessions a query matches, and how a
//! page is filled and continued.

use crate::Error;
use async_trait::async_trait;
use session_core::{ClusterName, OrgId, PrincipalId, Session, SessionId, SessionKey, Status};
use std::collections::{BTreeMap, BTreeSet};

/// Prefix of page tokens, with the version of their form.
const TOKEN_PREFIX: &str = "1.";

/// Maximum number of records that one page of [`crate::SessionIndex::list`] reads; a
/// page can be short and still have a next token.
pub const PAGE_READ_LIMIT: usize = 1000;

/// Filter and page of a list of an organization's sessions, newest first.
#[derive(Debug, Clone)]
pub struct ListQuery {
    /// The organization.
    pub org: OrgId,
    /// Sessions that are visible to the caller.
    pub scope: Scope,
    /// Statuses to include; all if empty.
    pub statuses: BTreeSet<Status>,
    /// Owner to include; all if `None`.
    pub owner: Option<PrincipalId>,
    /// Cluster to include; all if `None`.
    pub cluster: Option<ClusterName>,
    /// Team to include; all if `None`.
    pub team: Option<String>,
    /// Labels that a session must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// Maximum number of sessions, 1 to 1000.
    pub page_size: usize,
    /// Token of the next page, from the previous page.
    pub page_token: Option<String>,
}

/// Sessions that are visible to a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every session of the organization.
    Org,
    /// Sessions of the owner, and of the teams that it administers.
    OwnAndTeams {
        /// The owner.
        owner: PrincipalId,
        /// The teams.
        teams: BTreeSet<String>,
    },
}

/// One page of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Sessions, newest first.
    pub sessions: Vec<Session>,
    /// Token of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// Lists and counts of sessions.
#[async_trait]
pub trait SessionIndex {
    /// Lists sessions of an organization, newest first.
    async fn list(&self, query: &ListQuery) -> Result<Page, Error>;

    /// Lists up to `limit` live sessions of all organizations on `cluster`, after
    /// `after` in key order.
    async fn list_live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error>;

    /// The organizations with live sessions on `cluster`.
    async fn list_orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error>;

    /// Number of sessions of an organization in each status.
    async fn count_by_status(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error>;
}

impl Scope {
    /// Returns whether `session` is visible to a caller with this scope.
    pub fn matches(&self, session: &Session) -> bool {
        match self {
            Self::Org => true,
            Self::OwnAndTeams { owner, teams } => {
                session.owner == *owner || session.team.as_ref().is_some_and(|team| teams.contains(team))
            }
        }
    }
}

impl ListQuery {
    /// All sessions of an organization, from the first page.
    pub fn of_org(org: OrgId, page_size: usize) -> Self {
        Self {
            org,
            scope: Scope::Org,
            statuses: BTreeSet::new(),
            owner: None,
            cluster: None,
            team: None,
            labels: BTreeMap::new(),
            page_size,
            page_token: None,
        }
    }

    /// All live sessions of an organization, from the first page.
    pub fn live_of_org(org: OrgId, page_size: usize) -> Self {
        Self {
            statuses: BTreeSet::from([Status::Pending, Status::Active, Status::Idle]),
            ..Self::of_org(org, page_size)
        }
    }

    /// Returns whether `session` matches this query.
    pub fn matches(&self, session: &Session) -> bool {
        session.org == self.org
            && self.scope.matches(session)
            && (self.statuses.is_empty() || self.statuses.contains(&session.status()))
            && self.owner.as_ref().is_none_or(|owner| session.owner == *owner)
            && self
                .cluster
                .as_ref()
                .is_none_or(|cluster| session.cluster == *cluster)
            && self
                .team
                .as_ref()
                .is_none_or(|team| session.team.as_ref() == Some(team))
            && self
                .labels
                .iter()
                .all(|(key, value)| session.labels.get(key) == Some(value))
    }

    /// The last session that an earlier page examined.
    pub(crate) fn cursor(&self) -> Result<Option<SessionId>, Error> {
        let Some(token) = &self.page_token else {
            return Ok(None);
        };
        let id = token.strip_prefix(TOKEN_PREFIX).and_then(|id| id.parse().ok());
        id.map(Some).ok_or(Error::BadPageToken)
    }
}

/// Builder of a page: examines sessions, newest first, until the page is full or the
/// read limit is reached.
pub(crate) struct PageBuilder<'a> {
    query: &'a ListQuery,
    size: usize,
    sessions: Vec<Session>,
    examined: usize,
    cursor: Option<SessionId>,
}

impl<'a> PageBuilder<'a> {
    pub(crate) fn begin(query: &'a ListQuery) -> Result<Self, Error> {
        let size = query.page_size.clamp(1, PAGE_READ_LIMIT);
        Ok(Self {
            query,
            size,
            sessions: Vec::new(),
            examined: 0,
            cursor: query.cursor()?,
        })
    }

    /// The last examined session; only older ones remain.
    pub(crate) fn cursor(&self) -> Option<&SessionId> {
        self.cursor.as_ref()
    }

    /// Number of sessions that the page can still take; 0 when the read limit is
    /// reached.
    pub(crate) fn missing(&self) -> usize {
        if self.budget() == 0 {
            0
        } else {
            self.size - self.sessions.len()
        }
    }

    /// Number of sessions that may still be examined.
    pub(crate) fn budget(&self) -> usize {
        PAGE_READ_LIMIT - self.examined
    }

    /// Examines the next session; `None` if its index entry has no record.
    pub(crate) fn examine(&mut self, id: SessionId, session: Option<Session>) {
        self.examined += 1;
        self.cursor = Some(id);
        self.sessions
            .extend(session.filter(|session| self.query.matches(session)));
    }

    /// Ends the page; `more` is true if unexamined sessions remain.
    pub(crate) fn finish(self, more: bool) -> Page {
        let next = self
            .cursor
            .filter(|_| more)
            .map(|id| format!("{TOKEN_PREFIX}{id}"));
        Page {
            sessions: self.sessions,
            next,
        }
    }
}
