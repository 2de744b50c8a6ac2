//! What must hold while it goes on, and once it is calm.

use super::people::{Api, Deed};
use super::{Churn, Shared};
use anyhow::{Context as _, Result, ensure};
use e2e::wait;
use session_core::Reason;
use session_proto::v1;
use session_proto::v1::SessionStatus;
use session_proto::v1::watch_sessions_response::Update;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const SETTLED: Duration = Duration::from_secs(60);
/// As many changes as are kept of a session.
const HISTORY: u64 = 50;

/// What the watchers saw.
#[derive(Default)]
pub(super) struct Watched(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    changes: u64,
    resets: u64,
    /// The version with which a session ended.
    ended: BTreeMap<String, u64>,
    /// What is live, as each manager that is watched tells it.
    live: BTreeMap<usize, BTreeSet<String>>,
    wrong: Vec<String>,
}

impl Watched {
    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn changes(&self) -> u64 {
        self.with(|seen| seen.changes)
    }

    pub(super) fn resets(&self) -> u64 {
        self.with(|seen| seen.resets)
    }
}

impl Seen {
    fn session(&mut self, manager: usize, session: &v1::Session) {
        let live = self.live.entry(manager).or_default();
        match session.status() {
            SessionStatus::Closed | SessionStatus::Failed => {
                live.remove(&session.id);
                let ended = self.ended.entry(session.id.clone()).or_insert(session.version);
                if *ended != session.version {
                    self.wrong
                        .push(format!("it ended twice, at {ended} and with: {session:?}"));
                }
            }
            SessionStatus::Pending | SessionStatus::Active | SessionStatus::Idle => {
                live.insert(session.id.clone());
                if self
                    .ended
                    .get(&session.id)
                    .is_some_and(|ended| *ended <= session.version)
                {
                    self.wrong.push(format!("it came back: {session:?}"));
                }
            }
            SessionStatus::Unspecified => self.wrong.push(format!("{session:?}")),
        }
    }

    /// Changes come one by one, but after a reset.
    fn event(&mut self, last: &mut BTreeMap<String, u64>, id: &str, event: &v1::SessionEvent) {
        self.changes += 1;
        let before = last.insert(id.to_owned(), event.version);
        if before.is_some_and(|before| before + 1 != event.version) {
            self.wrong
                .push(format!("{id}: {event:?} after the change {before:?}"));
        }
    }
}

/// Watches all sessions at one manager, for ever.
pub(super) async fn watch(api: Api, manager: usize, watched: Arc<Watched>) {
    loop {
        // Whoever watches again begins with a reset.
        let mut last = BTreeMap::new();
        let Ok(mut request) = api.request(v1::WatchSessionsRequest::default()) else {
            return;
        };
        request.metadata_mut().remove("grpc-timeout");
        if let Ok(stream) = api.sessions.clone().watch_sessions(request).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(told)) = stream.message().await {
                watched.with(|seen| match told.update {
                    Some(Update::Reset(_)) => {
                        seen.resets += 1;
                        seen.live.insert(manager, BTreeSet::new());
                        last.clear();
                    }
                    Some(Update::Session(session)) => {
                        seen.session(manager, &session);
                        if let Some(event) = &told.event {
                            seen.event(&mut last, &session.id, event);
                        }
                    }
                    None => seen.wrong.push("an empty update".to_owned()),
                });
            }
        }
        watched.with(|seen| seen.live.remove(&manager));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything that was acknowledged is there, at each manager and proxy.
pub(super) async fn settled(
    churn: &Churn,
    shared: &Arc<Shared>,
    watched: &Watched,
    deeds: &[Deed],
    engine: Option<&String>,
) -> Result<()> {
    for deed in deeds {
        let managers = [
            churn.api_at(deed.who, 0, shared)?,
            churn.api_at(deed.who, 1, shared)?,
        ];
        let mut last = None;
        for api in &managers {
            let session = api.describe(&deed.id).await?;
            ensure!(session.name == deed.name, "renamed {:?}: {session:?}", deed.name);
            match session.status() {
                SessionStatus::Closed => ensure!(deed.closed, "nobody closed it: {session:?}"),
                SessionStatus::Active | SessionStatus::Idle => {
                    ensure!(!deed.closed, "it was closed: {session:?}");
                }
                SessionStatus::Pending | SessionStatus::Failed | SessionStatus::Unspecified => {
                    anyhow::bail!("it is not settled: {session:?}")
                }
            }
            ensure!(session.generation == 1, "its server never went away: {session:?}");
            last = Some(session);
        }
        let session = last.context("a manager")?;
        let versions: Vec<u64> = managers[0]
            .events(&deed.id)
            .await?
            .iter()
            .map(|event| event.version)
            .collect();
        let newest = versions.last().copied().unwrap_or_default();
        let from = newest.saturating_sub(HISTORY - 1).max(1);
        ensure!(
            newest >= session.version && versions.iter().copied().eq(from..=newest),
            "the history of {session:?} is {versions:?}"
        );
        for proxy in 0..2 {
            if deed.closed {
                let refused =
                    managers[0].is_refused(proxy, &deed.token, &deed.spark_session, Reason::SessionClosed);
                refused.await?;
                continue;
            }
            managers[0]
                .answers(proxy, &deed.token, &deed.spark_session)
                .await?;
            if let Some(revoked) = &deed.revoked {
                let refused =
                    managers[0].is_refused(proxy, revoked, &deed.spark_session, Reason::TokenRevoked);
                refused.await?;
            }
        }
        if !deed.closed {
            managers[1].close(&deed.id).await?;
        }
    }
    let olga = churn.api("olga", shared)?;
    wait::until("no other session is left", SETTLED, async || {
        let live = olga.live().await.map_err(|error| format!("{error:#}"))?;
        if live.iter().all(|id| Some(id) == engine) {
            Ok(())
        } else {
            Err(format!("{live:?}"))
        }
    })
    .await?;
    // Not each end: whoever begins anew is told what is live, and nothing more.
    let last = olga.create("the last one").await?;
    let mut live: BTreeSet<String> = engine.into_iter().cloned().collect();
    live.insert(last.clone());
    sees(watched, &live).await?;
    olga.close(&last).await?;
    live.remove(&last);
    sees(watched, &live).await?;
    let wrong = watched.with(|seen| seen.wrong.clone());
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Both watchers come to see that just these sessions are live.
async fn sees(watched: &Watched, live: &BTreeSet<String>) -> Result<()> {
    wait::until("the watchers see what is live", SETTLED, async || {
        let seen = watched.with(|seen| seen.live.clone());
        if seen.len() == 2 && seen.values().all(|seen| seen == live) {
            Ok(())
        } else {
            Err(format!("{seen:?} instead of {live:?}"))
        }
    })
    .await
}
