//! The status machine: the only code that decides what a session becomes.
//!
//! [`create`] makes a session, [`apply`] carries out what somebody asked for,
//! [`step`] looks at a session because it is due. All are pure: the caller
//! commits the returned record on the condition that the stored version is
//! still the old one, and only then runs the effects. Effects only start work
//! and are safe to run twice, so a crash between any two lines is repaired by
//! looking again.

use crate::activity::Activity;
use crate::id::{CatalogName, ClusterName, OrgId, SessionId, TokenId};
use crate::policy::{IdlePolicy, LONGEST_LIFETIME, SessionPolicy};
use crate::principal::{Actor, PrincipalId};
use crate::reason::ChangeReason;
use crate::route::Route;
use crate::session::{EventRecord, Making, Session, State, Status};
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
/// Idle compute is given back after this much silence since its route was
/// withdrawn: two report intervals, so that every proxy had its say.
pub const RELEASE_GRACE: Duration = Duration::from_secs(10);
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
const WAKE_BACKOFF_LEAST: Duration = Duration::from_secs(5);
const WAKE_BACKOFF_MOST: Duration = Duration::from_secs(120);
/// Tripling reaches the most at the last wait that the budget has: 5, 15, 45,
/// 120 s; doubling would end at 40 s.
const WAKE_BACKOFF_FACTOR: u32 = 3;

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

/// A new session: pending, with compute to be made.
pub fn create(new: NewSession, now: Timestamp) -> Transition {
    let actor = Actor::Principal(new.owner.clone());
    let session = Session {
        state: State::Pending {
            making: Making::Provisioning,
            deadline: now.after(new.policy.provisioning_deadline),
        },
        expires_at: now.after(new.policy.max_lifetime),
        id: new.id,
        org: new.org,
        owner: new.owner,
        name: new.name,
        team: new.team,
        labels: new.labels,
        cluster: new.cluster,
        catalog: new.catalog,
        policy: new.policy,
        reason: ChangeReason::Created,
        status_message: String::new(),
        status_detail: String::new(),
        version: 1,
        generation: 1,
        token_epoch: 1,
        created_at: now,
        active_at: None,
        idle_since: None,
        closed_at: None,
        keep_alive_until: None,
        restarts: Vec::new(),
        revoked_tokens: BTreeMap::new(),
        failed_wakes: 0,
    };
    Transition {
        record: record_of(None, &session, actor, now),
        effects: vec![Effect::Ensure { generation: 1 }],
        session,
    }
}

/// Carries out `event`. `Ok(None)` means that it is so already.
///
/// # Errors
/// [`Refusal`] when the session cannot do what was asked.
pub fn apply(
    session: &Session,
    event: &Event,
    actor: &Actor,
    now: Timestamp,
) -> Result<Option<Transition>, Refusal> {
    if let (Event::Close { .. }, true) = (event, session.status().is_terminal()) {
        return Ok(None);
    }
    if session.status().is_terminal() {
        return Err(Refusal::Terminal(session.status()));
    }
    let change = Change::of(session, actor.clone(), now);
    match event {
        Event::Wake => wake(session, change),
        Event::Close { reason } => Ok(Some(change.end(State::Closed, *reason, Cause::default()))),
        Event::Extend { expires_at } => {
            let max = session.created_at.after(LONGEST_LIFETIME);
            if *expires_at <= now || *expires_at > max {
                return Err(Refusal::OutOfBounds {
                    field: "expires_at",
                    min: now,
                    max,
                });
            }
            Ok((*expires_at != session.expires_at)
                .then(|| change.update(|session| session.expires_at = *expires_at)))
        }
        Event::KeepAlive { until } => {
            if *until > session.expires_at {
                return Err(Refusal::OutOfBounds {
                    field: "until",
                    min: now,
                    max: session.expires_at,
                });
            }
            if Some(*until) == session.keep_alive_until {
                return Ok(None);
            }
            let mut change = change;
            change.next.keep_alive_until = Some(*until);
            // What it is to be kept alive for may be running there still.
            if let State::IdleReleasing { route, .. } = &session.state
                && *until > now
            {
                return Ok(Some(change.activate(route.clone(), ChangeReason::Updated)));
            }
            Ok(Some(change.keep_state(ChangeReason::Updated)))
        }
        Event::Update { name, labels } => {
            let mut next = session.clone();
            if let Some(name) = name {
                next.name.clone_from(name);
            }
            if let Some(labels) = labels {
                next.labels.clone_from(labels);
            }
            Ok((next != *session).then(|| {
                change.update(|session| {
                    session.name = next.name;
                    session.labels = next.labels;
                })
            }))
        }
        Event::ReleaseSparkSession => Ok(Some(change.keep_state(ChangeReason::SparkSessionReleased))),
        Event::RevokeTokens => {
            let mut change = change;
            change.next.token_epoch += 1;
            change.next.revoked_tokens.clear();
            Ok(Some(change.keep_state(ChangeReason::TokensRevoked)))
        }
        Event::RevokeToken { id, until } => {
            if session.revoked_tokens.contains_key(id) {
                return Ok(None);
            }
            let mut change = change;
            change.next.revoked_tokens.retain(|_, until| *until > now);
            if change.next.revoked_tokens.len() < MOST_REVOKED {
                change.next.revoked_tokens.insert(id.clone(), *until);
            } else {
                change.next.token_epoch += 1;
                change.next.revoked_tokens.clear();
            }
            Ok(Some(change.keep_state(ChangeReason::TokensRevoked)))
        }
    }
}

fn wake(session: &Session, mut change: Change<'_>) -> Result<Option<Transition>, Refusal> {
    match &session.state {
        State::Pending { .. } | State::Active { .. } => Ok(None),
        State::IdleKept { route } | State::IdleReleasing { route, .. } => {
            Ok(Some(change.activate(route.clone(), ChangeReason::Woken)))
        }
        State::IdleReleased { wake_after } if change.now < *wake_after => {
            Err(Refusal::BackingOff { until: *wake_after })
        }
        State::IdleReleased { .. } => {
            change.next.generation += 1;
            Ok(Some(change.make(
                Making::Warming,
                ChangeReason::Woken,
                Cause::default(),
            )))
        }
        State::Closed | State::Failed => Err(Refusal::Terminal(session.status())),
    }
}

/// Looks at a session because it is due or something was heard of it.
/// `observation` is what its provider sees of the current generation's
/// compute; none when the provider could not be asked, which decides nothing.
pub fn step(
    session: &Session,
    observation: Option<&Observation>,
    activity: Activity,
    now: Timestamp,
) -> Step {
    let change = || Change::of(session, Actor::System, now);
    let gone = matches!(observation, Some(Observation::Missing));
    let broken = lost_cause(observation).filter(|_| session.policy.dedicated);

    if session.status().is_terminal() {
        return if gone {
            Step::done()
        } else {
            Step::release(session, now)
        };
    }
    if now >= session.expires_at {
        return Step::commit(
            change().end(State::Closed, ChangeReason::MaxLifetime, Cause::default()),
            activity,
            now,
        );
    }
    let transition = match &session.state {
        State::Pending { making, deadline } => match observation {
            Some(Observation::Ready { route }) => {
                Some(change().activate(route.clone(), ChangeReason::ComputeReady))
            }
            Some(Observation::Failed {
                cause,
                permanent: true,
            }) => Some(change().not_made(*making, cause.clone(), true)),
            Some(_) | None if now >= *deadline => {
                Some(change().not_made(*making, timeout_cause(session, observation), false))
            }
            Some(Observation::Missing | Observation::Failed { .. }) => {
                return Step {
                    transition: None,
                    effects: vec![Effect::Ensure {
                        generation: session.generation,
                    }],
                    due: next_due(session, activity, now),
                };
            }
            Some(Observation::Starting { .. }) | None => None,
        },
        State::Active { .. } => match (broken, activity) {
            (Some(cause), _) => Some(change().replace_lost(cause)),
            (None, Activity::Quiet { last_activity_at })
                if session.idle_at(last_activity_at).is_some_and(|at| now >= at) =>
            {
                Some(change().idle())
            }
            (None, _) => None,
        },
        State::IdleKept { route } | State::IdleReleasing { route, .. } => {
            if let Some(cause) = broken {
                Some(change().idle_without_compute(ChangeReason::ComputeLost, cause, Duration::ZERO))
            } else if used_since(session, activity) {
                Some(change().activate(route.clone(), ChangeReason::Activity))
            } else if idle_is_over(session, activity, now) {
                Some(change().end(State::Closed, ChangeReason::IdleClose, Cause::default()))
            } else if release_is_due(&session.state, activity, now) {
                Some(change().idle_without_compute(
                    ChangeReason::IdleReleased,
                    Cause::default(),
                    Duration::ZERO,
                ))
            } else {
                None
            }
        }
        State::IdleReleased { .. } => {
            if idle_is_over(session, activity, now) {
                Some(change().end(State::Closed, ChangeReason::IdleClose, Cause::default()))
            } else if gone {
                None
            } else {
                return Step::release(session, now);
            }
        }
        State::Closed | State::Failed => None,
    };
    match transition {
        Some(transition) => Step::commit(transition, activity, now),
        None => Step {
            transition: None,
            effects: Vec::new(),
            due: next_due(session, activity, now),
        },
    }
}

/// When somebody must look at the session next, if nothing happens before.
pub fn next_due(session: &Session, activity: Activity, now: Timestamp) -> Option<Timestamp> {
    let idle_clock = |quiet_at: Option<Timestamp>| match activity {
        Activity::Unknown => Some(now.after(FROZEN_RECHECK)),
        Activity::Busy => Some(now.after(session.policy.idle_timeout)),
        Activity::Quiet { .. } => quiet_at,
    };
    let own = match (&session.state, activity) {
        (State::Pending { deadline, .. }, _) => Some((*deadline).min(now.after(RECHECK))),
        (State::Active { .. }, Activity::Quiet { last_activity_at }) => session.idle_at(last_activity_at),
        (State::Active { .. }, Activity::Unknown | Activity::Busy) => idle_clock(None),
        (State::IdleReleasing { release_at, .. }, _) => idle_clock(Some(*release_at)),
        (State::IdleKept { .. } | State::IdleReleased { .. }, _) => idle_clock(session.closes_at()),
        (State::Closed | State::Failed, _) => return Some(now.after(RECHECK)),
    };
    Some(own.map_or(session.expires_at, |at| at.min(session.expires_at)))
}

fn lost_cause(observation: Option<&Observation>) -> Option<Cause> {
    match observation {
        Some(Observation::Missing) => Some("its compute is gone".into()),
        Some(Observation::Failed { cause, .. }) => Some(cause.clone()),
        Some(Observation::Starting { .. } | Observation::Ready { .. }) | None => None,
    }
}

fn timeout_cause(session: &Session, observation: Option<&Observation>) -> Cause {
    let allowed = session.policy.provisioning_deadline.as_secs();
    let last = match observation {
        Some(Observation::Starting { detail }) => detail.as_str(),
        Some(Observation::Failed { cause, .. }) => cause.text.as_str(),
        Some(Observation::Missing) => "it could not be started",
        Some(Observation::Ready { .. }) | None => "its state is unknown",
    };
    let detail = match observation {
        Some(Observation::Failed { cause, .. }) => cause.detail.clone(),
        Some(Observation::Starting { .. } | Observation::Ready { .. } | Observation::Missing) | None => {
            String::new()
        }
    };
    Cause {
        text: format!("compute was not ready within {allowed} s: {last}"),
        detail,
    }
}

/// Is there a call, or was there one that the decision to idle did not know of?
/// A report that came late wins over it.
fn used_since(session: &Session, activity: Activity) -> bool {
    match activity {
        Activity::Busy => true,
        Activity::Quiet { last_activity_at } => session
            .idle_since
            .is_some_and(|since| last_activity_at.after(session.policy.idle_timeout) > since),
        Activity::Unknown => false,
    }
}

fn idle_is_over(session: &Session, activity: Activity, now: Timestamp) -> bool {
    matches!(activity, Activity::Quiet { .. }) && session.closes_at().is_some_and(|at| now >= at)
}

fn release_is_due(state: &State, activity: Activity, now: Timestamp) -> bool {
    matches!((state, activity), (State::IdleReleasing { release_at, .. }, Activity::Quiet { .. }) if now >= *release_at)
}

fn wake_backoff(failed_wakes: u32) -> Duration {
    WAKE_BACKOFF_LEAST
        .saturating_mul(WAKE_BACKOFF_FACTOR.saturating_pow(failed_wakes.saturating_sub(1)))
        .min(WAKE_BACKOFF_MOST)
}

fn record_of(from: Option<Status>, session: &Session, actor: Actor, at: Timestamp) -> EventRecord {
    let mut message = session.status_message.clone();
    if message.len() > EventRecord::MESSAGE_BYTES {
        let cut = (0..=EventRecord::MESSAGE_BYTES)
            .rev()
            .find(|&i| message.is_char_boundary(i))
            .unwrap_or(0);
        message.truncate(cut);
    }
    EventRecord {
        version: session.version,
        at,
        from,
        to: session.status(),
        phase: session.state.phase(),
        generation: session.generation,
        reason: session.reason,
        actor,
        message,
    }
}

/// A transition in the making.
struct Change<'a> {
    before: &'a Session,
    next: Session,
    actor: Actor,
    now: Timestamp,
}

impl<'a> Change<'a> {
    fn of(before: &'a Session, actor: Actor, now: Timestamp) -> Self {
        let mut next = before.clone();
        next.version += 1;
        Self {
            before,
            next,
            actor,
            now,
        }
    }

    fn done(mut self, reason: ChangeReason, cause: Cause, effects: Vec<Effect>) -> Transition {
        self.next.reason = reason;
        let mut detail = cause.detail;
        if detail.len() > Cause::DETAIL_BYTES {
            let from = detail.len() - Cause::DETAIL_BYTES;
            let from = (from..detail.len())
                .find(|&at| detail.is_char_boundary(at))
                .unwrap_or(detail.len());
            detail.drain(..from);
        }
        self.next.status_message = cause.text;
        self.next.status_detail = detail;
        Transition {
            record: record_of(Some(self.before.status()), &self.next, self.actor, self.now),
            session: self.next,
            effects,
        }
    }

    fn keep_state(self, reason: ChangeReason) -> Transition {
        let cause = Cause {
            text: self.before.status_message.clone(),
            detail: self.before.status_detail.clone(),
        };
        self.done(reason, cause, Vec::new())
    }

    fn update(mut self, edit: impl FnOnce(&mut Session)) -> Transition {
        edit(&mut self.next);
        self.keep_state(ChangeReason::Updated)
    }

    fn activate(mut self, route: Route, reason: ChangeReason) -> Transition {
        self.next.state = State::Active { route };
        self.next.active_at = Some(self.now);
        self.next.idle_since = None;
        self.next.failed_wakes = 0;
        self.done(reason, Cause::default(), Vec::new())
    }

    /// Compute of `next.generation` is to be made.
    fn make(mut self, making: Making, reason: ChangeReason, cause: Cause) -> Transition {
        let generation = self.next.generation;
        let deadline = self.now.after(self.next.policy.provisioning_deadline);
        self.next.state = State::Pending { making, deadline };
        self.next.idle_since = None;
        let mut effects = vec![Effect::Ensure { generation }];
        if generation > 1 {
            effects.push(Effect::Release {
                up_to: generation - 1,
            });
        }
        self.done(reason, cause, effects)
    }

    fn not_made(mut self, making: Making, cause: Cause, permanent: bool) -> Transition {
        match making {
            Making::Provisioning => {
                let reason = if permanent {
                    ChangeReason::ProvisioningFailed
                } else {
                    ChangeReason::ProvisioningTimeout
                };
                self.end(State::Failed, reason, cause)
            }
            Making::Warming => {
                self.next.failed_wakes += 1;
                let failed = self.next.failed_wakes;
                if permanent || failed >= WAKE_BUDGET {
                    self.end(State::Failed, ChangeReason::WarmBudgetSpent, cause)
                } else {
                    self.idle_without_compute(ChangeReason::WarmFailed, cause, wake_backoff(failed))
                }
            }
            Making::Restarting => self.replace_lost(cause),
        }
    }

    fn replace_lost(mut self, cause: Cause) -> Transition {
        let window_start = self.now.before(RESTART_WINDOW);
        self.next.restarts.retain(|at| *at > window_start);
        if self.next.restarts.len() >= RESTART_BUDGET {
            return self.end(State::Failed, ChangeReason::RestartBudgetSpent, cause);
        }
        self.next.restarts.push(self.now);
        self.next.generation += 1;
        self.make(Making::Restarting, ChangeReason::ComputeLost, cause)
    }

    fn idle(mut self) -> Transition {
        let State::Active { route } = self.next.state.clone() else {
            return self.keep_state(ChangeReason::IdleTimeout);
        };
        if self.next.policy.close_after_idle.is_zero() {
            return self.end(State::Closed, ChangeReason::IdleClose, Cause::default());
        }
        self.next.idle_since = Some(self.now);
        self.next.state = match self.next.policy.on_idle {
            IdlePolicy::Keep => State::IdleKept { route },
            IdlePolicy::Release => State::IdleReleasing {
                route,
                release_at: self.now.after(RELEASE_GRACE),
            },
        };
        self.done(ChangeReason::IdleTimeout, Cause::default(), Vec::new())
    }

    fn idle_without_compute(mut self, reason: ChangeReason, cause: Cause, wait: Duration) -> Transition {
        self.next.idle_since = self.next.idle_since.or(Some(self.now));
        self.next.state = State::IdleReleased {
            wake_after: self.now.after(wait),
        };
        let up_to = self.next.generation;
        self.done(reason, cause, vec![Effect::Release { up_to }])
    }

    fn end(mut self, state: State, reason: ChangeReason, cause: Cause) -> Transition {
        self.next.state = state;
        self.next.closed_at = Some(self.now);
        self.next.idle_since = None;
        let up_to = self.next.generation;
        self.done(reason, cause, vec![Effect::Release { up_to }])
    }
}

impl Step {
    fn done() -> Self {
        Self {
            transition: None,
            effects: Vec::new(),
            due: None,
        }
    }

    /// Looks again after as long as it has taken so far, within bounds.
    fn release(session: &Session, now: Timestamp) -> Self {
        let begun = session.closed_at.or(session.idle_since).unwrap_or(now);
        let wait = now.since(begun).clamp(RECHECK, SLOWEST_RECHECK);
        Self {
            transition: None,
            effects: vec![Effect::Release {
                up_to: session.generation,
            }],
            due: Some(now.after(wait)),
        }
    }

    fn commit(transition: Transition, activity: Activity, now: Timestamp) -> Self {
        let due = if transition.effects.is_empty() {
            next_due(&transition.session, activity, now)
        } else {
            Some(now.after(RECHECK))
        };
        Self {
            transition: Some(transition),
            effects: Vec::new(),
            due,
        }
    }
}
