//! Reports of the proxies about the usage of sessions, and the proxies themselves.

use crate::Error;
use async_trait::async_trait;
use session_core::{
    Activity, Operation, ProxyId, Session, SessionKey, Status, Timestamp, TokenUse, Totals, Use,
};
use std::time::Duration;

/// Usage deltas whose names are stored per session, so that a write with an unknown
/// outcome can be repeated.
pub(crate) const MAX_DELTA_NAMES: usize = 8;

/// Report of one proxy about one session.
#[derive(Debug, Clone)]
pub struct Report {
    /// The reporting proxy.
    pub proxy: ProxyId,
    /// Generation of the compute on which its calls run.
    pub generation: u64,
    /// Calls in flight on that generation; `None` leaves the stored number unchanged.
    pub open_calls: Option<u32>,
    /// End of the last call, by the proxy's clock.
    pub last_activity_at: Option<Timestamp>,
    /// Operations that the calls execute.
    pub operations: Vec<Operation>,
    /// Usage to add to the totals of the session.
    pub usage_delta: Option<UsageDelta>,
    /// Uses of tokens; a repeated use changes nothing.
    pub token_uses: Vec<TokenUse>,
}

/// Usage that is added once, however often it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageDelta {
    /// Identifies the delta; the last `MAX_DELTA_NAMES` of a session are stored.
    pub name: u64,
    /// Usage since the previous delta.
    pub totals: Totals,
}

/// A proxy without a report for this long is deleted.
pub const PROXY_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A session with its activity.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The session record.
    pub session: Session,
    /// Activity, from the reports of the proxies.
    pub activity: Activity,
    /// Time of the store at the read.
    pub at: Timestamp,
}

/// Usage of sessions as the proxies report it, and the proxies themselves.
#[async_trait]
pub trait ActivityReports {
    /// Applies a report of a proxy. Calls in flight on the session's generation hold a
    /// lease of [`session_core::machine::BUSY_LEASE`]; zero calls end it at once; calls
    /// on an earlier generation are ignored. The last activity never decreases and
    /// never exceeds the store's time. Creates no event and no version.
    async fn apply_report(&self, key: &SessionKey, report: &Report) -> Result<ReportOutcome, Error>;

    /// Reads a session with its activity.
    async fn get_with_activity(&self, key: &SessionKey) -> Result<Option<Loaded>, Error>;

    /// Returns the usage of sessions of one organization, in the same order.
    async fn usage(&self, sessions: &[Session]) -> Result<Vec<Use>, Error>;

    /// Returns the operations of the calls in flight on the session's generation,
    /// oldest first.
    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error>;

    /// Begins a report of a proxy and registers an unknown proxy. `sequence` numbers
    /// its reports from 1; usage in a report whose number is not higher than the last
    /// one was applied before.
    async fn begin_proxy_report(&self, proxy: &ProxyId, sequence: u64) -> Result<ReportStart, Error>;

    /// Records that the proxy was alive at `at`, the begin of its report. Called only
    /// after the whole report is written: otherwise the proxy could count as alive
    /// before its calls are stored.
    async fn mark_proxy_alive(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error>;

    /// Counts the proxies; silent ones sent no report for `silent_after`. Proxies
    /// without a report for `gone_after` are deleted first.
    async fn count_proxies(
        &self,
        silent_after: Duration,
        gone_after: Option<Duration>,
    ) -> Result<Proxies, Error>;
}

impl UsageDelta {
    /// The name in a form of fixed length; no name is a substring of another.
    pub(crate) fn tag(&self) -> String {
        format!("{:016x}", self.name)
    }
}

/// Sorts operations in list order.
pub(crate) fn sort_oldest_first(operations: &mut [Operation]) {
    operations.sort_by(|a, b| (a.started_at, &a.operation_id).cmp(&(b.started_at, &b.operation_id)));
}

/// Outcome of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportOutcome {
    /// The session does not exist.
    Unknown,
    /// The session has ended: only usage and token uses were recorded.
    Ended,
    /// The report was applied; the status of the session.
    Live(Status),
}

/// Result of [`crate::ActivityReports::begin_proxy_report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportStart {
    /// Time of the store.
    pub at: Timestamp,
    /// The sequence number is new, so usage in this report must be added.
    pub fresh: bool,
}

/// Numbers of proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxies {
    /// Registered proxies.
    pub known: u64,
    /// Registered proxies without a recent report.
    pub silent: u64,
}
