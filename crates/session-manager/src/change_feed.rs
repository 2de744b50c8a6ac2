//! One reader of the store's change feed, many listeners in this process.
//!
//! Streams (WatchRoutes) hear everything; waiters (ResolveRoute,
//! DescribeSession) hear of one session. A listener that falls behind is told
//! to reset rather than left to guess what it missed.

use futures::StreamExt;
use parking_lot::Mutex;
use session_core::SessionKey;
use session_store::{Feed, FeedProgress, SessionStore};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

/// Changes that a slow listener may lag behind before it is told to reset.
const BACKLOG: usize = 8192;

/// Spreads the change feed within this process.
#[derive(Debug)]
pub(crate) struct ChangeFanOut {
    all: broadcast::Sender<Feed>,
    waiters: Mutex<HashMap<SessionKey, Arc<Notify>>>,
    progress: FeedProgress,
}

/// Interest in one session; ends with its value.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    fan_out: &'a ChangeFanOut,
    key: SessionKey,
    notify: Option<Arc<Notify>>,
}

impl ChangeFanOut {
    pub(crate) fn new() -> Self {
        Self {
            all: broadcast::Sender::new(BACKLOG),
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
        // Nobody listening is fine.
        let _ = self.all.send(feed);
    }

    /// Was the store's feed read to its end within the last `age`, and all of
    /// it passed on?
    pub(crate) fn is_read_within(&self, age: Duration) -> bool {
        self.progress.is_read_within(age)
    }

    /// Everything from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Feed> {
        self.all.subscribe()
    }

    /// Interest in one session. Take it, get the future, then read the
    /// session, then wait: so no change between is missed.
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
    /// Completes at the next change after this call, polled or not.
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
