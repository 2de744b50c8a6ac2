//! The change feed, and how recently it was read to its end.

use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use session_core::{EventRecord, SessionKey};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Progress of a change feed, shared with the consumer that forwards its changes:
/// proves that no change is missing.
#[derive(Debug, Clone, Default)]
pub struct FeedProgress(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Time at which each part of the feed was last read to its end.
    parts: Vec<Option<Instant>>,
    /// The feed is in this process and cannot fall behind.
    in_process: bool,
}

/// Records the progress of one part of a feed.
#[derive(Debug)]
pub(crate) struct PartProgress {
    of: FeedProgress,
    part: usize,
}

/// A change of a session, as published to every replica.
#[derive(Debug, Clone)]
pub struct Change {
    /// The session.
    pub key: SessionKey,
    /// The event; its `version` orders the changes of one session.
    pub record: EventRecord,
    /// Tokens of a lower epoch are revoked.
    pub token_epoch: u64,
}

/// An item of the change feed.
#[derive(Debug, Clone)]
pub enum Feed {
    /// A session changed.
    Change(Box<Change>),
    /// Changes may have been missed: the reader must read all state again.
    Reset,
}

/// The ordered stream of all changes of the store.
#[async_trait]
pub trait ChangeFeed {
    /// Streams every change from now on, of all organizations, in version order for
    /// each session. Starts with [`Feed::Reset`] and repeats it after a gap. Ends only
    /// with the store.
    fn changes(&self) -> BoxStream<'static, Feed> {
        self.changes_with_progress(&FeedProgress::default())
    }

    /// [`crate::ChangeFeed::changes`] that also records how recently the store was
    /// read, to distinguish a quiet feed from a broken one.
    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed>;
}

impl FeedProgress {
    /// Returns whether every part of the feed was read to its end within the last
    /// `age`, and all changes of that read were consumed.
    pub fn is_read_within(&self, age: Duration) -> bool {
        let state = self.state();
        let is_recent = |read: &Option<Instant>| read.is_some_and(|at| at.elapsed() <= age);
        state.in_process || (!state.parts.is_empty() && state.parts.iter().all(is_recent))
    }

    pub(crate) fn part(&self) -> PartProgress {
        let mut state = self.state();
        state.parts.push(None);
        PartProgress {
            of: self.clone(),
            part: state.parts.len() - 1,
        }
    }

    pub(crate) fn in_process(&self) {
        self.state().in_process = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl PartProgress {
    /// Records that the part was read to its end at `at`.
    pub(crate) fn read(&self, at: Instant) {
        if let Some(part) = self.of.state().parts.get_mut(self.part) {
            *part = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_read_when_every_part_is() {
        const AGE: Duration = Duration::from_secs(2);
        let progress = FeedProgress::default();
        assert!(!progress.is_read_within(AGE), "nothing was read");
        let parts = [progress.part(), progress.part()];
        parts[0].read(Instant::now());
        assert!(!progress.is_read_within(AGE), "one part was not read");
        parts[1].read(Instant::now());
        assert!(progress.is_read_within(AGE));
        tokio::time::advance(AGE * 2).await;
        parts[0].read(Instant::now());
        assert!(!progress.is_read_within(AGE), "one part stands still");
        let in_process = FeedProgress::default();
        in_process.in_process();
        assert!(in_process.is_read_within(Duration::ZERO));
    }
}
