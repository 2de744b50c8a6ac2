//! The session record.

use crate::id::{CatalogName, ClusterName, OrgId, ProfileName, SessionId, SessionKey, TokenId};
use crate::policy::SessionPolicy;
use crate::principal::{Actor, PrincipalId};
use crate::reason::ChangeReason;
use crate::route::Route;
use crate::time::{Timestamp, millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Time between the withdrawal of an idle session's route and the release of its
/// compute: two report intervals, so that every proxy can report a call.
pub const RELEASE_GRACE: Duration = Duration::from_secs(10);
/// Time between the announcement of a closing by a deadline and the closing.
pub const CLOSING_SOON: Duration = Duration::from_secs(300);

/// Status of a session, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Compute is being created.
    Pending,
    /// Compute is ready.
    Active,
    /// Unused; the next query wakes the session.
    Idle,
    /// Ended by request or by a deadline.
    Closed,
    /// Ended by a failure.
    Failed,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Active,
        Self::Idle,
        Self::Closed,
        Self::Failed,
    ];

    /// Spelling of the status in APIs and indexes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }

    /// Whether the status is final.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Closed | Self::Failed)
    }
}

/// Finer state within a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Pending: compute is created for the first time.
    Provisioning,
    /// Pending: an idle session is woken.
    Warming,
    /// Pending: lost compute is replaced.
    Restarting,
    /// Active: ready for calls.
    Ready,
    /// Idle: compute is kept.
    Kept,
    /// Idle: the route is withdrawn, compute will be released.
    Releasing,
    /// Idle: no compute.
    Released,
    /// Closed or failed.
    Ended,
}

impl Phase {
    /// Spelling of the phase in APIs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Warming => "warming",
            Self::Restarting => "restarting",
            Self::Ready => "ready",
            Self::Kept => "kept",
            Self::Releasing => "releasing",
            Self::Released => "released",
            Self::Ended => "ended",
        }
    }
}

/// Purpose of the compute that is being created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Making {
    /// First compute of the session.
    Provisioning,
    /// New compute for an idle session that was called.
    Warming,
    /// Replacement of lost compute.
    Restarting,
}

/// State with the data of each state, so that no other field can contradict it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum State {
    /// Compute of the current generation is being created.
    Pending {
        /// Purpose of the compute.
        making: Making,
        /// Time by which the compute must be ready.
        deadline: Timestamp,
    },
    /// Compute of the current generation serves calls at `route`.
    Active {
        /// Route to the compute.
        route: Route,
    },
    /// Idle with compute kept.
    IdleKept {
        /// Route to the compute.
        route: Route,
    },
    /// Idle, route withdrawn; compute is released at `release_at` unless a
    /// proxy reports a call before.
    IdleReleasing {
        /// Route to the compute, which still runs.
        route: Route,
        /// Time of the release.
        release_at: Timestamp,
    },
    /// Idle without compute.
    IdleReleased {
        /// Earliest start of a warm-up (back-off after failures).
        wake_after: Timestamp,
    },
    /// Ended by request or by a deadline.
    Closed,
    /// Ended by a failure.
    Failed,
}

impl State {
    /// The public status.
    pub const fn status(&self) -> Status {
        match self {
            Self::Pending { .. } => Status::Pending,
            Self::Active { .. } => Status::Active,
            Self::IdleKept { .. } | Self::IdleReleasing { .. } | Self::IdleReleased { .. } => Status::Idle,
            Self::Closed => Status::Closed,
            Self::Failed => Status::Failed,
        }
    }

    /// The finer state.
    pub const fn phase(&self) -> Phase {
        match self {
            Self::Pending {
                making: Making::Provisioning,
                ..
            } => Phase::Provisioning,
            Self::Pending {
                making: Making::Warming,
                ..
            } => Phase::Warming,
            Self::Pending {
                making: Making::Restarting,
                ..
            } => Phase::Restarting,
            Self::Active { .. } => Phase::Ready,
            Self::IdleKept { .. } => Phase::Kept,
            Self::IdleReleasing { .. } => Phase::Releasing,
            Self::IdleReleased { .. } => Phase::Released,
            Self::Closed | Self::Failed => Phase::Ended,
        }
    }

    /// Whether the session has compute that became ready.
    pub const fn has_compute(&self) -> bool {
        match self {
            Self::Active { .. } | Self::IdleKept { .. } | Self::IdleReleasing { .. } => true,
            Self::Pending { .. } | Self::IdleReleased { .. } | Self::Closed | Self::Failed => false,
        }
    }

    /// Route to the compute, if the session has compute.
    pub const fn route(&self) -> Option<&Route> {
        match self {
            Self::Active { route } | Self::IdleKept { route } | Self::IdleReleasing { route, .. } => {
                Some(route)
            }
            Self::Pending { .. } | Self::IdleReleased { .. } | Self::Closed | Self::Failed => None,
        }
    }

    /// Route for proxies: only while active.
    pub const fn published_route(&self) -> Option<&Route> {
        match self {
            Self::Active { route } => Some(route),
            Self::Pending { .. }
            | Self::IdleKept { .. }
            | Self::IdleReleasing { .. }
            | Self::IdleReleased { .. }
            | Self::Closed
            | Self::Failed => None,
        }
    }
}

/// The record of one session. Only [`crate::machine`] changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Permanent id.
    pub id: SessionId,
    /// The tenant.
    pub org: OrgId,
    /// The principal that created it.
    pub owner: PrincipalId,
    /// Display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One of the creator's teams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Free key-value pairs for filtering.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The cluster.
    pub cluster: ClusterName,
    /// The default catalog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<CatalogName>,
    /// The profile of its compute; `None` on clusters without profiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileName>,
    /// Timeouts and deadlines.
    pub policy: SessionPolicy,
    /// The state.
    pub state: State,
    /// Reason of the last change.
    pub reason: ChangeReason,
    /// The reason as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status_message: String,
    /// Details, such as the last log lines of the engine, for those who may act
    /// as the session.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status_detail: String,
    /// Increases with every change of state or route; writes are conditional on it.
    pub version: u64,
    /// Increases only when compute is replaced; starts at 1.
    pub generation: u64,
    /// Fencing number of the manager that last decided on an observation of the
    /// compute. A manager with a lower number has lost its lease.
    #[serde(default, skip_serializing_if = "is_unfenced")]
    pub compute_fence: u64,
    /// Tokens of a lower epoch are revoked; starts at 1.
    pub token_epoch: u64,
    /// Time of creation.
    pub created_at: Timestamp,
    /// Time at which it last became active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_at: Option<Timestamp>,
    /// Start of the current idle period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Timestamp>,
    /// Time at which it was closed or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// Latest time of closing.
    pub expires_at: Timestamp,
    /// End of the keep-alive: no idle timeout expires before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive_until: Option<Timestamp>,
    /// Times of compute losses within the last ten minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<Timestamp>,
    /// Time at which the generation last rose: compute was lost, or an idle
    /// session without compute was woken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_at: Option<Timestamp>,
    /// Individually revoked tokens, each with the time until which a verifier
    /// could accept it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revoked_tokens: BTreeMap<TokenId, Timestamp>,
    /// The closing time that was last announced (`CLOSING_SOON`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing_announced: Option<Timestamp>,
    /// Versions of clients for which advice was recorded (`CLIENT_NEWER`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advised_clients: Vec<String>,
    /// Time since which the current compute is available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_since: Option<Timestamp>,
    /// Total time of available compute before that, over all generations.
    #[serde(default, skip_serializing_if = "Duration::is_zero", with = "millis")]
    pub warm_before: Duration,
    /// Number of consecutive failed warm-ups.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_wakes: u32,
    /// The last recorded cause why the pending compute is not ready yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<LastWaiting>,
}

/// When causes of waiting were recorded during one creation of compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWaiting {
    /// Time of the last record.
    pub at: Timestamp,
    /// Number of records.
    #[serde(rename = "n")]
    pub count: u32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_unfenced(value: &u64) -> bool {
    *value == 0
}

impl Session {
    /// Id together with the organization.
    pub fn key(&self) -> SessionKey {
        SessionKey {
            org: self.org.clone(),
            id: self.id.clone(),
        }
    }

    /// The public status.
    pub const fn status(&self) -> Status {
        self.state.status()
    }

    /// Time at which the idle timeout expires without another call, while
    /// active.
    pub fn idle_at(&self, last_activity_at: Timestamp) -> Option<Timestamp> {
        match self.state {
            State::Active { .. } => {
                let begun = last_activity_at.max(self.active_at.unwrap_or(self.created_at));
                let silent = begun.after(self.policy.idle_timeout);
                Some(self.keep_alive_until.map_or(silent, |until| until.max(silent)))
            }
            State::Pending { .. }
            | State::IdleKept { .. }
            | State::IdleReleasing { .. }
            | State::IdleReleased { .. }
            | State::Closed
            | State::Failed => None,
        }
    }

    /// Total time for which the session had compute that was ready.
    pub fn warm(&self, now: Timestamp) -> Duration {
        let present = self.warm_since.map_or(Duration::ZERO, |since| now.since(since));
        self.warm_before.saturating_add(present)
    }

    /// Time at which to announce the closing, and time of the closing. `None`
    /// if it was announced, or if the deadline is too short for an
    /// announcement.
    pub fn closing_soon(&self) -> Option<(Timestamp, Timestamp)> {
        let closes_at = self.closes_at()?;
        let by_lifetime = closes_at == self.expires_at;
        let begun = self
            .idle_since
            .filter(|_| !by_lifetime)
            .unwrap_or(self.created_at);
        let told = self.closing_announced == Some(closes_at);
        (!told && closes_at.since(begun) > CLOSING_SOON).then(|| (closes_at.before(CLOSING_SOON), closes_at))
    }

    /// Time of closing if no event occurs, while live. An idle session stays
    /// for at least [`RELEASE_GRACE`], because a call that no proxy has
    /// reported yet may be in flight.
    pub fn closes_at(&self) -> Option<Timestamp> {
        if self.status().is_terminal() {
            return None;
        }
        let by_idle = self.idle_since.map(|since| {
            let at = since.after(self.policy.close_after_idle.max(RELEASE_GRACE));
            self.keep_alive_until.map_or(at, |until| until.max(at))
        });
        Some(by_idle.map_or(self.expires_at, |at| at.min(self.expires_at)))
    }
}

/// One change, as recorded in history and the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Version after this change.
    #[serde(rename = "v")]
    pub version: u64,
    /// Time of the change.
    pub at: Timestamp,
    /// The status before; `None` for the creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Status>,
    /// The status after.
    pub to: Status,
    /// The phase after.
    pub phase: Phase,
    /// The generation after.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Reason of the change.
    pub reason: ChangeReason,
    /// The actor.
    #[serde(rename = "by")]
    pub actor: Actor,
    /// The reason as text, at most [`EventRecord::MESSAGE_BYTES`].
    #[serde(default, skip_serializing_if = "String::is_empty", rename = "msg")]
    pub message: String,
    /// Client IP of the actor, where known; for the audit trail only, not
    /// stored elsewhere.
    #[serde(skip)]
    pub address: String,
}

impl EventRecord {
    /// Maximum length of a message in the history; the record keeps the whole
    /// message.
    pub const MESSAGE_BYTES: usize = 128;
}
