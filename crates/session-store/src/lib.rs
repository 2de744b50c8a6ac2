//! Where sessions are kept.
//!
//! [`SessionStore`] is the contract; [`memory`] and [`redis`] keep it, and one
//! suite of tests holds both to it. Every write carries a precondition, and a
//! lost race is its own error ([`Error::Conflict`]): the caller reads again.

mod activity_reports;
pub mod audit_trail;
mod change_feed;
pub mod memory;
pub mod redis;
mod session_index;
pub mod signing_keys;
pub mod spark_bindings;
pub mod spark_sessions;

pub use activity_reports::{Heard, More, Proxies, Report, Reported};
use async_trait::async_trait;
pub use audit_trail::{AuditTrail, Audited};
pub use change_feed::FeedProgress;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
pub use session_core::SessionKey;
use session_core::{
    Activity, Actor, AuditAction, AuditRecord, ClusterName, EventRecord, Limits, Operation, OrgId,
    PrincipalId, ProxyId, Session, Status, SystemClock, Timestamp, TokenId, TokenUse, Use,
};
pub use signing_keys::SigningKeys;
pub use spark_bindings::SharedServers;
pub use spark_sessions::SparkSessions;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How many changes of a session are kept readable.
pub const HISTORY: usize = 50;
/// How long a `request_id` is remembered.
pub const REQUEST_ID_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// A proxy that said nothing for this long is not remembered.
pub const PROXY_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// The most records one page of [`SessionStore::list`] reads; a page may come
/// back short and still have a next token.
pub const PAGE_READ_LIMIT: usize = 1000;

/// How long ended sessions stay listed, and how many: beyond that, the longest
/// ended go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstones {
    /// Since their end.
    pub age: Duration,
    /// Of each owner.
    pub per_owner: usize,
    /// Of each organization.
    pub per_org: usize,
}

impl Default for Tombstones {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(7 * 24 * 3600),
            per_owner: 5_000,
            per_org: 20_000,
        }
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else wrote first: read again.
    #[error("the record was changed meanwhile")]
    Conflict,
    /// There is no such record.
    #[error("no such record")]
    NotFound,
    /// A record of this name exists.
    #[error("it exists already")]
    Exists,
    /// The same `request_id` came before with other fields.
    #[error("request_id was used before with other fields")]
    RequestIdReused,
    /// A quota is used up.
    #[error("{quota} is used up: {limit}")]
    Quota {
        /// Which, as [`Limits`] names it.
        quota: &'static str,
        /// The limit.
        limit: u32,
        /// Waiting this long helps, if waiting helps.
        retry_after: Option<Duration>,
    },
    /// The session ended, or its tokens were revoked, before a token could be recorded.
    #[error("the session takes no tokens: {0}")]
    TokenRefused(&'static str),
    /// A page token that this store did not make.
    #[error("page_token is not one of ours")]
    BadPageToken,
    /// The store cannot be reached, or did not answer in time.
    #[error("the state store is unavailable: {0}")]
    Unavailable(String),
    /// The store is short of memory and takes nothing new. What ends things is
    /// still taken.
    #[error("the state store is short of memory")]
    Full,
    /// A record cannot be read.
    #[error("a stored record is broken: {0}")]
    Corrupt(String),
}

/// A session to be written for the first time.
#[derive(Debug, Clone)]
pub struct Create {
    /// The record, version 1.
    pub session: Session,
    /// Its first event.
    pub record: EventRecord,
    /// When it is due.
    pub due: Timestamp,
    /// Makes a repeated create return the first one's session: the caller's
    /// `request_id` and a digest of all other fields.
    pub request: Option<RequestId>,
    /// The quotas to hold: `live_sessions_per_owner`, `live_sessions`,
    /// `creates_per_minute` (a fixed window of 60 s of the store's clock).
    pub limits: Limits,
}

/// A caller's own name for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    /// As the caller gave it; unique per owner.
    pub id: String,
    /// A digest of every other field.
    pub fingerprint: String,
}

/// What a create did.
#[derive(Debug, Clone)]
pub struct Created {
    /// The session, as stored now.
    pub session: Session,
    /// False when an earlier create with the same `request_id` made it.
    pub new: bool,
}

/// A change to write, on the condition that the stored version is the one before.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The new record; the stored one must have `version - 1`.
    pub session: Session,
    /// Its event.
    pub record: EventRecord,
    /// When it is due next; never, if none.
    pub due: Option<Timestamp>,
}

/// A session, and what is known of its use.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The record.
    pub session: Session,
    /// Its use, as far as the proxies have reported it.
    pub activity: Activity,
    /// The store's present when it was read.
    pub at: Timestamp,
}

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

/// A change, as every replica hears of it.
#[derive(Debug, Clone)]
pub struct Change {
    /// Of which session.
    pub key: SessionKey,
    /// What happened; its `version` orders the changes of one session.
    pub record: EventRecord,
    /// Tokens of a lower epoch are revoked.
    pub token_epoch: u64,
}

/// What the change feed says.
#[derive(Debug, Clone)]
pub enum Feed {
    /// A session changed.
    Change(Box<Change>),
    /// Changes may have been missed: everything known must be read again.
    Reset,
}

/// So long after its end a token is kept on record: for longer than any use is
/// made of it (`tokens.reattach_grace` of a proxy is 12 h at most).
pub const TOKEN_MEMORY: Duration = Duration::from_secs(12 * 3600 + 600);

/// What is kept of an issued token: never the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The JWT's `jti`.
    pub id: TokenId,
    /// The JWT's `kid`.
    pub key_id: String,
    /// For whom it was issued.
    pub subject: PrincipalId,
    /// The epoch it belongs to.
    pub epoch: u64,
    /// `iat`.
    pub issued_at: Timestamp,
    /// `exp`.
    pub expires_at: Timestamp,
    /// From which address it was asked for, where that is known: for the audit
    /// trail, and kept nowhere else.
    #[serde(skip)]
    pub address: String,
}

impl TokenRecord {
    /// What the trail says when it is recorded.
    pub(crate) fn audited(&self, key: &SessionKey) -> AuditRecord {
        AuditRecord::new(self.issued_at, AuditAction::TokenIssued)
            .by(Actor::Principal(self.subject.clone()))
            .from_address(&self.address)
            .on_session(key)
            .on_token(&self.id)
            .on(&self.key_id)
    }

    /// The order in which tokens are listed.
    pub(crate) fn sort_oldest_first(tokens: &mut [Self]) {
        tokens.sort_by(|a, b| (a.issued_at, &a.id).cmp(&(b.issued_at, &b.id)));
    }
}

/// What the trail says when a token is used for the first time.
pub(crate) fn first_use(key: &SessionKey, id: &TokenId, at: Timestamp) -> AuditRecord {
    AuditRecord::new(at, AuditAction::TokenFirstUsed)
        .on_session(key)
        .on_token(id)
}

/// Things that are defined rather than lived: each is a JSON text under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `session_core::Cluster`, by name.
    Cluster,
    /// `session_core::Catalog`, by `org/name`.
    Catalog,
    /// `session_core::Org`, by name.
    Org,
    /// `session_core::Disabled`: an organization by name, a principal by
    /// `org/principal`.
    Disabled,
    /// What tells this installation from others, under one name.
    Install,
}

impl Kind {
    /// The organization whose share a definition of this name counts for, if
    /// it is one that an organization makes itself.
    pub(crate) fn org_of(self, name: &str) -> Option<&str> {
        match self {
            Self::Catalog | Self::Disabled => name.split_once('/').map(|(org, _)| org),
            Self::Cluster | Self::Org | Self::Install => None,
        }
    }
}

/// How much of a kind one organization may define.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefinitionQuota {
    /// What the quota of entries is called in errors, and how many there may be.
    pub entries: (&'static str, u32),
    /// The same of bytes: names and JSON texts together.
    pub bytes: (&'static str, u32),
}

/// A stored definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Rises by one with every write, from 1.
    pub version: u64,
    /// The JSON.
    pub json: String,
}

/// The contract. Every method is bounded in time and safe to call again.
#[async_trait]
pub trait SessionStore:
    SharedServers + SparkSessions + AuditTrail + SigningKeys + Send + Sync + std::fmt::Debug + 'static
{
    /// The store's own clock, which all due times are of.
    async fn now(&self) -> Result<Timestamp, Error>;

    /// Writes a new session, its indexes, due entry and event, unless the
    /// `request_id` was seen or a quota is used up; all in one step.
    async fn create(&self, create: Create) -> Result<Created, Error>;

    /// The session that an earlier create with this request made, if one did.
    /// [`Error::RequestIdReused`] if it had other fields.
    async fn repeated(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error>;

    /// Reads a session.
    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error>;

    /// Reads a session and what is known of its use.
    async fn load(&self, key: &SessionKey) -> Result<Option<Loaded>, Error>;

    /// Writes a change, its indexes, due entry, quota and event in one step.
    /// [`Error::Conflict`] unless the stored version is the one before. Owner,
    /// cluster and team of a session never change.
    async fn commit(&self, commit: Commit) -> Result<(), Error>;

    /// [`SessionStore::commit`] of what an idle clock decided: only while no
    /// proxy has a call in flight on the session's generation, and while
    /// `last_activity_at` is what the decision was made from; otherwise
    /// [`Error::Conflict`].
    async fn commit_quiet(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error>;

    /// Takes what a proxy says of a session. Calls in flight on the session's
    /// generation are a lease of [`session_core::machine::BUSY_LEASE`], zero
    /// ends it at once; calls on an earlier generation count for nothing. The
    /// last activity only rises, and never beyond the store's present. Makes
    /// no event and no version.
    async fn report(&self, key: &SessionKey, report: &Report) -> Result<Reported, Error>;

    /// The use of sessions of one organization, in their order.
    async fn uses(&self, sessions: &[Session]) -> Result<Vec<Use>, Error>;

    /// What the calls in flight on a session's generation execute, oldest first.
    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error>;

    /// When those of a session's tokens were used that [`SessionStore::tokens`] lists.
    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error>;

    /// A report of a proxy begins. `sequence` numbers its reports from 1; an
    /// amount that comes under a number not above the last one came before. An
    /// unknown proxy is known from now on.
    async fn proxy_reported(&self, proxy: &ProxyId, sequence: u64) -> Result<Heard, Error>;

    /// All that a proxy's report says, which began at `at`, is written: it lived
    /// then. Not before it is written, because what it says must be known when
    /// its silence ends.
    async fn proxy_spoke(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error>;

    /// How the proxies stand: silent is who said nothing for `silent_after`.
    /// Those that said nothing for `gone_after` are forgotten first.
    async fn proxies(&self, silent_after: Duration, gone_after: Option<Duration>) -> Result<Proxies, Error>;

    /// Sets when a session is due (never, if none), on the condition that its
    /// version is still `version`. Makes no event.
    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error>;

    /// Takes up to `limit` sessions that are due, the longest due first, and
    /// makes them due again after `lease`, so that a crash loses none. Whoever
    /// finds no record under a key settles it by [`SessionStore::set_due`].
    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error>;

    /// Lists an organization's sessions, newest first.
    async fn list(&self, query: &ListQuery) -> Result<Page, Error>;

    /// Names up to `limit` live sessions of all organizations that run on
    /// `cluster`, beginning after `after` in the order of the keys.
    async fn live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error>;

    /// The organizations that have live sessions on `cluster`.
    async fn orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error>;

    /// How many of an organization's sessions are in each status.
    async fn counts(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error>;

    /// When the session that is due longest was, or will be, due.
    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error>;

    /// The last [`HISTORY`] changes of a session, oldest first; none of an
    /// unknown one.
    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error>;

    /// Every change from now on, of all organizations, in version order for
    /// each session. Begins with [`Feed::Reset`]; says it again after a gap.
    /// Never ends while the store lives.
    fn changes(&self) -> BoxStream<'static, Feed> {
        self.changes_with_progress(&FeedProgress::default())
    }

    /// [`SessionStore::changes`], which also records how recently the store was
    /// read, so that silence can be told from a feed that is broken.
    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed>;

    /// Records a token before it leaves the issuer, on the condition that the
    /// session is live and its epoch is still the token's, and that it has
    /// fewer than `limit` live tokens: not expired, of this epoch, not taken
    /// back. Recording a token twice is recording it once. Tokens that no
    /// longer count make room for it, the oldest first, so never more than
    /// `limit` are kept; nor are those that expired before [`TOKEN_MEMORY`].
    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error>;

    /// The tokens of a session's present epoch that have not expired, oldest
    /// first. One that was revoked alone is among them, as [`Session`] tells
    /// which those are, until its room is needed.
    async fn tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error>;

    /// The same and, where there was room to keep them, those that expired within
    /// [`TOKEN_MEMORY`]: a stream that runs and a reattach outlive their token.
    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error>;

    /// Takes `name` for `owner`, or keeps it, for `ttl` from now; none while
    /// another owner has it. A `ttl` of zero gives it back. The number is a
    /// fencing number: it stays while the lease is kept, and who takes the lease
    /// anew has a higher one than everybody before, also after data loss.
    async fn lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error>;

    /// Writes a definition if its stored version is `expected` (0: there is
    /// none). Returns the new version. Otherwise [`Error::Exists`] if none was
    /// expected, [`Error::NotFound`] if there is none, else [`Error::Conflict`].
    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error>;

    /// [`SessionStore::put_definition`] of what an organization defines itself,
    /// within its share: otherwise, unless it takes less room than what it
    /// replaces, [`Error::Quota`], or [`Error::Full`] when memory is short.
    async fn put_definition_within(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error>;

    /// Reads a definition.
    async fn definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error>;

    /// Reads several definitions at once, by kind and name, in this order.
    async fn some_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error>;

    /// The same, and the store's clock as of then.
    async fn some_definitions_now(
        &self,
        wanted: &[(Kind, String)],
    ) -> Result<(Vec<Option<Definition>>, Timestamp), Error> {
        Ok((self.some_definitions(wanted).await?, self.now().await?))
    }

    /// Reads all definitions of a kind, by name.
    async fn definitions(&self, kind: Kind) -> Result<BTreeMap<String, Definition>, Error> {
        let mut all = self.definitions_of(kind, None).await?;
        for org in self.orgs_with_definitions(kind).await? {
            all.append(&mut self.definitions_of(kind, Some(&org)).await?);
        }
        Ok(all)
    }

    /// Reads, in pages, those that one organization defined itself (names that
    /// begin with it and a slash); those of nobody's share, if none is given.
    async fn definitions_of(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error>;

    /// The names of the same, in order: to read some of them at a time.
    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error>;

    /// The organizations that have definitions of a kind in their share.
    async fn orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error>;

    /// Removes a definition if its stored version is `expected`.
    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error>;

    /// Forgets up to `limit` ended sessions that are not kept any more, with
    /// their history, tokens and uses, and tells how many. Never one that
    /// lives, nor one that is still due: somebody must look at that once more.
    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error>;

    /// Rises when stored state may have gone back in time; routes carry it. The
    /// feed says [`Feed::Reset`] after it rose.
    async fn epoch(&self) -> Result<u64, Error>;

    /// Can it be reached now?
    async fn ping(&self) -> Result<(), Error>;
}

/// The URL of a [`memory::MemoryStore`].
const MEMORY: &str = "memory://";

/// Opens the store that `url` names: `memory://` forgets everything when the
/// process ends, anything else is a Redis.
///
/// # Errors
/// See [`redis::RedisStore::connect`]; [`redis::check`] tells beforehand what
/// can be told without connecting.
pub async fn open(url: &str, options: &redis::Options) -> Result<Arc<dyn SessionStore>, redis::ConnectError> {
    if url == MEMORY {
        return Ok(Arc::new(memory::MemoryStore::new(Arc::new(SystemClock))));
    }
    Ok(Arc::new(redis::RedisStore::connect(url, options).await?))
}
