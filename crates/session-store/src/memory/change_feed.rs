//! The change feed in memory.

use super::MemoryStore;
use crate::{ChangeFeed, Feed, FeedProgress};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_stream::wrappers::BroadcastStream;

#[async_trait]
impl ChangeFeed for MemoryStore {
    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        progress.in_process();
        let changes = BroadcastStream::new(self.feed.subscribe());
        let feed = changes.map(|feed| match feed {
            Ok(feed) => feed,
            Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(_)) => Feed::Reset,
        });
        futures::stream::iter([Feed::Reset]).chain(feed).boxed()
    }
}
