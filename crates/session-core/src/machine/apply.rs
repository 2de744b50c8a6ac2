//! Requested transitions: creation of a session and changes by events.

use super::change::{Change, cut, record_of};
use super::{Cause, Effect, Event, MAX_ADVISED_CLIENTS, MAX_REVOKED_TOKENS, NewSession, Refusal, Transition};
use crate::id::TokenId;
use crate::policy::MAX_LIFETIME;
use crate::principal::Actor;
use crate::reason::ChangeReason;
use crate::session::{Making, Session, State};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Creates a session: pending, with an effect that ensures its compute.
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
        profile: new.profile,
        policy: new.policy,
        reason: ChangeReason::Created,
        status_message: String::new(),
        status_detail: String::new(),
        version: 1,
        generation: 1,
        compute_fence: 0,
        token_epoch: 1,
        created_at: now,
        active_at: None,
        idle_since: None,
        closed_at: None,
        keep_alive_until: None,
        restarts: Vec::new(),
        replaced_at: None,
        revoked_tokens: BTreeMap::new(),
        closing_announced: None,
        advised_clients: Vec::new(),
        warm_since: None,
        warm_before: Duration::ZERO,
        failed_wakes: 0,
        waiting: None,
    };
    Transition {
        record: record_of(None, &session, actor, now),
        effects: vec![Effect::Ensure { generation: 1 }],
        session,
    }
}

/// Applies `event`. `Ok(None)` means that the session already is in the
/// requested state.
///
/// # Errors
/// [`Refusal`] when the state of the session does not allow the event.
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
        Event::Extend { expires_at } => extend(session, change, *expires_at),
        Event::KeepAlive { until } => keep_alive(session, change, *until),
        Event::Update { name, labels } => Ok(update(session, change, name.as_ref(), labels.as_ref())),
        Event::ReleaseSparkSession => Ok(Some(change.keep_state(ChangeReason::SparkSessionReleased))),
        Event::AdviseClient { version, advice } => Ok(advise(session, change, version, advice)),
        Event::RevokeTokens => Ok(Some(revoke_all(change))),
        Event::RevokeToken { id, until } => Ok(revoke(session, change, id, *until)),
    }
}

fn extend(
    session: &Session,
    change: Change<'_>,
    expires_at: Timestamp,
) -> Result<Option<Transition>, Refusal> {
    let max = session.created_at.after(MAX_LIFETIME);
    if expires_at <= change.now || expires_at > max {
        return Err(Refusal::OutOfBounds {
            field: "expires_at",
            min: change.now,
            max,
        });
    }
    Ok((expires_at != session.expires_at).then(|| change.update(|session| session.expires_at = expires_at)))
}

fn keep_alive(
    session: &Session,
    mut change: Change<'_>,
    until: Timestamp,
) -> Result<Option<Transition>, Refusal> {
    if until > session.expires_at {
        return Err(Refusal::OutOfBounds {
            field: "until",
            min: change.now,
            max: session.expires_at,
        });
    }
    if Some(until) == session.keep_alive_until {
        return Ok(None);
    }
    change.next.keep_alive_until = Some(until);
    // Work that justifies the keep-alive may still run on this compute.
    if let State::IdleReleasing { route, .. } = &session.state
        && until > change.now
    {
        return Ok(Some(change.activate(route.clone(), ChangeReason::Updated)));
    }
    Ok(Some(change.keep_state(ChangeReason::Updated)))
}

fn update(
    session: &Session,
    change: Change<'_>,
    name: Option<&Option<String>>,
    labels: Option<&BTreeMap<String, String>>,
) -> Option<Transition> {
    let mut next = session.clone();
    if let Some(name) = name {
        next.name.clone_from(name);
    }
    if let Some(labels) = labels {
        next.labels.clone_from(labels);
    }
    (next != *session).then(|| {
        change.update(|session| {
            session.name = next.name;
            session.labels = next.labels;
        })
    })
}

/// Records advice once for each version, and for [`MAX_ADVISED_CLIENTS`] versions:
/// clients choose what they send, and every change makes proxies read the route again.
fn advise(session: &Session, mut change: Change<'_>, version: &str, advice: &str) -> Option<Transition> {
    let advised = &session.advised_clients;
    if advised.len() >= MAX_ADVISED_CLIENTS || advised.iter().any(|known| known == version) {
        return None;
    }
    change.next.advised_clients.push(version.to_owned());
    let mut change = change.keep_state(ChangeReason::ClientNewer);
    change.record.message = cut(advice);
    Some(change)
}

fn revoke_all(mut change: Change<'_>) -> Transition {
    change.next.token_epoch += 1;
    change.next.revoked_tokens.clear();
    change.keep_state(ChangeReason::TokensRevoked)
}

fn revoke(session: &Session, mut change: Change<'_>, id: &TokenId, until: Timestamp) -> Option<Transition> {
    if session.revoked_tokens.contains_key(id) {
        return None;
    }
    let now = change.now;
    change.next.revoked_tokens.retain(|_, until| *until > now);
    if change.next.revoked_tokens.len() >= MAX_REVOKED_TOKENS {
        return Some(revoke_all(change));
    }
    change.next.revoked_tokens.insert(id.clone(), until);
    Some(change.keep_state(ChangeReason::TokensRevoked))
}

fn wake(session: &Session, mut change: Change<'_>) -> Result<Option<Transition>, Refusal> {
    match &session.state {
        State::Pending { .. } | State::Active { .. } => Ok(None),
        // Compute would be created only to be released.
        State::IdleKept { .. } | State::IdleReleasing { .. } | State::IdleReleased { .. }
            if change.now >= session.expires_at =>
        {
            Ok(Some(Change::of(session, Actor::System, change.now).expire()))
        }
        State::IdleKept { route } | State::IdleReleasing { route, .. } => {
            Ok(Some(change.activate(route.clone(), ChangeReason::Woken)))
        }
        State::IdleReleased { wake_after } if change.now < *wake_after => {
            Err(Refusal::BackingOff { until: *wake_after })
        }
        State::IdleReleased { .. } => {
            change.next.generation += 1;
            change.next.replaced_at = Some(change.now);
            Ok(Some(change.create_compute(
                Making::Warming,
                ChangeReason::Woken,
                Cause::default(),
            )))
        }
        State::Closed | State::Failed => Err(Refusal::Terminal(session.status())),
    }
}
