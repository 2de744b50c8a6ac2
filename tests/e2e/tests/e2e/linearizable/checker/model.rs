//! One session as its callers may imagine it: a register with a name, an epoch and a set of revoked
//! tokens, which begins once and ends once.

use super::super::history::{Call, Event, Life, Outcome, Record, Refusal};
use std::collections::{BTreeMap, BTreeSet};

/// The session at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// None before the create.
    session: Option<Session>,
    /// During a fail-over: the same at the former primary, which some callers still reach.
    former: Option<Option<Session>>,
    /// Since the begin of a fail-over: what the new primary may have.
    past: Option<Vec<Option<Session>>>,
    /// What a fail-over lost, and its writer repeats.
    lost: Option<Session>,
    /// Fail-overs that have happened.
    pub(super) fail_overs: usize,
}

/// Versions and generations are lower bounds: Berth changes them by itself too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Session {
    id: Option<String>,
    version: u64,
    generation: u64,
    epoch: u64,
    name: String,
    revoked: BTreeSet<String>,
    life: Life,
}

/// The epochs of the tokens, as they were issued.
pub(super) type Tokens = BTreeMap<String, u64>;

/// Epoch of a new session.
const FIRST_EPOCH: u64 = 1;

impl State {
    pub(super) fn new() -> Self {
        Self {
            session: None,
            former: None,
            past: None,
            lost: None,
            fail_overs: 0,
        }
    }

    /// The states after this call, if the answer fits the state before it.
    pub(super) fn after(&self, event: &Event, tokens: &Tokens) -> Vec<Self> {
        let mut states = Vec::new();
        if let Some(session) = after(&self.session, event, tokens) {
            let mut next = self.clone();
            if next.session != session {
                next.session.clone_from(&session);
                if let Some(past) = &mut next.past {
                    past.push(session);
                }
            }
            states.push(next);
        }
        let former = self.former.as_ref().and_then(|former| {
            let session = after(former, event, tokens)?;
            Some((session.clone() != *former, session))
        });
        if let Some((changed, session)) = former {
            let mut next = self.clone();
            if changed {
                next.lost = lasting(next.lost, session.as_ref());
            }
            next.former = Some(session);
            if !states.contains(&next) {
                states.push(next);
            }
        }
        states
    }

    /// Whether some callers reach a former primary.
    pub(super) fn is_split(&self) -> bool {
        self.former.is_some()
    }

    /// A fail-over begins: it may go back to this moment.
    pub(super) fn with_past(&self) -> Self {
        Self {
            past: Some(vec![self.session.clone()]),
            ..self.clone()
        }
    }

    /// Everybody reaches the new primary only.
    pub(super) fn without_past(&self) -> Self {
        Self {
            past: None,
            former: None,
            ..self.clone()
        }
    }

    /// What a new primary may have, the present included.
    pub(super) fn failed_over(&self) -> Vec<Self> {
        let present = Self {
            former: Some(self.session.clone()),
            fail_overs: self.fail_overs + 1,
            ..self.clone()
        };
        let earlier = self.past.iter().flatten().filter(|past| **past != self.session);
        let mut left: Vec<Self> = earlier
            .map(|session| Self {
                session: session.clone(),
                lost: lasting(self.lost.clone(), self.session.as_ref()),
                ..present.clone()
            })
            .collect();
        left.insert(0, present);
        left
    }

    /// The writers repeat ends and revocations that the fail-over lost. An end is repeated with the
    /// whole record, so it may have the name that was lost.
    pub(super) fn repaired(&self) -> Vec<Self> {
        let without = |session| Self {
            session,
            lost: None,
            ..self.clone()
        };
        let (Some(lost), Some(session)) = (&self.lost, &self.session) else {
            return vec![without(self.session.clone())];
        };
        let repeated = session.clone().changed(|session| session.repeat(lost));
        let ended = session.life == Life::Live && lost.life != Life::Live;
        let other_name = ended.then(|| Session {
            name: lost.name.clone(),
            ..repeated.clone()
        });
        let mut states = vec![without(Some(repeated))];
        states.extend(other_name.map(|session| without(Some(session))));
        states
    }
}

/// Both together, in what writers repeat: the end and revocations.
fn lasting(lost: Option<Session>, other: Option<&Session>) -> Option<Session> {
    let (Some(mut lost), Some(other)) = (lost.clone(), other) else {
        return lost.or_else(|| other.cloned());
    };
    other.name.clone_into(&mut lost.name);
    if other.life != Life::Live {
        lost.life = other.life;
    }
    if other.epoch > lost.epoch {
        lost.epoch = other.epoch;
        lost.revoked.clone_from(&other.revoked);
    } else if other.epoch == lost.epoch {
        lost.revoked.extend(other.revoked.iter().cloned());
    }
    Some(lost)
}

/// The session after this call, if the answer fits the session before it.
fn after(session: &Option<Session>, event: &Event, tokens: &Tokens) -> Option<Option<Session>> {
    match &event.outcome {
        Outcome::Unknown(_) => Some(after_unknown(session.clone(), &event.call)),
        Outcome::Refused(refusal) => {
            allows(session.as_ref(), *refusal, &event.call, tokens).then(|| session.clone())
        }
        Outcome::Failed(_) | Outcome::Answered { .. } => Some(session.clone()),
        Outcome::Record(record) => after_record(session.clone(), &event.call, record, tokens).map(Some),
        Outcome::Issued { epoch, .. } => {
            let issues = |session: &Session| session.life == Life::Live && *epoch == session.epoch;
            session.as_ref().is_some_and(issues).then(|| session.clone())
        }
        Outcome::AllRevoked { epoch } => {
            let session = session.clone().filter(|session| session.life == Life::Live)?;
            let session = session.with_all_revoked();
            (session.epoch == *epoch).then_some(Some(session))
        }
        Outcome::Done => match &event.call {
            Call::Revoke { token } => Some(Some(session.clone()?.with_revoked(token))),
            Call::Create { .. }
            | Call::Describe
            | Call::Rename { .. }
            | Call::Close
            | Call::Issue
            | Call::RevokeAll
            | Call::Resolve { .. }
            | Call::Spark { .. } => None,
        },
    }
}

fn after_unknown(session: Option<Session>, call: &Call) -> Option<Session> {
    match call {
        Call::Create { name } => session.or_else(|| Some(Session::created(name))),
        Call::Rename { name } => session.map(|session| session.renamed(name)),
        Call::Close => session.map(Session::closed),
        Call::Revoke { token } => session.map(|session| session.with_revoked(token)),
        Call::RevokeAll => session.map(Session::with_all_revoked),
        Call::Describe | Call::Issue | Call::Resolve { .. } | Call::Spark { .. } => session,
    }
}

fn after_record(session: Option<Session>, call: &Call, record: &Record, tokens: &Tokens) -> Option<Session> {
    let Some(session) = session else {
        let Call::Create { name } = call else { return None };
        return Session::created(name).seen(record, false, tokens);
    };
    let next = match call {
        // The same request again: the session of the first.
        Call::Create { .. } | Call::Describe => session.seen(record, false, tokens)?,
        Call::Resolve { token } => {
            let is_good = !session.has_revoked(token, tokens);
            session.seen(record, false, tokens).filter(|_| is_good)?
        }
        Call::Rename { name } if session.life == Life::Live => {
            session.renamed(name).seen(record, true, tokens)?
        }
        // Closing a closed session returns the same record.
        Call::Close if record.life == Life::Live => return None,
        Call::Close if session.life == Life::Live => session.closed().seen(record, true, tokens)?,
        Call::Close => session.seen(record, false, tokens)?,
        Call::Rename { .. } | Call::Issue | Call::Revoke { .. } | Call::RevokeAll | Call::Spark { .. } => {
            return None;
        }
    };
    Some(next)
}

fn allows(session: Option<&Session>, refusal: Refusal, call: &Call, tokens: &Tokens) -> bool {
    let ended = |session: &Session| session.life != Life::Live;
    match (refusal, session) {
        (Refusal::Absent, session) => session.is_none(),
        (Refusal::Ended, session) => session.is_some_and(ended),
        (Refusal::EndedOrAbsent, session) => session.is_none_or(ended),
        (Refusal::TokenRevoked, None) => false,
        (Refusal::TokenRevoked, Some(session)) => match call {
            Call::Resolve { token } | Call::Spark { token, .. } => session.has_revoked(token, tokens),
            Call::Create { .. }
            | Call::Describe
            | Call::Rename { .. }
            | Call::Close
            | Call::Issue
            | Call::Revoke { .. }
            | Call::RevokeAll => false,
        },
    }
}

impl Session {
    fn created(name: &str) -> Self {
        Self {
            id: None,
            version: 1,
            generation: 1,
            epoch: FIRST_EPOCH,
            name: name.to_owned(),
            revoked: BTreeSet::new(),
            life: Life::Live,
        }
    }

    fn has_revoked(&self, token: &str, tokens: &Tokens) -> bool {
        self.revoked.contains(token) || tokens.get(token).is_some_and(|epoch| *epoch < self.epoch)
    }

    /// Changes nothing that has ended.
    fn changed(mut self, change: impl FnOnce(&mut Self)) -> Self {
        if self.life == Life::Live {
            change(&mut self);
        }
        self
    }

    /// Takes over the end and the revocations of another one.
    fn repeat(&mut self, lost: &Self) {
        let before = self.clone();
        if lost.epoch > self.epoch {
            self.epoch = lost.epoch;
        }
        if lost.epoch == self.epoch {
            self.revoked.extend(lost.revoked.iter().cloned());
        }
        if lost.life != Life::Live {
            self.life = lost.life;
        }
        if *self != before {
            self.version += 1;
        }
    }

    fn renamed(self, name: &str) -> Self {
        self.changed(|session| {
            name.clone_into(&mut session.name);
            session.version += 1;
        })
    }

    fn closed(self) -> Self {
        self.changed(|session| {
            session.life = Life::Closed;
            session.version += 1;
        })
    }

    fn with_revoked(self, token: &str) -> Self {
        self.changed(|session| {
            if session.revoked.insert(token.to_owned()) {
                session.version += 1;
            }
        })
    }

    fn with_all_revoked(self) -> Self {
        self.changed(|session| {
            session.epoch += 1;
            session.version += 1;
            // Older tokens have an older epoch.
            session.revoked.clear();
        })
    }

    /// With what an answer showed of it, if that fits. `wrote`: the answer is that of a change.
    fn seen(mut self, record: &Record, wrote: bool, tokens: &Tokens) -> Option<Self> {
        // A token of an older epoch is revoked in any case.
        let epoch = self.epoch;
        let counts = |token: &&String| tokens.get(*token).is_none_or(|own| *own >= epoch);
        let same_tokens = |revoked: &Vec<String>| {
            self.revoked
                .iter()
                .filter(counts)
                .eq(revoked.iter().filter(counts))
        };
        let fits = self.id.as_ref().is_none_or(|id| *id == record.id)
            && record.version >= self.version
            && record.generation >= self.generation
            && record.epoch == self.epoch
            && record.name.as_ref().is_none_or(|name| *name == self.name)
            && record.revoked.as_ref().is_none_or(same_tokens)
            && self.life.may_become(record.life)
            && !(wrote && record.life == Life::Failed);
        if self.life != Life::Live && record.generation != self.generation {
            return None;
        }
        self.id = Some(record.id.clone());
        self.version = record.version;
        self.generation = record.generation;
        self.life = record.life;
        fits.then_some(self)
    }
}

impl Life {
    /// Without a call: compute may fail.
    fn may_become(self, other: Self) -> bool {
        self == other || (self == Self::Live && other == Self::Failed)
    }
}
