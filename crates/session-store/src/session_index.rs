//! What a list query means, for every store alike: which sessions it admits,
//! and how a page fills and continues.

use crate::Error;
use async_trait::async_trait;
use session_core::{ClusterName, OrgId, PrincipalId, Session, SessionId, SessionKey, Status};
use std::collections::{BTreeMap, BTreeSet};

/// Tells our page tokens, and this form of them, from anything else.
const TOKEN_PREFIX: &str = "1.";

/// The most records one page of [`crate::SessionIndex::list`] reads; a page may come
/// back short and still have a next token.
pub const PAGE_READ_LIMIT: usize = 1000;

/// Which of an organization's sessions to list, newest first.
#[derive(Debug, Clone)]
pub struct ListQuery {
    /// The tenant.
    pub org: OrgId,
    /// What the caller may see.
    pub scope: Scope,
    /// Only these statuses; all when empty.
    pub statuses: BTreeSet<Status>,
    /// Only this owner's.
    pub owner: Option<PrincipalId>,
    /// Only on this cluster.
    pub cluster: Option<ClusterName>,
    /// Only this team's.
    pub team: Option<String>,
    /// Only with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// At most this many, 1 to 1000.
    pub page_size: usize,
    /// Where the last page ended.
    pub page_token: Option<String>,
}

/// Which sessions a caller may see at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every session of the organization.
    Org,
    /// Its own, and those of the teams it administers.
    OwnAndTeams {
        /// Who.
        owner: PrincipalId,
        /// The teams.
        teams: BTreeSet<String>,
    },
}

/// One page of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Newest first.
    pub sessions: Vec<Session>,
    /// Where the next page begins; none when there is no more.
    pub next: Option<String>,
}

/// Lists and counts of sessions.
#[async_trait]
pub trait SessionIndex {
    /// Lists an organization's sessions, newest first.
    async fn list(&self, query: &ListQuery) -> Result<Page, Error>;

    /// Names up to `limit` live sessions of all organizations that run on
    /// `cluster`, beginning after `after` in the order of the keys.
    async fn list_live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error>;

    /// The organizations that have live sessions on `cluster`.
    async fn list_orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error>;

    /// How many of an organization's sessions are in each status.
    async fn count_by_status(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error>;
}

impl Scope {
    /// May a caller with this scope see `session`?
    pub fn admits(&self, session: &Session) -> bool {
        match self {
            Self::Org => true,
            Self::OwnAndTeams { owner, teams } => {
                session.owner == *owner || session.team.as_ref().is_some_and(|team| teams.contains(team))
            }
        }
    }
}

impl ListQuery {
    /// Every session of an organization, from the first page on.
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

    /// Every live session of an organization.
    pub fn live_of_org(org: OrgId, page_size: usize) -> Self {
        Self {
            statuses: BTreeSet::from([Status::Pending, Status::Active, Status::Idle]),
            ..Self::of_org(org, page_size)
        }
    }

    /// Does `session` belong on a page of this query?
    pub fn admits(&self, session: &Session) -> bool {
        session.org == self.org
            && self.scope.admits(session)
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

/// A page in the making: examines sessions newest first until it is full or
/// has read its limit.
pub(crate) struct Filling<'a> {
    query: &'a ListQuery,
    size: usize,
    sessions: Vec<Session>,
    examined: usize,
    cursor: Option<SessionId>,
}

impl<'a> Filling<'a> {
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

    /// Only sessions older than this one are still to be examined.
    pub(crate) fn cursor(&self) -> Option<&SessionId> {
        self.cursor.as_ref()
    }

    /// How many sessions the page lacks.
    pub(crate) fn lacks(&self) -> usize {
        if self.budget() == 0 {
            0
        } else {
            self.size - self.sessions.len()
        }
    }

    /// How many sessions may still be examined.
    pub(crate) fn budget(&self) -> usize {
        PAGE_READ_LIMIT - self.examined
    }

    /// Examines the next session; none when its index entry has no record.
    pub(crate) fn examine(&mut self, id: SessionId, session: Option<Session>) {
        self.examined += 1;
        self.cursor = Some(id);
        self.sessions
            .extend(session.filter(|session| self.query.admits(session)));
    }

    /// Ends the page; `more` says whether sessions are left to examine.
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
