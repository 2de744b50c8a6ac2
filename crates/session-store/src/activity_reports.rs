//! What proxies say of sessions' use, as the store takes it.

use crate::Error;
use async_trait::async_trait;
use session_core::{
    Activity, Operation, ProxyId, Session, SessionKey, Status, Timestamp, TokenUse, Totals, Use,
};
use std::time::Duration;

/// The names of what was added that are remembered for each session, so that
/// a write whose answer was lost can be made again.
pub(crate) const ADDED_MEMORY: usize = 8;

/// What one proxy says of one session.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who says it.
    pub proxy: ProxyId,
    /// The generation of the compute that its calls run on.
    pub generation: u64,
    /// Its calls in flight there, if it says anything of them now.
    pub open_calls: Option<u32>,
    /// The end of the last call, by the proxy's own clock.
    pub last_activity_at: Option<Timestamp>,
    /// What the calls execute.
    pub operations: Vec<Operation>,
    /// What is to be added to the session's totals, if anything is.
    pub more: Option<More>,
    /// Uses of tokens; saying one twice is saying it once.
    pub token_uses: Vec<TokenUse>,
}

/// An amount that is added once, however often it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct More {
    /// Names it. The last few of a session are remembered.
    pub name: u64,
    /// The amount.
    pub totals: Totals,
}

/// A proxy that said nothing for this long is not remembered.
pub const PROXY_MEMORY: Duration = Duration::from_secs(24 * 3600);

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

/// The use of sessions as proxies report it, and the proxies themselves.
#[async_trait]
pub trait ActivityReports {
    /// Takes what a proxy says of a session. Calls in flight on the session's
    /// generation are a lease of [`session_core::machine::BUSY_LEASE`], zero
    /// ends it at once; calls on an earlier generation count for nothing. The
    /// last activity only rises, and never beyond the store's present. Makes
    /// no event and no version.
    async fn apply_report(&self, key: &SessionKey, report: &Report) -> Result<Reported, Error>;

    /// Reads a session and what is known of its use.
    async fn get_with_activity(&self, key: &SessionKey) -> Result<Option<Loaded>, Error>;

    /// The use of sessions of one organization, in their order.
    async fn usage(&self, sessions: &[Session]) -> Result<Vec<Use>, Error>;

    /// What the calls in flight on a session's generation execute, oldest first.
    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error>;

    /// A report of a proxy begins. `sequence` numbers its reports from 1; an
    /// amount that comes under a number not above the last one came before. An
    /// unknown proxy is known from now on.
    async fn begin_proxy_report(&self, proxy: &ProxyId, sequence: u64) -> Result<Heard, Error>;

    /// All that a proxy's report says, which began at `at`, is written: it lived
    /// then. Not before it is written, because what it says must be known when
    /// its silence ends.
    async fn mark_proxy_alive(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error>;

    /// How the proxies stand: silent is who said nothing for `silent_after`.
    /// Those that said nothing for `gone_after` are forgotten first.
    async fn count_proxies(
        &self,
        silent_after: Duration,
        gone_after: Option<Duration>,
    ) -> Result<Proxies, Error>;
}

impl More {
    /// The name in a form of fixed length, in which none is part of another.
    pub(crate) fn tag(&self) -> String {
        format!("{:016x}", self.name)
    }
}

/// The order in which operations are listed.
pub(crate) fn sort_oldest_first(operations: &mut [Operation]) {
    operations.sort_by(|a, b| (a.started_at, &a.operation_id).cmp(&(b.started_at, &b.operation_id)));
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// There is no such session.
    Unknown,
    /// It ended: amounts were added, nothing else.
    Ended,
    /// It is taken, and the session stands so.
    Live(Status),
}

/// What [`crate::ActivityReports::begin_proxy_report`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The store's present.
    pub at: Timestamp,
    /// The report's amounts came for the first time.
    pub fresh: bool,
}

/// How the proxies stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxies {
    /// Those that are known.
    pub known: u64,
    /// Those of them that have said nothing for too long.
    pub silent: u64,
}
