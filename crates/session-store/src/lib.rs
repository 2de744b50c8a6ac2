//! Where sessions are kept.
//!
//! [`SessionStore`] is the contract: one trait for each family of operations, in a
//! file of its own. [`memory`] and [`redis`] implement each in a file of the same
//! name, and one suite of tests checks both. Every write carries a precondition, and a
//! lost race is its own error ([`Error::Conflict`]): the caller reads again.

pub mod activity_reports;
pub mod audit_trail;
pub mod change_feed;
pub mod definitions;
pub mod due_queue;
pub mod leases;
pub mod memory;
pub mod places;
pub mod redis;
pub mod retention;
pub mod session_index;
pub mod sessions;
pub mod signing_keys;
pub mod spark_bindings;
pub mod spark_sessions;
pub mod store_health;
pub mod tokens;

pub use activity_reports::{ActivityReports, Heard, Loaded, More, PROXY_MEMORY, Proxies, Report, Reported};
pub use audit_trail::{AuditTrail, Audited};
pub use change_feed::{Change, ChangeFeed, Feed, FeedProgress};
pub use definitions::{Definition, DefinitionQuota, Definitions, Kind};
pub use due_queue::DueQueue;
pub use leases::Leases;
pub use places::Places;
pub use retention::{Retention, Tombstones};
pub use session_core::SessionKey;
use session_core::{Quota, SystemClock};
pub use session_index::{ListQuery, PAGE_READ_LIMIT, Page, Scope, SessionIndex};
pub use sessions::{Commit, Create, Created, HISTORY, REQUEST_ID_MEMORY, RequestId, Sessions};
pub use signing_keys::SigningKeys;
pub use spark_bindings::SparkBindings;
pub use spark_sessions::SparkSessions;
use std::sync::Arc;
use std::time::Duration;
pub use store_health::StoreHealth;
pub(crate) use tokens::first_use;
pub use tokens::{TOKEN_MEMORY, TokenRecord, Tokens};

/// The traits of all families, for their methods.
pub mod prelude {
    pub use crate::SessionStore as _;
    pub use crate::activity_reports::ActivityReports as _;
    pub use crate::audit_trail::AuditTrail as _;
    pub use crate::change_feed::ChangeFeed as _;
    pub use crate::definitions::Definitions as _;
    pub use crate::due_queue::DueQueue as _;
    pub use crate::leases::Leases as _;
    pub use crate::places::Places as _;
    pub use crate::retention::Retention as _;
    pub use crate::session_index::SessionIndex as _;
    pub use crate::sessions::Sessions as _;
    pub use crate::signing_keys::SigningKeys as _;
    pub use crate::spark_bindings::SparkBindings as _;
    pub use crate::spark_sessions::SparkSessions as _;
    pub use crate::store_health::StoreHealth as _;
    pub use crate::tokens::Tokens as _;
}

/// The contract: every family of operations. A method is bounded in time and
/// safe to call again.
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
    + Places
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
        + Places
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
        /// Which.
        quota: Quota,
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
