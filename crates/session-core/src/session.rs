//! The session record.

use crate::id::{CatalogName, ClusterName, OrgId, SessionId, SessionKey, TokenId};
use crate::policy::SessionPolicy;
use crate::principal::{Actor, PrincipalId};
use crate::reason::ChangeReason;
use crate::route::Route;
use crate::time::{Timestamp, millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Idle compute is given back after this much silence since its route was
/// withdrawn: two report intervals, so that every proxy had its say.
pub const RELEASE_GRACE: Duration = Duration::from_secs(10);
/// That a clock will close a session is announced so long before.
pub const CLOSING_SOON: Duration = Duration::from_secs(300);

/// Where a session stands, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Compute is being made ready.
    Pending,
    /// Compute answers.
    Active,
    /// Unused; the next query wakes it.
    Idle,
    /// Over, as asked or by a clock.
    Closed,
    /// Over, because it could not go on.
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

    /// The status as APIs and indexes spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }

    /// Will it never change again?
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Closed | Self::Failed)
    }
}

/// The finer state within a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Pending: compute is made for the first time.
    Provisioning,
    /// Pending: an idle session wakes.
    Warming,
    /// Pending: lost compute is replaced.
    Restarting,
    /// Active: ready for calls.
    Ready,
    /// Idle: compute is kept.
    Kept,
    /// Idle: the route is withdrawn, compute is about to be given back.
    Releasing,
    /// Idle: no compute.
    Released,
    /// Closed or failed.
    Ended,
}

impl Phase {
    /// The phase as APIs spell it.
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

/// Why compute is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Making {
    /// For the first time.
    Provisioning,
    /// Again, for an idle session that was called.
    Warming,
    /// Again, because the last one was lost.
    Restarting,
}

/// The state and what belongs to it, so that no field can contradict it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum State {
    /// Compute of the current generation is being made ready.
    Pending {
        /// Why.
        making: Making,
        /// Ready by then, or not at all.
        deadline: Timestamp,
    },
    /// Compute of the current generation answers at `route`.
    Active {
        /// Where.
        route: Route,
    },
    /// Idle with compute kept.
    IdleKept {
        /// Where it answers.
        route: Route,
    },
    /// Idle, route withdrawn; compute goes back at `release_at` unless a
    /// proxy reports a call before.
    IdleReleasing {
        /// Where it still answers.
        route: Route,
        /// When it is given back.
        release_at: Timestamp,
    },
    /// Idle without compute.
    IdleReleased {
        /// No warm-up begins before then (back-off after failures).
        wake_after: Timestamp,
    },
    /// Over, as asked or by a clock.
    Closed,
    /// Over, because it could not go on.
    Failed,
}

impl State {
    /// The status users see.
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

    /// Does compute that answered belong to it now?
    pub const fn has_compute(&self) -> bool {
        match self {
            Self::Active { .. } | Self::IdleKept { .. } | Self::IdleReleasing { .. } => true,
            Self::Pending { .. } | Self::IdleReleased { .. } | Self::Closed | Self::Failed => false,
        }
    }

    /// Where its compute is, while it has some.
    pub const fn route(&self) -> Option<&Route> {
        match self {
            Self::Active { route } | Self::IdleKept { route } | Self::IdleReleasing { route, .. } => {
                Some(route)
            }
            Self::Pending { .. } | Self::IdleReleased { .. } | Self::Closed | Self::Failed => None,
        }
    }

    /// The route that may be given to a proxy: only while active.
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

/// One session. Only [`crate::machine`] changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its name for ever.
    pub id: SessionId,
    /// The tenant.
    pub org: OrgId,
    /// Who created it.
    pub owner: PrincipalId,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One of the creator's teams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Free key-value pairs for filtering.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where it runs.
    pub cluster: ClusterName,
    /// Its default catalog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<CatalogName>,
    /// Its clocks.
    pub policy: SessionPolicy,
    /// Where it stands.
    pub state: State,
    /// Why it stands there.
    pub reason: ChangeReason,
    /// The same in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status_message: String,
    /// The engine's last words and such, for those who may act as the session.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status_detail: String,
    /// Rises with every change of state or route; writes are conditional on it.
    pub version: u64,
    /// Rises only when compute is really replaced; from 1.
    pub generation: u64,
    /// The fencing number of the manager that last decided something from what
    /// it saw of the compute. One with a lower number has lost its lease.
    #[serde(default, skip_serializing_if = "is_unfenced")]
    pub compute_fence: u64,
    /// Tokens of a lower epoch are revoked; from 1.
    pub token_epoch: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last became active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_at: Option<Timestamp>,
    /// Since when it is idle, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Timestamp>,
    /// When it was closed or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// Closed then at the latest.
    pub expires_at: Timestamp,
    /// No idle clock fires before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive_until: Option<Timestamp>,
    /// When compute was lost, within the last ten minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<Timestamp>,
    /// When its generation last rose: compute was lost, or an idle session
    /// without compute was woken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_at: Option<Timestamp>,
    /// Single tokens taken back, each until nobody can accept it any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revoked_tokens: BTreeMap<TokenId, Timestamp>,
    /// The moment of closing that was announced last (`CLOSING_SOON`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing_announced: Option<Timestamp>,
    /// Since when the present compute has been there, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_since: Option<Timestamp>,
    /// How long compute was there before that, all generations together.
    #[serde(default, skip_serializing_if = "Duration::is_zero", with = "millis")]
    pub warm_before: Duration,
    /// Warm-ups that failed in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_wakes: u32,
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
    /// Its id together with whose it is.
    pub fn key(&self) -> SessionKey {
        SessionKey {
            org: self.org.clone(),
            id: self.id.clone(),
        }
    }

    /// The status users see.
    pub const fn status(&self) -> Status {
        self.state.status()
    }

    /// When its idle clock runs out if nothing more happens, while active.
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

    /// How long it has had compute that answered, in all.
    pub fn warm(&self, now: Timestamp) -> Duration {
        let present = self.warm_since.map_or(Duration::ZERO, |since| now.since(since));
        self.warm_before.saturating_add(present)
    }

    /// When it is to be announced that it will be closed, and when that will
    /// be. None if it was announced, or if the clock is too short for it.
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

    /// When it will be closed if nothing more happens, while live. An idle
    /// session stays for [`RELEASE_GRACE`] at least: a call may be under way
    /// that no proxy has reported yet.
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

/// One change, as history and the audit trail keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The version this change made.
    #[serde(rename = "v")]
    pub version: u64,
    /// When.
    pub at: Timestamp,
    /// The status before; none for the creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Status>,
    /// The status after.
    pub to: Status,
    /// The phase after.
    pub phase: Phase,
    /// The generation after.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Why.
    pub reason: ChangeReason,
    /// Who.
    #[serde(rename = "by")]
    pub actor: Actor,
    /// The cause in words, at most [`EventRecord::MESSAGE_BYTES`].
    #[serde(default, skip_serializing_if = "String::is_empty", rename = "msg")]
    pub message: String,
    /// From which address its actor called, where that is known: for the audit
    /// trail, and kept nowhere else.
    #[serde(skip)]
    pub address: String,
}

impl EventRecord {
    /// Longer messages are cut in the history; the record keeps them whole.
    pub const MESSAGE_BYTES: usize = 128;
}
