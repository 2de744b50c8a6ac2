//! Fan-out of the store's change feed: one reader, many subscribers in this process.
//!
//! Streams (WatchRoutes) receive every change; waiters (ResolveRoute,
//! DescribeSession) are notified of one session. A subscriber that falls too far
//! behind receives a reset, because it cannot determine which changes it missed.

use futures::StreamExt;
use parking_lot::Mutex;
use session_core::SessionKey;
use session_store::{Feed, FeedProgress, SessionStore};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

/// Changes that a slow subscriber may lag behind before it receives a reset.
const MAX_BACKLOG: usize = 8192;

/// Distributes the change feed within this process.
#[derive(Debug)]
pub(crate) struct ChangeFanOut {
    all: broadcast::Sender<Feed>,
    waiters: Mutex<HashMap<SessionKey, Arc<Notify>>>,
    progress: FeedProgress,
}

/// Subscription to changes of one session; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    fan_out: &'a ChangeFanOut,
    key: SessionKey,
    notify: Option<Arc<Notify>>,
}

impl ChangeFanOut {
    pub(crate) fn new() -> Self {
        Self {
            all: broadcast::Sender::new(MAX_BACKLOG),
            waiters: Mutex::default(),
            progress: FeedProgress::default(),
        }
    }

    /// Reads the store's feed until cancelled.
    pub(crate) async fn run(&self, store: Arc<dyn SessionStore>, stop: CancellationToken) {
        let mut changes = store.changes_with_progress(&self.progress);
        loop {
            let feed = tokio::select! {
                () = stop.cancelled() => return,
                feed = changes.next() => feed,
            };
            match feed {
                Some(feed) => self.publish(feed),
                None => return,
            }
        }
    }

    fn publish(&self, feed: Feed) {
        {
            let waiters = self.waiters.lock();
            match &feed {
                Feed::Change(change) => {
                    if let Some(notify) = waiters.get(&change.key) {
                        notify.notify_waiters();
                    }
                }
                Feed::Reset => waiters.values().for_each(|notify| notify.notify_waiters()),
            }
        }
        // An error only means that there is no subscriber.
        let _ = self.all.send(feed);
    }

    /// Whether the store's feed was read to its end within the last `age`, and
    /// every change was published.
    pub(crate) fn is_read_within(&self, age: Duration) -> bool {
        self.progress.is_read_within(age)
    }

    /// All changes from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Feed> {
        self.all.subscribe()
    }

    /// Subscribes to changes of one session. Call this, then [`Waiter::changed`],
    /// then read the session, then await the future: no change is missed.
    pub(crate) fn wait_for(&self, key: &SessionKey) -> Waiter<'_> {
        let mut waiters = self.waiters.lock();
        let notify = waiters.entry(key.clone()).or_default().clone();
        Waiter {
            fan_out: self,
            key: key.clone(),
            notify: Some(notify),
        }
    }
}

impl Waiter<'_> {
    /// Completes at the next change after this call, even if first polled later.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + '_ {
        let notified = self.notify.as_ref().map(|notify| notify.notified());
        async move {
            match notified {
                Some(notified) => notified.await,
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiters = self.fan_out.waiters.lock();
        drop(self.notify.take());
        if waiters
            .get(&self.key)
            .is_some_and(|notify| Arc::strong_count(notify) == 1)
        {
            waiters.remove(&self.key);
        }
    }
}
