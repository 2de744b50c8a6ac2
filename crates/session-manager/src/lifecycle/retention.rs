//! Forgets ended sessions that are no longer kept. Every manager does it, each
//! in small steps that another one may have done already.

use session_store::{SessionStore, Tombstones};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often.
const PERIOD: Duration = Duration::from_secs(60);
/// How many are forgotten before the store gets a moment for others.
const BATCH: usize = 200;
/// The moment.
const PAUSE: Duration = Duration::from_millis(100);

/// Forgets until cancelled.
pub(crate) async fn run(store: Arc<dyn SessionStore>, stop: CancellationToken) {
    let keep = Tombstones::default();
    loop {
        let wait = match store.trim_ended(&keep, BATCH).await {
            Ok(forgotten) if forgotten >= BATCH => PAUSE,
            Ok(forgotten) => {
                if forgotten > 0 {
                    tracing::info!(forgotten, "ended sessions are no longer listed");
                }
                PERIOD
            }
            Err(error) => {
                tracing::warn!(%error, "ended sessions cannot be looked through");
                PERIOD
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::machine::{self, Event, NewSession};
    use session_core::time::ManualClock;
    use session_core::{Actor, ChangeReason, IdlePolicy, Limits, SessionId, SessionPolicy, Timestamp};
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;
    use session_store::{Commit, Create};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test(start_paused = true)]
    async fn a_session_is_listed_for_a_week_after_its_end() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let clock = Arc::new(ManualClock::at(now));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let new = NewSession {
            id: SessionId::generate(now, 1),
            org: "acme".parse().unwrap(),
            owner: "sa|bob".parse().unwrap(),
            name: None,
            team: None,
            labels: std::collections::BTreeMap::new(),
            cluster: "c".parse().unwrap(),
            catalog: None,
            policy: SessionPolicy {
                idle_timeout: DAY,
                close_after_idle: DAY,
                max_lifetime: DAY,
                provisioning_deadline: DAY,
                on_idle: IdlePolicy::Release,
                wake: Default::default(),
                dedicated: true,
            },
        };
        let made = machine::create(new, now);
        let created = store.create(Create {
            session: made.session,
            record: made.record,
            due: now,
            request: None,
            limits: Limits::default(),
        });
        let session = created.await.unwrap().session;
        let close = Event::Close {
            reason: ChangeReason::CloseRequested,
        };
        let closed = machine::apply(&session, &close, &Actor::System, now)
            .unwrap()
            .unwrap();
        let commit = Commit {
            session: closed.session,
            record: closed.record,
            due: None,
        };
        store.commit(commit).await.unwrap();

        let stop = CancellationToken::new();
        let task = tokio::spawn(run(Arc::clone(&store) as _, stop.clone()));
        clock.advance(DAY * 7 - Duration::from_millis(1));
        tokio::time::sleep(PERIOD * 2).await;
        assert!(store.get(&session.key()).await.unwrap().is_some());
        clock.advance(Duration::from_millis(1));
        tokio::time::sleep(PERIOD * 2).await;
        assert!(store.get(&session.key()).await.unwrap().is_none());
        stop.cancel();
        task.await.unwrap();
    }
}
