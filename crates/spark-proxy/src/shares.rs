//! What calls take of what all of them share, counted for the session, for its
//! organization and in all: nobody can take the share of the others.

use service_kit::limits::{AtOnce, Permit};
use session_core::{OrgId, Reason, SessionId};
use session_proto::error::Refused;
use session_token::Claims;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Questions of one session about Spark sessions at once; each worker asks one at a time.
const MAX_BINDS_PER_SESSION: u32 = 16;
/// The same for one organization: a sixteenth of what a session-manager takes.
const MAX_BINDS_PER_ORG: u32 = 64;
/// Calls of one organization at once that wait for the look-up of a route.
const MAX_LOOKUPS_PER_ORG: u32 = 1024;

/// One resource at one level.
type Count = Arc<AtomicUsize>;

/// When to try again.
const RETRY: Duration = Duration::from_secs(5);

/// What is taken by a session, by an organization, or in all.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    pub(crate) held_calls: Count,
    pub(crate) held_bytes: Count,
    pub(crate) unread_bytes: Count,
}

/// How much there is at one level, and the configuration key that says so.
pub(crate) type Limit = (usize, &'static str);

/// The bounds of one resource: of a session, of an organization, in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits(pub(crate) [Limit; 3]);

/// Questions to session-manager that are under way.
#[derive(Debug)]
pub(crate) struct Questions {
    binds_of_sessions: Arc<AtOnce<SessionId>>,
    binds_of_orgs: Arc<AtOnce<OrgId>>,
    lookups_of_orgs: Arc<AtOnce<OrgId>>,
}

/// One question about a Spark session; ends when dropped.
#[derive(Debug)]
pub(crate) struct Bind {
    _session: Permit<SessionId>,
    _org: Permit<OrgId>,
}

/// One call that waits for a look-up; ends when dropped.
#[derive(Debug)]
pub(crate) struct Lookup(#[expect(dead_code, reason = "counted while it lives")] Permit<OrgId>);

impl Default for Questions {
    fn default() -> Self {
        Self {
            binds_of_sessions: AtOnce::new(MAX_BINDS_PER_SESSION),
            binds_of_orgs: AtOnce::new(MAX_BINDS_PER_ORG),
            lookups_of_orgs: AtOnce::new(MAX_LOOKUPS_PER_ORG),
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

/// A bound that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// Whose it is, as it goes on after "calls".
    pub(crate) whose: &'static str,
    /// The configuration key.
    pub(crate) key: &'static str,
}

/// What one call takes of one resource; given back when dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    counts: [Count; 3],
    limits: Limits,
    amount: usize,
}

impl Taken {
    /// Nothing yet, of what is counted here.
    pub(crate) fn new(levels: [&Shares; 3], pick: impl Fn(&Shares) -> &Count, limits: Limits) -> Self {
        Self {
            counts: levels.map(|shares| Arc::clone(pick(shares))),
            limits,
            amount: 0,
        }
    }

    /// Takes `amount` altogether, if that is more than before. What exceeds a
    /// bound counts until this is dropped, so whoever is refused must drop it.
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
    /// `what` says of whose calls there is too much of what.
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
