//! The status machine: the only code that decides what a session becomes.
//!
//! [`create`] makes a session, [`apply`] carries out what somebody asked for,
//! [`step`] looks at a session because it is due. All are pure: the caller
//! commits the returned record on the condition that the stored version is
//! still the old one, and only then runs the effects. Effects only start work
//! and are safe to run twice, so a crash between any two lines is repaired by
//! looking again.

mod apply;
mod change;
mod due;
mod step;

pub use apply::{apply, create};
pub use due::next_due;
pub use step::step;

use crate::id::{CatalogName, ClusterName, OrgId, SessionId, TokenId};
use crate::policy::SessionPolicy;
use crate::principal::PrincipalId;
use crate::reason::ChangeReason;
use crate::route::Route;
pub use crate::session::{CLOSING_SOON, RELEASE_GRACE};
use crate::session::{EventRecord, Session, Status};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Proxies report activity this often.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// A call that was reported counts as in flight for this long, unless its
/// proxy says more of it: so a proxy that died holds nothing for long.
pub const BUSY_LEASE: Duration = Duration::from_secs(30);
/// A proxy that said nothing for two report intervals may know of calls that
/// nobody else does.
pub const PROXY_SILENT: Duration = Duration::from_secs(10);
/// A proxy that said nothing for this long has ended: its leases, and 60 s.
pub const PROXY_GONE: Duration = Duration::from_secs(90);
/// After an outage no idle clock fires for this long at least.
pub const OUTAGE_FREEZE: Duration = Duration::from_secs(60);
/// Restarts are counted within this window.
pub const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// More losses than this within the window fail the session.
pub const RESTART_BUDGET: usize = 3;
/// The session fails when this many warm-ups in a row have failed.
pub const WAKE_BUDGET: u32 = 5;
/// Single tokens that a session may have revoked at one time; one more revokes
/// every token issued so far, because the list travels with every route.
pub const MOST_REVOKED: usize = 128;
/// A session whose compute is in the making, or whose release is not yet
/// confirmed, is looked at this often even if nothing calls for it.
pub const RECHECK: Duration = Duration::from_secs(2);
/// A release that is long in coming is looked at this often at the least.
pub const SLOWEST_RECHECK: Duration = Duration::from_secs(60);
/// While a proxy has not reported since an outage, look again after this.
pub const FROZEN_RECHECK: Duration = Duration::from_secs(60);

/// Why compute failed, for two circles of readers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    /// For everybody who may see the session: no address, path or log line.
    pub text: String,
    /// For those who may act as the session: the engine's last words and such.
    pub detail: String,
}

impl Cause {
    /// Longer details are cut at their beginning: the last words count.
    pub const DETAIL_BYTES: usize = 1024;
}

impl From<String> for Cause {
    fn from(text: String) -> Self {
        Self {
            text,
            detail: String::new(),
        }
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// What a provider sees of one session generation's compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// There is none, and nothing is left of it.
    Missing,
    /// It exists and is not ready yet.
    Starting {
        /// What it is waiting for, in words for everybody.
        detail: String,
    },
    /// It answered the readiness probe.
    Ready {
        /// Where.
        route: Route,
    },
    /// It exists but will not become ready by itself.
    Failed {
        /// Why.
        cause: Cause,
        /// Trying again cannot help.
        permanent: bool,
    },
}

/// What somebody asks of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A waking call, or WarmSession.
    Wake,
    /// End it.
    Close {
        /// Why; one of the closing reasons.
        reason: ChangeReason,
    },
    /// Move `expires_at`.
    Extend {
        /// To then.
        expires_at: Timestamp,
    },
    /// Hold the idle clocks.
    KeepAlive {
        /// Until then.
        until: Timestamp,
    },
    /// Change what people call it.
    Update {
        /// A new name; `Some(None)` removes it.
        name: Option<Option<String>>,
        /// New labels in place of all old ones.
        labels: Option<BTreeMap<String, String>>,
    },
    /// The oldest of its Spark sessions on shared compute is given back, to
    /// make room: whoever cached its bindings must read them again.
    ReleaseSparkSession,
    /// End every token issued so far.
    RevokeTokens,
    /// End one token.
    RevokeToken {
        /// Which.
        id: TokenId,
        /// Until when anybody might accept it.
        until: Timestamp,
    },
}

/// Work to start after the transition is committed. Safe to run twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make compute for this generation, unless it exists.
    Ensure {
        /// The generation to make.
        generation: u64,
    },
    /// Give back compute of this generation and all before it.
    Release {
        /// The last generation to give back.
        up_to: u64,
    },
}

/// A change to commit, and the work it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The record to commit in place of the one with the version before.
    pub session: Session,
    /// What history says of it.
    pub record: EventRecord,
    /// Work to start once committed.
    pub effects: Vec<Effect>,
}

impl Transition {
    /// Did an idle clock decide this? Then it may only be committed while
    /// nothing is in flight and nothing happened since it was decided.
    pub const fn by_idle_clock(&self) -> bool {
        match self.session.reason {
            ChangeReason::IdleTimeout | ChangeReason::IdleReleased | ChangeReason::IdleClose => true,
            ChangeReason::Created
            | ChangeReason::ComputeReady
            | ChangeReason::ProvisioningTimeout
            | ChangeReason::ProvisioningFailed
            | ChangeReason::Activity
            | ChangeReason::Woken
            | ChangeReason::WarmFailed
            | ChangeReason::WarmBudgetSpent
            | ChangeReason::ComputeLost
            | ChangeReason::RestartBudgetSpent
            | ChangeReason::CloseRequested
            | ChangeReason::MaxLifetime
            | ChangeReason::ClusterDestroyed
            | ChangeReason::OrgDisabled
            | ChangeReason::OwnerDisabled
            | ChangeReason::Updated
            | ChangeReason::ClosingSoon
            | ChangeReason::SparkSessionReleased
            | ChangeReason::TokensRevoked => false,
        }
    }
}

/// The outcome of looking at a session that was due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// A change to commit first.
    pub transition: Option<Transition>,
    /// Work that an earlier commit calls for and that is not confirmed.
    pub effects: Vec<Effect>,
    /// When to look again; never, if none.
    pub due: Option<Timestamp>,
}

/// Why a session cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Closed and failed sessions never change.
    #[error("the session is {}", .0.as_str())]
    Terminal(Status),
    /// Warm-ups failed; the next may begin then.
    #[error("the last warm-up failed; the next one may begin at {until}")]
    BackingOff {
        /// When the next warm-up may begin.
        until: Timestamp,
    },
    /// A moment outside its bounds.
    #[error("{field} must be between {min} and {max}")]
    OutOfBounds {
        /// The field of the request.
        field: &'static str,
        /// The earliest moment.
        min: Timestamp,
        /// The latest moment.
        max: Timestamp,
    },
}

/// What a new session is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// The tenant.
    pub org: OrgId,
    /// Who creates it.
    pub owner: PrincipalId,
    /// A name for people.
    pub name: Option<String>,
    /// One of the creator's teams.
    pub team: Option<String>,
    /// Free key-value pairs.
    pub labels: BTreeMap<String, String>,
    /// Where it runs.
    pub cluster: ClusterName,
    /// Its default catalog.
    pub catalog: Option<CatalogName>,
    /// Its settled clocks.
    pub policy: SessionPolicy,
}
