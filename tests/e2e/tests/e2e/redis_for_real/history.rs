//! What callers did and what they were told, kept outside of Berth, and its comparison with
//! the store.

use anyhow::{Context as _, Result, ensure};
use session_core::{Reason, SessionKey, Status};
use session_proto::error::reason_of;
use session_store::SessionStore;
use std::collections::{BTreeMap, BTreeSet};
use tonic::Code;

/// As many changes as are kept of a session.
const HISTORY: u64 = 50;

/// Whether a change was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// Acknowledged.
    Yes,
    /// Tried; the answer was an error.
    Maybe,
    /// Never tried.
    No,
}

/// One session: everything that was tried with it.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) org: &'static str,
    pub(super) id: String,
    /// The names that it can have; the last acknowledged one is the first.
    pub(super) names: Vec<String>,
    pub(super) closed: Done,
    /// Acknowledged tokens, and whether each was revoked.
    pub(super) tokens: BTreeMap<String, Done>,
}

/// An error that a caller got, as it reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Refusal {
    pub(super) deed: &'static str,
    pub(super) code: String,
    pub(super) reason: String,
    pub(super) text: String,
}

/// Errors and how often callers got them.
pub(super) type Refusals = BTreeMap<Refusal, u64>;

impl Refusal {
    pub(super) fn of(deed: &'static str, status: &tonic::Status) -> Self {
        Self {
            deed,
            code: format!("{:?}", status.code()),
            reason: reason_of(status).map_or("", Reason::as_str).to_owned(),
            text: status.message().to_owned(),
        }
    }

    /// Every error names its cause and what to do: to try again, or whom to tell.
    pub(super) fn check(&self) -> Result<()> {
        let reasons = [Reason::ControlPlaneUnavailable, Reason::QuotaExceeded];
        let codes = [Code::Unavailable, Code::ResourceExhausted].map(|code| format!("{code:?}"));
        let helps = self.text.contains("try again")
            || self.text.contains("Try again")
            || self.text.contains("platform team");
        ensure!(
            reasons.iter().any(|reason| reason.as_str() == self.reason)
                && codes.contains(&self.code)
                && helps,
            "an error without cause or advice: {self:?}"
        );
        Ok(())
    }
}

impl Story {
    fn key(&self) -> Result<SessionKey> {
        Ok(SessionKey {
            org: self.org.parse()?,
            id: self.id.parse()?,
        })
    }

    /// Compares it with the store; returns its status.
    async fn check(&self, store: &dyn SessionStore) -> Result<Status> {
        let key = self.key()?;
        let stored = store.get(&key).await?;
        let stored = stored.with_context(|| format!("an acknowledged session is lost: {self:?}"))?;
        ensure!(
            stored.name.as_ref().is_some_and(|name| self.names.contains(name)),
            "its name was never acknowledged: {self:?}, {stored:?}"
        );
        let expected: &[Status] = match self.closed {
            Done::Yes => &[Status::Closed],
            Done::Maybe => &[Status::Closed, Status::Active, Status::Pending],
            Done::No => &[Status::Active, Status::Pending],
        };
        ensure!(
            expected.contains(&stored.status()),
            "its status was never acknowledged: {self:?}, {stored:?}"
        );
        let recorded: BTreeSet<String> = store
            .live_tokens(&key)
            .await?
            .into_iter()
            .map(|token| token.id.to_string())
            .collect();
        let revoked: BTreeSet<String> = stored.revoked_tokens.keys().map(ToString::to_string).collect();
        for (id, fate) in &self.tokens {
            let agrees = match fate {
                Done::Yes => revoked.contains(id),
                Done::Maybe => recorded.contains(id),
                Done::No => recorded.contains(id) && !revoked.contains(id),
            };
            ensure!(
                agrees,
                "token {id}, revoked {fate:?}: {recorded:?}, revoked {revoked:?}"
            );
        }
        let versions: Vec<u64> = store
            .events(&key)
            .await?
            .iter()
            .map(|event| event.version)
            .collect();
        let newest = versions.last().copied().unwrap_or_default();
        let first = newest.saturating_sub(HISTORY - 1).max(1);
        ensure!(
            newest >= stored.version && versions.iter().copied().eq(first..=newest),
            "the history of {stored:?} is {versions:?}"
        );
        Ok(stored.status())
    }
}

/// Compares all of them with the store, which has no other live session.
pub(super) async fn check_all(stories: &[Story], store: &dyn SessionStore) -> Result<()> {
    let mut live: BTreeMap<&str, u64> = BTreeMap::new();
    for story in stories {
        let status = story.check(store).await?;
        *live.entry(story.org).or_default() += u64::from(!status.is_terminal());
    }
    for (org, expected) in live {
        let counts = store.count_by_status(&org.parse()?).await?;
        let counted = counts.iter().filter(|(status, _)| !status.is_terminal());
        let counted: u64 = counted.map(|(_, count)| count).sum();
        ensure!(
            counted == expected,
            "{org} has {expected} live sessions that were acknowledged, and {counts:?}"
        );
    }
    Ok(())
}

/// The comparison notices what it is for.
#[cfg(test)]
mod tests {
    use super::*;
    use session_core::machine::{self, NewSession};
    use session_core::{Limits, Timestamp};
    use session_store::{Create, TokenRecord};
    use test_support::fixtures;

    const AT: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    /// A store with one session that has one token, and its true story.
    async fn stored() -> Result<(std::sync::Arc<dyn SessionStore>, Story)> {
        let store = session_store::open("memory://", &session_store::redis::Options::default()).await?;
        let created = machine::create(
            NewSession {
                name: Some("first".to_owned()),
                ..fixtures::new_session(1, "shared", fixtures::policy(), AT)
            },
            AT,
        );
        let key = created.session.key();
        let create = Create {
            due: AT,
            session: created.session,
            record: created.record,
            request: None,
            limits: Limits::default(),
        };
        store.create(create).await?;
        let now = store.now().await?;
        let token = TokenRecord {
            id: session_core::TokenId::generate(now, 1),
            key_id: "key".to_owned(),
            subject: "sa|ada".parse()?,
            epoch: store.get(&key).await?.context("stored")?.token_epoch,
            issued_at: now,
            expires_at: now.after(std::time::Duration::from_secs(3600)),
            address: String::new(),
        };
        let story = Story {
            org: fixtures::ORG,
            id: key.id.to_string(),
            names: vec!["first".to_owned()],
            closed: Done::No,
            tokens: BTreeMap::from([(token.id.to_string(), Done::No)]),
        };
        store.record_token(&key, token, 5).await?;
        Ok((store, story))
    }

    async fn notices(change: impl FnOnce(&mut Story), expected: &str) -> Result<()> {
        let (store, mut story) = stored().await?;
        check_all(std::slice::from_ref(&story), &*store).await?;
        change(&mut story);
        let noticed = check_all(&[story], &*store).await;
        let noticed = noticed
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        ensure!(noticed.contains(expected), "{expected}: {noticed:?}");
        Ok(())
    }

    #[tokio::test]
    async fn what_is_lost_is_noticed() -> Result<()> {
        let other = fixtures::session_key(7).id.to_string();
        notices(|story| story.id = other, "is lost").await?;
        notices(|story| story.names = vec!["second".to_owned()], "its name").await?;
        notices(|story| story.closed = Done::Yes, "its status").await?;
        notices(
            |story| story.tokens.extend([("t-1".to_owned(), Done::No)]),
            "token t-1",
        )
        .await?;
        notices(
            |story| story.tokens.values_mut().for_each(|revoked| *revoked = Done::Yes),
            "revoked Yes",
        )
        .await
    }

    #[test]
    fn an_error_without_cause_or_advice_is_noticed() {
        let refusal = |reason: &str, code: &str, text: &str| Refusal {
            deed: "create",
            code: code.to_owned(),
            reason: reason.to_owned(),
            text: text.to_owned(),
        };
        let good = refusal("CONTROL_PLANE_UNAVAILABLE", "Unavailable", "No disk. Try again.");
        assert!(good.check().is_ok());
        for bad in [
            refusal("CONTROL_PLANE_UNAVAILABLE", "Unavailable", "It failed."),
            refusal("INTERNAL", "Internal", "Tell your platform team."),
            refusal("", "Unavailable", "transport error, try again"),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
