//! The change feed: the streams of all partitions, read as one on dedicated
//! connections.
//!
//! A reader stores the id of the last entry that it read of every stream. While that
//! entry exists, all later ones exist too, because trimming deletes the oldest first,
//! so the reader continues. If the entry is deleted, or the store epoch increased and
//! the last writes may be lost, the feed sends `Reset` and continues from the present.
//! Readers pull: a slow one falls behind and resets; it never makes the store buffer
//! anything for it.
//!
//! One server is read with one command for all streams. In a cluster each stream is
//! read separately, because it can be on any node and can move.

use super::RedisStore;
use super::connection::{Connections, Dedicated};
use super::decode;
use super::sessions::STREAM_LENGTH;
use crate::change_feed::PartProgress;
use crate::redis::safety::epoch::Epoch;
use crate::redis::schema::keys::{Keys, Slot, parse_member, partitions};
use crate::{Change, ChangeFeed, Error, Feed, FeedProgress};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Time for which a read blocks before the reader verifies its position.
const BLOCK: Duration = Duration::from_secs(1);
/// Maximum entries per stream in one read: fewer than a stream keeps, so a read that is
/// not full has missed nothing.
const READ_COUNT: usize = 500;
const _: () = assert!(READ_COUNT < STREAM_LENGTH);
/// The position before the first entry of a stream.
const BEGINNING: &str = "0-0";
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Window in which the `Reset`s of several readers become one.
const RESET_WINDOW: Duration = Duration::from_millis(100);

/// Streams every change from now on; see [`crate::ChangeFeed::changes_with_progress`].
pub(super) fn changes(
    connections: &Arc<Connections>,
    keys: &Arc<Keys>,
    epoch: &Arc<Epoch>,
    progress: &FeedProgress,
) -> BoxStream<'static, Feed> {
    let reader = |partitions: Vec<u8>| Reader {
        connections: Arc::clone(connections),
        slot: Slot::Partition(partitions.first().copied().unwrap_or_default()),
        streams: partitions
            .into_iter()
            .map(|partition| keys.changes(partition))
            .collect(),
        epoch: Arc::clone(epoch),
        epochs: epoch.subscribe(),
        connection: None,
        position: None,
        ready: VecDeque::new(),
        progress: progress.part(),
        read_at: None,
        backoff: MIN_BACKOFF,
    };
    let read = |reader: Reader| {
        futures::stream::unfold(reader, async |mut reader| Some((reader.next().await, reader))).boxed()
    };
    if connections.is_one_server() {
        read(reader(partitions().collect()))
    } else {
        let each = partitions().map(|partition| read(reader(vec![partition])));
        merge_resets(futures::stream::select_all(each).boxed())
    }
}

/// Merges `Reset`s within [`RESET_WINDOW`] into one. Changes between them are dropped,
/// because the consumer reads all state again anyway.
fn merge_resets(feed: BoxStream<'static, Feed>) -> BoxStream<'static, Feed> {
    futures::stream::unfold(feed, async |mut feed| {
        let first = feed.next().await?;
        if matches!(first, Feed::Reset) {
            let until = Instant::now() + RESET_WINDOW;
            while let Ok(Some(_)) = timeout_at(until, feed.next()).await {}
        }
        Some((first, feed))
    })
    .boxed()
}

struct Reader {
    connections: Arc<Connections>,
    /// Slot of its streams.
    slot: Slot,
    streams: Vec<String>,
    epoch: Arc<Epoch>,
    epochs: watch::Receiver<u64>,
    connection: Option<Dedicated>,
    position: Option<Position>,
    ready: VecDeque<Feed>,
    progress: PartProgress,
    /// Time of the read that filled `ready`.
    read_at: Option<Instant>,
    backoff: Duration,
}

/// Position of a reader.
struct Position {
    /// Store epoch of the read.
    epoch: u64,
    /// Id of the last entry that was read of every stream.
    last: Vec<String>,
}

impl Reader {
    async fn next(&mut self) -> Feed {
        loop {
            if let Some(feed) = self.ready.pop_front() {
                return feed;
            }
            // All changes of the last read were consumed.
            if let Some(at) = self.read_at.take() {
                self.progress.read(at);
            }
            match self.advance().await {
                Ok(()) => {
                    self.read_at = Some(Instant::now());
                    self.backoff = MIN_BACKOFF;
                }
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?self.backoff, "reading the change feed failed");
                    tokio::time::sleep(self.backoff).await;
                    self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<(), Error> {
        // The connection is stored again only after success: a failed one is dropped,
        // and so is one to a server that may no longer be the right one.
        let epoch = *self.epochs.borrow_and_update();
        let up_to_date = self
            .position
            .as_ref()
            .is_some_and(|position| position.epoch >= epoch);
        let connection = match self.connection.take().filter(|_| up_to_date) {
            None => self.connect().await?,
            Some(mut connection) => {
                self.read(&mut connection).await?;
                connection
            }
        };
        self.connection = Some(connection);
        Ok(())
    }

    /// Connects, and verifies that the position of the reader is still valid.
    async fn connect(&mut self) -> Result<Dedicated, Error> {
        let mut connection = self.connections.dedicated(self.slot).await?;
        let epoch = self.epoch.current().await?;
        let intact = match &self.position {
            Some(position) => {
                position.epoch == epoch && is_intact(&mut connection, &self.streams, &position.last).await?
            }
            None => false,
        };
        if !intact {
            self.reset_to_present(&mut connection, epoch).await?;
        }
        Ok(connection)
    }

    /// Sets the position to the newest entries and queues a `Reset`, which covers all
    /// earlier changes.
    async fn reset_to_present(&mut self, connection: &mut Dedicated, epoch: u64) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        for stream in &self.streams {
            pipeline
                .cmd("XREVRANGE")
                .arg(stream)
                .arg("+")
                .arg("-")
                .arg("COUNT")
                .arg(1);
        }
        let newest: Vec<StreamRangeReply> = connection.pipeline(&pipeline, Duration::ZERO).await?;
        let last = newest.into_iter().map(|reply| {
            reply
                .ids
                .into_iter()
                .next()
                .map_or_else(|| BEGINNING.to_owned(), |entry| entry.id)
        });
        self.position = Some(Position {
            epoch,
            last: last.collect(),
        });
        self.ready.push_back(Feed::Reset);
        Ok(())
    }

    async fn read(&mut self, connection: &mut Dedicated) -> Result<(), Error> {
        let Some(position) = &mut self.position else {
            return Ok(());
        };
        let mut cmd = redis::cmd("XREAD");
        cmd.arg("COUNT")
            .arg(READ_COUNT)
            .arg("BLOCK")
            .arg(u64::try_from(BLOCK.as_millis()).unwrap_or(0));
        cmd.arg("STREAMS").arg(&self.streams).arg(&position.last);
        let reply: Option<StreamReadReply> = connection.query(&cmd, BLOCK).await?;
        let streams = reply.map(|reply| reply.keys).unwrap_or_default();

        // Streams keep more entries than one read returns, so a read that is not full
        // has missed none. After a full or an empty read the position is verified.
        let doubtful = streams.is_empty() || streams.iter().any(|stream| stream.ids.len() >= READ_COUNT);
        if doubtful && !is_intact(connection, &self.streams, &position.last).await? {
            let epoch = position.epoch;
            return self.reset_to_present(connection, epoch).await;
        }
        for stream in streams {
            let Some(i) = self.streams.iter().position(|name| *name == stream.key) else {
                continue;
            };
            for entry in stream.ids {
                self.ready.push_back(match change_of(&entry) {
                    Ok(change) => Feed::Change(Box::new(change)),
                    Err(error) => {
                        tracing::error!(%error, entry = entry.id, "decoding an entry of the change feed failed");
                        Feed::Reset
                    }
                });
                position.last[i] = entry.id;
            }
        }
        Ok(())
    }
}

/// Returns whether the last read entry of every stream still exists. A stream without a
/// read entry must not have been trimmed yet.
async fn is_intact(connection: &mut Dedicated, streams: &[String], last: &[String]) -> Result<bool, Error> {
    let mut pipeline = redis::pipe();
    for (stream, id) in streams.iter().zip(last) {
        if id == BEGINNING {
            pipeline.cmd("XLEN").arg(stream);
        } else {
            pipeline.cmd("XRANGE").arg(stream).arg(id).arg(id);
        }
    }
    let replies: Vec<redis::Value> = connection.pipeline(&pipeline, Duration::ZERO).await?;
    Ok(replies.iter().all(|reply| match reply {
        redis::Value::Int(length) => usize::try_from(*length).is_ok_and(|n| n < STREAM_LENGTH),
        redis::Value::Array(entries) => !entries.is_empty(),
        _ => false,
    }))
}

fn change_of(entry: &StreamId) -> Result<Change, Error> {
    let field = |name: &str| {
        let value: Option<String> = entry.get(name);
        value.ok_or_else(|| Error::Corrupt(format!("a change has no {name}")))
    };
    Ok(Change {
        key: parse_member(&field("session")?)?,
        record: decode(&field("event")?)?,
        token_epoch: decode(&field("token_epoch")?)?,
    })
}

#[async_trait]
impl ChangeFeed for RedisStore {
    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        changes(&self.connections, &self.keys, &self.epoch, progress)
    }
}
