//! The status machine: the only code that decides the next state of a session.
//!
//! [`create`] makes a session, [`apply`] applies a requested event, [`step`]
//! reconciles a session that is due. All are pure: the caller commits the
//! returned record on the condition that the stored version is still the old
//! one, and only then runs the effects. Effects only start work and are
//! idempotent, so the next reconciliation repairs a crash between any two
//! lines.

mod apply;
mod change;
mod due;
mod step;
mod waiting;

pub use apply::{apply, create};
pub use due::next_due;
pub use step::step;
pub use waiting::WAITING_INTERVAL;

use crate::id::{CatalogName, ClusterName, OrgId, ProfileName, SessionId, TokenId};
use crate::policy::SessionPolicy;
use crate::principal::PrincipalId;
use crate::reason::ChangeReason;
use crate::route::Route;
pub use crate::session::{CLOSING_SOON, RELEASE_GRACE};
use crate::session::{EventRecord, Session, Status};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Interval of the activity reports of a proxy.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// Time for which a reported call counts as in flight without another report,
/// so that a dead proxy does not keep sessions busy for long.
pub const BUSY_LEASE: Duration = Duration::from_secs(30);
/// A proxy without a report for two report intervals may have calls in flight
/// that are not recorded.
pub const PROXY_SILENT: Duration = Duration::from_secs(10);
/// A proxy without a report for this long has ended: its busy leases, and 60 s.
pub const PROXY_GONE: Duration = Duration::from_secs(90);
/// Minimum time after an outage before an idle timeout expires.
pub const OUTAGE_FREEZE: Duration = Duration::from_secs(60);
/// Restarts are counted within this window.
pub const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// Number of losses within the window that a session survives.
pub const RESTART_BUDGET: usize = 3;
/// Number of consecutive failed warm-ups after which the session fails.
pub const WAKE_BUDGET: u32 = 5;
/// Maximum number of individually revoked tokens of a session. The next
/// revocation revokes all tokens issued so far, because every route carries the
/// list.
pub const MAX_REVOKED_TOKENS: usize = 128;
/// Maximum number of versions of clients for which a session records advice.
pub const MAX_ADVISED_CLIENTS: usize = 8;
/// Interval of reconciliation while compute is being created or its release is not yet
/// confirmed.
pub const RECHECK: Duration = Duration::from_secs(2);
/// Maximum interval of reconciliation during a slow release.
pub const MAX_RECHECK: Duration = Duration::from_secs(60);
/// Interval of reconciliation while a proxy has not reported since an outage.
pub const FROZEN_RECHECK: Duration = Duration::from_secs(60);

/// Cause of a compute failure, for two groups of readers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    /// For all who may see the session; contains no address, path or log line.
    pub text: String,
    /// For those who may act as the session, such as the last log lines of the
    /// engine.
    pub detail: String,
}

impl Cause {
    /// Longer details are cut at the beginning, because the end has the cause.
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

/// State of the compute of one session generation, as observed by its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// It does not exist and no remains of it exist.
    Missing,
    /// It exists and is not ready yet.
    Starting {
        /// What it waits for.
        cause: Cause,
    },
    /// It answered the readiness probe.
    Ready {
        /// Route to the compute.
        route: Route,
    },
    /// It exists but will not become ready without intervention.
    Failed {
        /// The cause.
        cause: Cause,
        /// Whether a retry cannot succeed.
        permanent: bool,
    },
}

/// A requested change of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A waking call, or WarmSession.
    Wake,
    /// Close the session.
    Close {
        /// One of the closing reasons.
        reason: ChangeReason,
    },
    /// Move `expires_at`.
    Extend {
        /// The new time.
        expires_at: Timestamp,
    },
    /// Suspend the idle timeouts.
    KeepAlive {
        /// End of the suspension.
        until: Timestamp,
    },
    /// Change name or labels.
    Update {
        /// The new name; `Some(None)` removes it.
        name: Option<Option<String>>,
        /// The new labels; they replace all old ones.
        labels: Option<BTreeMap<String, String>>,
    },
    /// The oldest Spark session on shared compute was released to make room;
    /// cached bindings of the session must be read again.
    ReleaseSparkSession,
    /// A client is newer than the engine by a minor version.
    AdviseClient {
        /// The client's version.
        version: String,
        /// The text of the event.
        advice: String,
    },
    /// Revoke every token issued so far.
    RevokeTokens,
    /// Revoke one token.
    RevokeToken {
        /// The token.
        id: TokenId,
        /// Time after which no verifier accepts the token.
        until: Timestamp,
    },
}

/// Work to start after the transition is committed; idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Create compute for this generation, unless it exists.
    Ensure {
        /// The generation.
        generation: u64,
    },
    /// Release compute of this generation and all before it.
    Release {
        /// The last generation to release.
        up_to: u64,
    },
}

/// A transition to commit, and its effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The next record; replaces the record of the previous version.
    pub session: Session,
    /// The history entry.
    pub record: EventRecord,
    /// Effects to run after the commit.
    pub effects: Vec<Effect>,
}

impl Transition {
    /// Whether an idle timeout caused the transition. Then it may only be
    /// committed if no call is in flight and no activity occurred since the
    /// decision.
    pub const fn by_idle_timeout(&self) -> bool {
        match self.session.reason {
            ChangeReason::IdleTimeout | ChangeReason::IdleReleased | ChangeReason::IdleClose => true,
            ChangeReason::Created
            | ChangeReason::ComputeReady
            | ChangeReason::ComputeWaiting
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
            | ChangeReason::ClientNewer
            | ChangeReason::TokensRevoked => false,
        }
    }
}

/// Result of one reconciliation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// A transition to commit first.
    pub transition: Option<Transition>,
    /// Work of an earlier commit that is not yet confirmed.
    pub effects: Vec<Effect>,
    /// Time of the next reconciliation; `None` means never.
    pub due: Option<Timestamp>,
}

/// Reason why a session rejects an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The session is closed or failed and cannot change.
    #[error("the session is {}", .0.as_str())]
    Terminal(Status),
    /// The last warm-up failed; the next one may begin at `until`.
    #[error("the last warm-up failed; the next one may begin at {until}")]
    BackingOff {
        /// Earliest start of the next warm-up.
        until: Timestamp,
    },
    /// A time outside its bounds.
    #[error("{field} must be between {min} and {max}")]
    OutOfBounds {
        /// The field of the request.
        field: &'static str,
        /// The earliest time.
        min: Timestamp,
        /// The latest time.
        max: Timestamp,
    },
}

/// Parameters of a new session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// The session's id.
    pub id: SessionId,
    /// The tenant.
    pub org: OrgId,
    /// The creator.
    pub owner: PrincipalId,
    /// Display name.
    pub name: Option<String>,
    /// One of the creator's teams.
    pub team: Option<String>,
    /// Free key-value pairs.
    pub labels: BTreeMap<String, String>,
    /// The cluster.
    pub cluster: ClusterName,
    /// The default catalog.
    pub catalog: Option<CatalogName>,
    /// The profile of its compute.
    pub profile: Option<ProfileName>,
    /// The resolved policy.
    pub policy: SessionPolicy,
}
