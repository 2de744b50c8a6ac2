//! The state store.
//!
//! [`SessionStore`] is the contract: one trait for each family of operations, in a file
//! of its own. [`memory`] and [`redis`] implement each family in a file of the same
//! name, and one contract suite tests both. Every write has a precondition; a lost race
//! is [`Error::Conflict`], and the caller reads again.

pub mod activity_reports;
pub mod audit_trail;
pub mod change_feed;
pub mod definitions;
pub mod due_queue;
pub mod leases;
pub mod memory;
pub mod outage;
pub mod placements;
pub mod redis;
pub mod retention;
pub mod session_index;
pub mod sessions;
pub mod signing_keys;
pub mod spark_bindings;
pub mod spark_sessions;
pub mod store_health;
pub mod tokens;

pub use activity_reports::{
    ActivityReports, Loaded, PROXY_RETENTION, Proxies, Report, ReportOutcome, ReportStart, UsageDelta,
};
pub use audit_trail::{AuditEntry, AuditPlace, AuditSource, AuditTrail};
pub use change_feed::{Change, ChangeFeed, Feed, FeedProgress};
pub use definitions::{Definition, DefinitionQuota, Definitions, Kind};
pub use due_queue::DueQueue;
pub use leases::Leases;
pub use outage::{Outage, OutageCause};
pub use placements::Placements;
pub use retention::{Retention, Tombstones};
pub use session_core::SessionKey;
use session_core::{Quota, SystemClock};
pub use session_index::{ListQuery, PAGE_READ_LIMIT, Page, Scope, SessionIndex};
pub use sessions::{Commit, Create, Created, MAX_HISTORY, REQUEST_ID_RETENTION, RequestId, Sessions};
pub use signing_keys::SigningKeys;
pub use spark_bindings::SparkBindings;
pub use spark_sessions::SparkSessions;
use std::sync::Arc;
use std::time::Duration;
pub use store_health::{Memory, StoreHealth};
pub(crate) use tokens::first_use;
pub use tokens::{TOKEN_RETENTION, TokenRecord, Tokens};

/// The traits of all families, imported for their methods.
pub mod prelude {
    pub use crate::SessionStore as _;
    pub use crate::activity_reports::ActivityReports as _;
    pub use crate::audit_trail::AuditTrail as _;
    pub use crate::change_feed::ChangeFeed as _;
    pub use crate::definitions::Definitions as _;
    pub use crate::due_queue::DueQueue as _;
    pub use crate::leases::Leases as _;
    pub use crate::placements::Placements as _;
    pub use crate::retention::Retention as _;
    pub use crate::session_index::SessionIndex as _;
    pub use crate::sessions::Sessions as _;
    pub use crate::signing_keys::SigningKeys as _;
    pub use crate::spark_bindings::SparkBindings as _;
    pub use crate::spark_sessions::SparkSessions as _;
    pub use crate::store_health::StoreHealth as _;
    pub use crate::tokens::Tokens as _;
}

/// The contract: all families of operations. Every method has a time limit and can be
/// repeated.
pub trait SessionStore:
    Sessions
    + SessionIndex
    + DueQueue
    + ActivityReports
    + Tokens
    + Definitions
    + Leases
    + ChangeFeed
    + Retention
    + StoreHealth
    + Placements
    + SparkBindings
    + SparkSessions
    + AuditTrail
    + SigningKeys
    + Send
    + Sync
    + std::fmt::Debug
    + 'static
{
}

impl<T> SessionStore for T where
    T: Sessions
        + SessionIndex
        + DueQueue
        + ActivityReports
        + Tokens
        + Definitions
        + Leases
        + ChangeFeed
        + Retention
        + StoreHealth
        + Placements
        + SparkBindings
        + SparkSessions
        + AuditTrail
        + SigningKeys
        + Send
        + Sync
        + std::fmt::Debug
        + 'static
{
}

/// Errors of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another writer was first: read again.
    #[error("the record was changed by another writer")]
    Conflict,
    /// The record does not exist.
    #[error("no such record")]
    NotFound,
    /// A record with this name exists.
    #[error("it exists already")]
    Exists,
    /// The `request_id` was used before with other fields.
    #[error("request_id was used before with other fields")]
    RequestIdReused,
    /// A quota is exhausted.
    #[error("quota {quota} is exhausted: {limit}")]
    Quota {
        /// The exhausted quota.
        quota: Quota,
        /// The limit.
        limit: u32,
        /// Time after which a retry can succeed; `None` if waiting does not help.
        retry_after: Option<Duration>,
    },
    /// The session ended or its tokens were revoked before the token was recorded.
    #[error("the session accepts no tokens: {0}")]
    TokenRejected(&'static str),
    /// The page token is not from this store.
    #[error("page_token is invalid")]
    BadPageToken,
    /// The store cannot be used at the moment. The outcome of a write is unknown if the
    /// store is unreachable.
    #[error("the state store is unavailable: {0}")]
    Unavailable(Outage),
    /// The store is short of memory and rejects new data. Writes that end something
    /// still succeed.
    #[error("the state store is short of memory")]
    Full,
    /// A stored record cannot be decoded.
    #[error("a stored record is corrupt: {0}")]
    Corrupt(String),
}

impl Error {
    /// The store is unreachable or did not answer in time.
    pub fn unreachable(detail: impl Into<String>) -> Self {
        Self::Unavailable(Outage::new(OutageCause::Unreachable, detail))
    }
}

/// The URL of a [`memory::MemoryStore`].
const MEMORY: &str = "memory://";

/// Opens the store at `url`: `memory://` keeps state in this process only, every other
/// URL is a Redis.
///
/// # Errors
/// As [`redis::RedisStore::connect`]. [`redis::check`] verifies URL and options without
/// a connection.
pub async fn open(url: &str, options: &redis::Options) -> Result<Arc<dyn SessionStore>, redis::ConnectError> {
    if url == MEMORY {
        return Ok(Arc::new(memory::MemoryStore::new(Arc::new(SystemClock))));
    }
    Ok(Arc::new(redis::RedisStore::connect(url, options).await?))
}
