//! Limits on resources that callers share, per session, per organization, and in all: no caller can
//! use up the share of others.
//!
//! Requests to session-manager are counted by the concurrency limits of service-kit. Held and unread
//! bytes change with every frame, so they are atomics that a session holds, without a table or lock.

use service_kit::limiter::{ConcurrencyLimiter, Permit};
use session_core::{OrgId, Reason, SessionId};
use session_proto::error::Refused;
use session_token::Claims;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Concurrent bind requests of one session; each worker sends one at a time.
const MAX_BINDS_PER_SESSION: u32 = 16;
/// The same for one organization: a sixteenth of a session-manager's limit.
const MAX_BINDS_PER_ORG: u32 = 64;
/// Calls of one organization that wait for route requests.
const MAX_LOOKUPS_PER_ORG: u32 = 1024;

/// Retry delay.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Retry delay when calls of the caller must end first.
const SHARE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Resource use of a session, of an organization, or in all.
#[derive(Debug, Default)]
pub(crate) struct ResourceUse {
    pub(crate) held_calls: AtomicUsize,
    pub(crate) held_bytes: AtomicUsize,
    pub(crate) unread_bytes: AtomicUsize,
    pub(crate) unacknowledged_bytes: AtomicUsize,
}

/// Limit of one level, and its configuration key.
pub(crate) type KeyedLimit = (usize, &'static str);

/// Limits of one resource: per session, per organization, in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LevelLimits(pub(crate) [KeyedLimit; 3]);

/// Open requests to session-manager.
#[derive(Debug)]
pub(crate) struct ManagerRequests {
    binds_of_sessions: Arc<ConcurrencyLimiter<SessionId>>,
    binds_of_orgs: Arc<ConcurrencyLimiter<OrgId>>,
    lookups_of_orgs: Arc<ConcurrencyLimiter<OrgId>>,
}

/// One bind request; ends on drop.
#[derive(Debug)]
pub(crate) struct BindPermit {
    _session: Permit<SessionId>,
    _org: Permit<OrgId>,
}

/// One call that waits for a route request; ends on drop.
#[derive(Debug)]
pub(crate) struct LookupPermit(#[expect(dead_code, reason = "counted while it lives")] Permit<OrgId>);

impl Default for ManagerRequests {
    fn default() -> Self {
        Self {
            binds_of_sessions: ConcurrencyLimiter::new(MAX_BINDS_PER_SESSION),
            binds_of_orgs: ConcurrencyLimiter::new(MAX_BINDS_PER_ORG),
            lookups_of_orgs: ConcurrencyLimiter::new(MAX_LOOKUPS_PER_ORG),
        }
    }
}

impl ManagerRequests {
    pub(crate) fn bind(&self, claims: &Claims) -> Result<BindPermit, Refused> {
        let full = |whose| too_many(format!("Too many Spark sessions of the {whose} are being bound."));
        let session = self.binds_of_sessions.enter(claims.sid.clone());
        let session = session.ok_or_else(|| full("session"))?;
        let org = self.binds_of_orgs.enter(claims.org.clone());
        let org = org.ok_or_else(|| full("organization"))?;
        Ok(BindPermit {
            _session: session,
            _org: org,
        })
    }

    pub(crate) fn lookup(&self, claims: &Claims) -> Result<LookupPermit, Refused> {
        let org = self.lookups_of_orgs.enter(claims.org.clone());
        org.map(LookupPermit).ok_or_else(|| {
            too_many(
                "Too many calls of the organization wait until their sessions have been looked up."
                    .to_owned(),
            )
        })
    }
}

fn too_many(what: String) -> Refused {
    Refused::new(
        Reason::TooManyWaiting,
        format!("{what} Try again in a little while."),
    )
    .retry_after(RETRY_DELAY)
}

const LEVELS: [&str; 3] = ["of this session", "of this organization", "at this proxy"];

/// An exceeded limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitExceeded {
    /// Level of the limit, as worded after "calls".
    pub(crate) whose: &'static str,
    /// The configuration key.
    pub(crate) key: &'static str,
}

/// Calls of a session and of its organization at one shared server, in one worker. A session keeps
/// them, so that a call needs no look-up by key.
#[derive(Debug)]
pub(crate) struct CallShares {
    /// The pool of connections to the server.
    pool: u64,
    session: Rc<Cell<u32>>,
    org: Rc<Cell<u32>>,
}

/// A call counted in [`CallShares`] until dropped.
#[derive(Debug)]
pub(crate) struct SharedPermit {
    session: Rc<Cell<u32>>,
    org: Rc<Cell<u32>>,
}

impl CallShares {
    /// The shares with these counts of the session's and its organization's calls at the server.
    pub(crate) fn new(pool: u64, session: Rc<Cell<u32>>, org: Rc<Cell<u32>>) -> Self {
        Self { pool, session, org }
    }

    pub(crate) fn is_at(&self, pool: u64) -> bool {
        self.pool == pool
    }

    /// Counts a call. A limit of zero means none.
    pub(crate) fn enter(&self, per_session: u32, per_org: u32) -> Result<SharedPermit, Refused> {
        let is_full = |count: &Cell<u32>, max| max > 0 && count.get() >= max;
        if is_full(&self.session, per_session) {
            return Err(too_many_calls("session", "backend.shared_calls_per_session"));
        }
        if is_full(&self.org, per_org) {
            return Err(too_many_calls("organization", "backend.shared_calls_per_org"));
        }
        for count in [&self.session, &self.org] {
            count.set(count.get() + 1);
        }
        Ok(SharedPermit {
            session: Rc::clone(&self.session),
            org: Rc::clone(&self.org),
        })
    }
}

impl Drop for SharedPermit {
    fn drop(&mut self) {
        for count in [&self.session, &self.org] {
            count.set(count.get() - 1);
        }
    }
}

fn too_many_calls(whose: &str, key: &str) -> Refused {
    Refused::new(
        Reason::QuotaExceeded,
        format!(
            "The {whose} has as many calls at this shared server as it may have at once ({key}). Wait until one of them ends."
        ),
    )
    .with("limit", key)
    .retry_after(SHARE_RETRY_DELAY)
}

/// Use of one resource by one call; released on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    levels: [Arc<ResourceUse>; 3],
    pick: fn(&ResourceUse) -> &AtomicUsize,
    limits: LevelLimits,
    amount: usize,
}

impl Reservation {
    /// Creates a use of zero.
    pub(crate) fn new(
        levels: [&Arc<ResourceUse>; 3],
        pick: fn(&ResourceUse) -> &AtomicUsize,
        limits: LevelLimits,
    ) -> Self {
        Self {
            levels: levels.map(Arc::clone),
            pick,
            limits,
            amount: 0,
        }
    }

    /// Raises the use to `amount`. Use beyond a limit counts until this is dropped, so a rejected
    /// call must drop it.
    pub(crate) fn raise_to(&mut self, amount: usize) -> Result<(), LimitExceeded> {
        let more = amount.saturating_sub(self.amount);
        if more == 0 {
            return Ok(());
        }
        self.amount = amount;
        let mut exceeded = None;
        for (level, (used, (max, key))) in self.levels.iter().zip(self.limits.0).enumerate() {
            let taken = (self.pick)(used).fetch_add(more, Relaxed) + more;
            if taken > max && exceeded.is_none() {
                exceeded = Some(LimitExceeded {
                    whose: LEVELS[level],
                    key,
                });
            }
        }
        exceeded.map_or(Ok(()), Err)
    }

    /// Changes the use to `amount`, which may be lower. Use beyond a limit counts too.
    pub(crate) fn set(&mut self, amount: usize) -> Result<(), LimitExceeded> {
        let less = self.amount.saturating_sub(amount);
        if less > 0 {
            self.amount = amount;
            for level in &self.levels {
                (self.pick)(level).fetch_sub(less, Relaxed);
            }
        }
        self.raise_to(amount)
    }

    /// Whether `more` would be within all limits.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        let mut levels = self.levels.iter().zip(self.limits.0);
        levels.all(|(level, (max, _))| (self.pick)(level).load(Relaxed) + more <= max)
    }

    /// Whether more than three quarters of a limit are in use.
    pub(crate) fn is_scarce(&self) -> bool {
        let mut levels = self.levels.iter().zip(self.limits.0);
        levels.any(|(level, (max, _))| (self.pick)(level).load(Relaxed) > max / 4 * 3)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for level in &self.levels {
            (self.pick)(level).fetch_sub(self.amount, Relaxed);
        }
    }
}

impl LimitExceeded {
    /// Creates the error; `what` is its subject.
    pub(crate) fn refused(self, reason: Reason, what: std::fmt::Arguments<'_>) -> Refused {
        Refused::new(
            reason,
            format!("{what} (limit {}). Try again in a little while.", self.key),
        )
        .with("limit", self.key)
        .retry_after(RETRY_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LevelLimits = LevelLimits([(2, "session"), (3, "org"), (4, "all")]);

    #[test]
    fn the_error_names_the_narrowest_limit_and_drop_releases_all() {
        let [a, b, c, org, other, all] = [(); 6].map(|()| Arc::<ResourceUse>::default());
        let reserve = |session: &Arc<ResourceUse>, org: &Arc<ResourceUse>, amount| {
            let mut reservation = Reservation::new([session, org, &all], |level| &level.held_bytes, LIMITS);
            reservation
                .raise_to(amount)
                .map(|()| reservation)
                .map_err(|exceeded| exceeded.key)
        };
        assert_eq!(reserve(&a, &org, 3).unwrap_err(), "session");
        let first = reserve(&a, &org, 2).unwrap();
        assert_eq!(reserve(&a, &org, 1).unwrap_err(), "session");
        let second = reserve(&b, &org, 1).unwrap();
        assert_eq!(reserve(&b, &org, 1).unwrap_err(), "org");
        let third = reserve(&c, &other, 1).unwrap();
        assert_eq!(reserve(&c, &other, 1).unwrap_err(), "all");
        drop((first, second, third));
        for level in [&a, &b, &c, &org, &other, &all] {
            assert_eq!(level.held_bytes.load(Relaxed), 0);
        }
    }

    #[test]
    fn calls_at_a_shared_server_count_for_the_session_and_its_organization() {
        let org = Rc::default();
        let [a, b] = [(); 2].map(|()| CallShares::new(1, Rc::default(), Rc::clone(&org)));
        let refused = |shares: &CallShares| format!("{:?}", shares.enter(2, 3).unwrap_err());
        let first = [a.enter(2, 3).unwrap(), a.enter(2, 3).unwrap()];
        assert!(refused(&a).contains("shared_calls_per_session"));
        let second = b.enter(2, 3).unwrap();
        assert!(refused(&b).contains("shared_calls_per_org"));
        drop(first);
        let _third = b.enter(2, 3).unwrap();
        assert!(refused(&b).contains("shared_calls_per_session"));
        drop(second);
        assert_eq!(org.get(), 1);
        let unlimited: Vec<_> = (0..100).map(|_| a.enter(0, 0).unwrap()).collect();
        assert_eq!(unlimited.len(), 100);
    }

    #[test]
    fn a_use_that_changes_is_counted_exactly() {
        let [session, org, all] = [(); 3].map(|()| Arc::<ResourceUse>::default());
        let mut reservation = Reservation::new(
            [&session, &org, &all],
            |level| &level.unacknowledged_bytes,
            LIMITS,
        );
        assert!(reservation.has_room(2) && !reservation.has_room(3));
        for (amount, within) in [(2, true), (0, true), (4, false), (1, true)] {
            assert_eq!(reservation.set(amount).is_ok(), within, "{amount}");
            assert_eq!(all.unacknowledged_bytes.load(Relaxed), amount);
        }
        assert!(reservation.has_room(1) && !reservation.has_room(2));
        drop(reservation);
        assert_eq!(session.unacknowledged_bytes.load(Relaxed), 0);
    }

    #[test]
    fn a_reservation_never_shrinks() {
        let [session, org, all] = [(); 3].map(|()| Arc::<ResourceUse>::default());
        let mut reservation = Reservation::new([&session, &org, &all], |level| &level.held_bytes, LIMITS);
        for amount in [1, 2, 1, 2] {
            reservation.raise_to(amount).unwrap();
        }
        assert_eq!(all.held_bytes.load(Relaxed), 2);
    }
}
