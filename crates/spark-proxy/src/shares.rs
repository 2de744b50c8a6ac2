//! Shares of common resources, counted per session, per organization, and in all: no caller can use
//! the share of others.

use service_kit::limiter::{ConcurrencyLimiter, Permit};
use session_core::{OrgId, Reason, SessionId};
use session_proto::error::Refused;
use session_token::Claims;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Concurrent bind requests of one session; each worker sends one at a time.
const MAX_BINDS_PER_SESSION: u32 = 16;
/// The same for one organization: a sixteenth of a session-manager's limit.
const MAX_BINDS_PER_ORG: u32 = 64;
/// Calls of one organization that wait for route requests.
const MAX_LOOKUPS_PER_ORG: u32 = 1024;

/// Use of one resource at one level.
type Count = Arc<AtomicUsize>;

/// Retry delay.
const RETRY: Duration = Duration::from_secs(5);

/// Resource use of a session, of an organization, or in all.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    pub(crate) held_calls: Count,
    pub(crate) held_bytes: Count,
    pub(crate) unread_bytes: Count,
}

/// Limit of one level, and its configuration key.
pub(crate) type Limit = (usize, &'static str);

/// Limits of one resource: per session, per organization, in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits(pub(crate) [Limit; 3]);

/// Open requests to session-manager.
#[derive(Debug)]
pub(crate) struct Questions {
    binds_of_sessions: Arc<ConcurrencyLimiter<SessionId>>,
    binds_of_orgs: Arc<ConcurrencyLimiter<OrgId>>,
    lookups_of_orgs: Arc<ConcurrencyLimiter<OrgId>>,
}

/// One bind request; ends on drop.
#[derive(Debug)]
pub(crate) struct Bind {
    _session: Permit<SessionId>,
    _org: Permit<OrgId>,
}

/// One call that waits for a route request; ends on drop.
#[derive(Debug)]
pub(crate) struct Lookup(#[expect(dead_code, reason = "counted while it lives")] Permit<OrgId>);

impl Default for Questions {
    fn default() -> Self {
        Self {
            binds_of_sessions: ConcurrencyLimiter::new(MAX_BINDS_PER_SESSION),
            binds_of_orgs: ConcurrencyLimiter::new(MAX_BINDS_PER_ORG),
            lookups_of_orgs: ConcurrencyLimiter::new(MAX_LOOKUPS_PER_ORG),
        }
    }
}

impl Questions {
    pub(crate) fn bind(&self, claims: &Claims) -> Result<Bind, Refused> {
        let full = |whose| too_many(format!("Too many Spark sessions of the {whose} are being bound."));
        let session = self.binds_of_sessions.enter(claims.sid.clone());
        let session = session.ok_or_else(|| full("session"))?;
        let org = self.binds_of_orgs.enter(claims.org.clone());
        let org = org.ok_or_else(|| full("organization"))?;
        Ok(Bind {
            _session: session,
            _org: org,
        })
    }

    pub(crate) fn lookup(&self, claims: &Claims) -> Result<Lookup, Refused> {
        let org = self.lookups_of_orgs.enter(claims.org.clone());
        org.map(Lookup).ok_or_else(|| {
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
    .retry_after(RETRY)
}

const LEVELS: [&str; 3] = ["of this session", "of this organization", "at this proxy"];

/// An exceeded limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// Level of the limit, as worded after "calls".
    pub(crate) whose: &'static str,
    /// The configuration key.
    pub(crate) key: &'static str,
}

/// Use of one resource by one call; released on drop.
#[derive(Debug)]
pub(crate) struct Taken {
    counts: [Count; 3],
    limits: Limits,
    amount: usize,
}

impl Taken {
    /// Creates a use of zero.
    pub(crate) fn new(levels: [&Shares; 3], pick: impl Fn(&Shares) -> &Count, limits: Limits) -> Self {
        Self {
            counts: levels.map(|shares| Arc::clone(pick(shares))),
            limits,
            amount: 0,
        }
    }

    /// Raises the use to `amount`. Use beyond a limit counts until this is dropped, so a rejected
    /// call must drop it.
    pub(crate) fn grow_to(&mut self, amount: usize) -> Result<(), Exceeded> {
        let more = amount.saturating_sub(self.amount);
        if more == 0 {
            return Ok(());
        }
        self.amount = amount;
        let mut exceeded = None;
        for (level, (count, (most, key))) in self.counts.iter().zip(self.limits.0).enumerate() {
            let taken = count.fetch_add(more, Relaxed) + more;
            if taken > most && exceeded.is_none() {
                exceeded = Some(Exceeded {
                    whose: LEVELS[level],
                    key,
                });
            }
        }
        exceeded.map_or(Ok(()), Err)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for count in &self.counts {
            count.fetch_sub(self.amount, Relaxed);
        }
    }
}

impl Exceeded {
    /// Creates the error; `what` is its subject.
    pub(crate) fn refused(self, reason: Reason, what: std::fmt::Arguments<'_>) -> Refused {
        Refused::new(
            reason,
            format!("{what} (limit {}). Try again in a little while.", self.key),
        )
        .with("limit", self.key)
        .retry_after(RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits([(2, "session"), (3, "org"), (4, "all")]);

    #[test]
    fn the_narrowest_bound_is_named_and_all_is_given_back() {
        let [a, b, c, org, other, all] = [(); 6].map(|()| Shares::default());
        let take = |session: &Shares, org: &Shares, amount| {
            let mut taken = Taken::new([session, org, &all], |shares| &shares.held_bytes, LIMITS);
            taken
                .grow_to(amount)
                .map(|()| taken)
                .map_err(|exceeded| exceeded.key)
        };
        assert_eq!(take(&a, &org, 3).unwrap_err(), "session");
        let first = take(&a, &org, 2).unwrap();
        assert_eq!(take(&a, &org, 1).unwrap_err(), "session");
        let second = take(&b, &org, 1).unwrap();
        assert_eq!(take(&b, &org, 1).unwrap_err(), "org");
        let third = take(&c, &other, 1).unwrap();
        assert_eq!(take(&c, &other, 1).unwrap_err(), "all");
        drop((first, second, third));
        for shares in [&a, &b, &c, &org, &other, &all] {
            assert_eq!(shares.held_bytes.load(Relaxed), 0);
        }
    }

    #[test]
    fn what_is_taken_only_grows() {
        let [session, org, all] = [(); 3].map(|()| Shares::default());
        let mut taken = Taken::new([&session, &org, &all], |shares| &shares.held_bytes, LIMITS);
        for amount in [1, 2, 1, 2] {
            taken.grow_to(amount).unwrap();
        }
        assert_eq!(all.held_bytes.load(Relaxed), 2);
    }
}
