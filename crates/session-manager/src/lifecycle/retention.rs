//! Deletes ended sessions after their retention. Every manager does so, in small
//! idempotent steps.

use session_store::{SessionStore, Tombstones};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two runs.
const INTERVAL: Duration = Duration::from_secs(60);
/// Sessions that one step deletes.
const BATCH: usize = 200;
/// Pause between two steps of a run, for other work of the store.
const PAUSE: Duration = Duration::from_millis(100);

/// Deletes ended sessions until `stop`.
pub(crate) async fn run(store: Arc<dyn SessionStore>, stop: CancellationToken) {
    let keep = Tombstones::default();
    loop {
        let wait = match store.trim_ended(&keep, BATCH).await {
            Ok(deleted) if deleted >= BATCH => PAUSE,
            Ok(deleted) => {
                if deleted > 0 {
                    tracing::info!(deleted, "ended sessions deleted after their retention");
                }
                INTERVAL
            }
            Err(error) => {
                tracing::warn!(%error, "deleting ended sessions failed");
                INTERVAL
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
    use crate::fixtures::{self, NOW};
    use session_core::machine::{self, Event};
    use session_core::time::ManualClock;
    use session_core::{Actor, ChangeReason};
    use session_store::Commit;
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test(start_paused = true)]
    async fn a_session_is_listed_for_a_week_after_its_end() {
        let clock = Arc::new(ManualClock::at(NOW));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let new = fixtures::new_session(1, &fixtures::cluster(), NOW);
        let session = fixtures::create(&store, new, NOW).await;
        let close = Event::Close {
            reason: ChangeReason::CloseRequested,
        };
        let closed = machine::apply(&session, &close, &Actor::System, NOW)
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
        tokio::time::sleep(INTERVAL * 2).await;
        assert!(store.get(&session.key()).await.unwrap().is_some());
        clock.advance(Duration::from_millis(1));
        tokio::time::sleep(INTERVAL * 2).await;
        assert!(store.get(&session.key()).await.unwrap().is_none());
        stop.cancel();
        task.await.unwrap();
    }
}
