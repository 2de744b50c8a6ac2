//! What proxies say of sessions' use, as the store takes it.

use session_core::{Operation, ProxyId, Status, Timestamp, TokenUse, Totals};

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

/// What [`crate::SessionStore::proxy_reported`] says.
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
