//! The change feed: the partitions' streams read as one, on connections of
//! their own.
//!
//! A reader knows the last entry it has seen of every stream. As long as that
//! entry is still there, everything after it is too (trimming takes the oldest
//! first), so the reader just goes on. When it is gone, or the store epoch rose
//! and the last moments may be lost, the feed says `Reset` and goes on from the
//! present. Readers pull: one that is slow falls behind and resets, it never
//! makes the store hold anything for it.
//!
//! One server is asked for all streams at once. In a cluster each stream is
//! asked for alone, because it may be anywhere and may move.

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

/// How long a read waits for the next change before it checks its place.
const BLOCK: Duration = Duration::from_secs(1);
/// Entries that one read takes of each stream: fewer than streams keep, so a
/// read that is not full has missed nothing.
const READ_COUNT: usize = 500;
const _: () = assert!(READ_COUNT < STREAM_LENGTH);
/// The place before the first entry of a stream.
const BEGINNING: &str = "0-0";
const LEAST_BACKOFF: Duration = Duration::from_millis(50);
const MOST_BACKOFF: Duration = Duration::from_secs(2);
/// Readers that begin or reset together within this make one `Reset`.
const TOGETHER: Duration = Duration::from_millis(100);

/// Every change from now on; see [`crate::ChangeFeed::changes_with_progress`].
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
        known: epoch.subscribe(),
        link: None,
        place: None,
        ready: VecDeque::new(),
        progress: progress.part(),
        read_at: None,
        backoff: LEAST_BACKOFF,
    };
    let read = |reader: Reader| {
        futures::stream::unfold(reader, async |mut reader| Some((reader.next().await, reader))).boxed()
    };
    if connections.is_one_server() {
        read(reader(partitions().collect()))
    } else {
        let each = partitions().map(|partition| read(reader(vec![partition])));
        one_reset(futures::stream::select_all(each).boxed())
    }
}

/// Makes one `Reset` of those that come together. What else comes with them is
/// read anew after it anyway.
fn one_reset(feed: BoxStream<'static, Feed>) -> BoxStream<'static, Feed> {
    futures::stream::unfold(feed, async |mut feed| {
        let first = feed.next().await?;
        if matches!(first, Feed::Reset) {
            let until = Instant::now() + TOGETHER;
            while let Ok(Some(_)) = timeout_at(until, feed.next()).await {}
        }
        Some((first, feed))
    })
    .boxed()
}

struct Reader {
    connections: Arc<Connections>,
    /// Where its streams are.
    slot: Slot,
    streams: Vec<String>,
    epoch: Arc<Epoch>,
    known: watch::Receiver<u64>,
    link: Option<Dedicated>,
    place: Option<Place>,
    ready: VecDeque<Feed>,
    progress: PartProgress,
    /// When what is ready was read.
    read_at: Option<Instant>,
    backoff: Duration,
}

/// How far a reader has come.
struct Place {
    /// The life of the store that it read.
    epoch: u64,
    /// The last entry seen of every stream.
    last: Vec<String>,
}

impl Reader {
    async fn next(&mut self) -> Feed {
        loop {
            if let Some(feed) = self.ready.pop_front() {
                return feed;
            }
            // All that was read has been taken.
            if let Some(at) = self.read_at.take() {
                self.progress.read(at);
            }
            match self.advance().await {
                Ok(()) => {
                    self.read_at = Some(Instant::now());
                    self.backoff = LEAST_BACKOFF;
                }
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?self.backoff, "the change feed was interrupted");
                    tokio::time::sleep(self.backoff).await;
                    self.backoff = (self.backoff * 2).min(MOST_BACKOFF);
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<(), Error> {
        // The link is put back only after success: a failed one is dropped, and
        // so is one to a server that may no longer be the right one.
        let epoch = *self.known.borrow_and_update();
        let up_to_date = self.place.as_ref().is_some_and(|place| place.epoch >= epoch);
        let link = match self.link.take().filter(|_| up_to_date) {
            None => self.connect().await?,
            Some(mut link) => {
                self.read(&mut link).await?;
                link
            }
        };
        self.link = Some(link);
        Ok(())
    }

    /// Connects, and finds out whether the reader's place is still good.
    async fn connect(&mut self) -> Result<Dedicated, Error> {
        let mut link = self.connections.dedicated(self.slot).await?;
        let epoch = self.epoch.current().await?;
        let intact = match &self.place {
            Some(place) => place.epoch == epoch && is_intact(&mut link, &self.streams, &place.last).await?,
            None => false,
        };
        if !intact {
            self.start_over(&mut link, epoch).await?;
        }
        Ok(link)
    }

    /// Takes the present as the new place. What is written after this reads the
    /// streams will be seen; what was written before is what `Reset` is for.
    async fn start_over(&mut self, link: &mut Dedicated, epoch: u64) -> Result<(), Error> {
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
        let newest: Vec<StreamRangeReply> = link.pipeline(&pipeline, Duration::ZERO).await?;
        let last = newest.into_iter().map(|reply| {
            reply
                .ids
                .into_iter()
                .next()
                .map_or_else(|| BEGINNING.to_owned(), |entry| entry.id)
        });
        self.place = Some(Place {
            epoch,
            last: last.collect(),
        });
        self.ready.push_back(Feed::Reset);
        Ok(())
    }

    async fn read(&mut self, link: &mut Dedicated) -> Result<(), Error> {
        let Some(place) = &mut self.place else {
            return Ok(());
        };
        let mut cmd = redis::cmd("XREAD");
        cmd.arg("COUNT")
            .arg(READ_COUNT)
            .arg("BLOCK")
            .arg(u64::try_from(BLOCK.as_millis()).unwrap_or(0));
        cmd.arg("STREAMS").arg(&self.streams).arg(&place.last);
        let reply: Option<StreamReadReply> = link.query(&cmd, BLOCK).await?;
        let found = reply.map(|reply| reply.keys).unwrap_or_default();

        // Streams keep more entries than one read takes, so a read that came
        // back with fewer has missed none. Otherwise, and when nothing came at
        // all, the place is checked before it is given up.
        let doubtful = found.is_empty() || found.iter().any(|stream| stream.ids.len() >= READ_COUNT);
        if doubtful && !is_intact(link, &self.streams, &place.last).await? {
            let epoch = place.epoch;
            return self.start_over(link, epoch).await;
        }
        for stream in found {
            let Some(i) = self.streams.iter().position(|known| *known == stream.key) else {
                continue;
            };
            for entry in stream.ids {
                self.ready.push_back(match change_of(&entry) {
                    Ok(change) => Feed::Change(Box::new(change)),
                    Err(error) => {
                        tracing::error!(%error, entry = entry.id, "an entry of the change feed cannot be read");
                        Feed::Reset
                    }
                });
                place.last[i] = entry.id;
            }
        }
        Ok(())
    }
}

/// Is the last seen entry of every stream still there? A stream of which none
/// was seen yet must not have begun to lose entries.
async fn is_intact(link: &mut Dedicated, streams: &[String], last: &[String]) -> Result<bool, Error> {
    let mut pipeline = redis::pipe();
    for (stream, id) in streams.iter().zip(last) {
        if id == BEGINNING {
            pipeline.cmd("XLEN").arg(stream);
        } else {
            pipeline.cmd("XRANGE").arg(stream).arg(id).arg(id);
        }
    }
    let answers: Vec<redis::Value> = link.pipeline(&pipeline, Duration::ZERO).await?;
    Ok(answers.iter().all(|answer| match answer {
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
