//! What this proxy knows of the operations of one session on Sail, for all its
//! workers: have results gone out, was it interrupted, and is a stream of it
//! open?
//!
//! A client whose connection was cut comes back by `ReattachExecute`, on any
//! connection. Sail's own reattach loses rows once results have gone out or
//! while an older stream is open (measured with Sail 0.7.2). Before that it is
//! exact. So a reattach passes only if this proxy carried the operation from
//! its begin, nothing but heartbeats went out, and the older stream has ended.

use crate::grpc::identity::SparkSessionId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Operations of one session that are remembered; the longest untouched make room.
const MAX_OPERATIONS: usize = 256;
/// An operation without a stream is remembered for so long: PySpark 4.3, the
/// most patient client, retries for an hour.
const REMEMBER: Duration = Duration::from_secs(3600);
/// How long the end of an older stream may take.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The operations of one session.
#[derive(Default)]
pub(crate) struct Operations {
    known: Mutex<HashMap<Key, Arc<Operation>>>,
}

/// Operation ids are the client's own: they mean something within one Spark
/// session on one generation of compute.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    generation: u64,
    spark_session: SparkSessionId,
    operation: Box<str>,
}

/// One operation.
#[derive(Default)]
struct Operation {
    has_results: AtomicBool,
    interrupted: AtomicBool,
    /// The stream that is open, by a number of its own, and what ends it.
    stream: Mutex<Option<(u64, CancellationToken)>>,
    streams: AtomicU64,
    stream_ended: Notify,
    touched: Mutex<Option<Instant>>,
}

/// Whether a client may reattach to an operation on Sail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reattach {
    /// Nothing is lost.
    Exact,
    /// Results went out, or this proxy did not see whether.
    WouldLoseResults,
    /// It was interrupted and goes on nowhere.
    Interrupted,
}

/// A stream of an operation, from its begin to its end.
pub(crate) struct Stream {
    operation: Arc<Operation>,
    number: u64,
    /// Cancelled when another stream takes over.
    pub(crate) superseded: CancellationToken,
}

impl Operations {
    fn get(
        &self,
        generation: u64,
        spark_session: &SparkSessionId,
        operation: &str,
    ) -> Option<Arc<Operation>> {
        let key = Key::new(generation, spark_session, operation);
        self.known.lock().get(&key).cloned()
    }

    fn entry(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) -> Arc<Operation> {
        let mut known = self.known.lock();
        if known.len() >= MAX_OPERATIONS {
            known.retain(|_, operation| !operation.is_stale(REMEMBER));
        }
        if known.len() >= MAX_OPERATIONS {
            let oldest = known
                .values()
                .filter_map(|operation| operation.idle_since())
                .min();
            known.retain(|_, operation| operation.idle_since().is_none_or(|since| Some(since) != oldest));
        }
        Arc::clone(
            known
                .entry(Key::new(generation, spark_session, operation))
                .or_default(),
        )
    }

    /// A stream of the operation begins: of its `ExecutePlan`, or of a reattach.
    pub(crate) fn begin(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) -> Stream {
        let operation = self.entry(generation, spark_session, operation);
        let superseded = CancellationToken::new();
        let number = operation.streams.fetch_add(1, Relaxed);
        *operation.stream.lock() = Some((number, superseded.clone()));
        Stream {
            operation,
            number,
            superseded,
        }
    }

    /// The engine says that it interrupted the operation.
    pub(crate) fn interrupted(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) {
        let operation = self.entry(generation, spark_session, operation);
        operation.touch();
        operation.interrupted.store(true, Relaxed);
    }

    /// May a client that saw some of the response reattach? An older stream of
    /// the operation is ended first, wherever in this proxy it is.
    pub(crate) async fn reattach(
        &self,
        generation: u64,
        spark_session: &SparkSessionId,
        operation: &str,
    ) -> Reattach {
        let Some(operation) = self.get(generation, spark_session, operation) else {
            return Reattach::WouldLoseResults;
        };
        let is_free = operation.take_over().await;
        if operation.interrupted.load(Relaxed) {
            Reattach::Interrupted
        } else if !is_free || operation.has_results.load(Relaxed) {
            Reattach::WouldLoseResults
        } else {
            Reattach::Exact
        }
    }
}

impl Key {
    fn new(generation: u64, spark_session: &SparkSessionId, operation: &str) -> Self {
        Self {
            generation,
            spark_session: *spark_session,
            operation: operation.into(),
        }
    }
}

impl Operation {
    fn touch(&self) {
        *self.touched.lock() = Some(Instant::now());
    }

    /// Since when no stream of it is open; `None` while one is.
    fn idle_since(&self) -> Option<Instant> {
        if self.stream.lock().is_some() {
            return None;
        }
        *self.touched.lock()
    }

    fn is_stale(&self, after: Duration) -> bool {
        self.idle_since().is_some_and(|since| since.elapsed() >= after)
    }

    /// Ends the stream that is open and waits for its end; false if that takes too long.
    async fn take_over(&self) -> bool {
        let until = Instant::now() + TAKE_OVER_TIMEOUT;
        loop {
            let ended = self.stream_ended.notified();
            match &*self.stream.lock() {
                None => return true,
                Some((_, stream)) => stream.cancel(),
            }
            if tokio::time::timeout_at(until, ended).await.is_err() {
                return false;
            }
        }
    }
}

impl Stream {
    /// Results were read from the engine: from now on a cut may lose some.
    pub(crate) fn has_results(&self) {
        self.operation.has_results.store(true, Relaxed);
    }

    /// The engine ended it as interrupted.
    pub(crate) fn interrupted(&self) {
        self.operation.interrupted.store(true, Relaxed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.operation.touch();
        let mut stream = self.operation.stream.lock();
        if stream.as_ref().is_some_and(|(number, _)| *number == self.number) {
            *stream = None;
        }
        drop(stream);
        self.operation.stream_ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATION: &str = "operation";

    fn spark_session() -> SparkSessionId {
        "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap()
    }

    #[tokio::test]
    async fn only_an_operation_without_results_can_be_reattached_exactly() {
        let operations = Operations::default();
        let id = spark_session();
        assert_eq!(
            operations.reattach(1, &id, OPERATION).await,
            Reattach::WouldLoseResults,
            "unknown here"
        );
        drop(operations.begin(1, &id, OPERATION));
        assert_eq!(operations.reattach(1, &id, OPERATION).await, Reattach::Exact);
        assert_eq!(
            operations.reattach(2, &id, OPERATION).await,
            Reattach::WouldLoseResults,
            "of another generation"
        );
        operations.begin(1, &id, OPERATION).has_results();
        assert_eq!(
            operations.reattach(1, &id, OPERATION).await,
            Reattach::WouldLoseResults
        );
        operations.interrupted(1, &id, OPERATION);
        assert_eq!(
            operations.reattach(1, &id, OPERATION).await,
            Reattach::Interrupted
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_stream_ends_before_a_newer_one_begins() {
        let operations = Arc::new(Operations::default());
        let id = spark_session();
        let older = operations.begin(1, &id, OPERATION);
        let waiting = tokio::spawn({
            let operations = Arc::clone(&operations);
            async move { operations.reattach(1, &id, OPERATION).await }
        });
        older.superseded.cancelled().await;
        assert!(!waiting.is_finished());
        older.has_results();
        drop(older);
        assert_eq!(
            waiting.await.unwrap(),
            Reattach::WouldLoseResults,
            "in the last moment"
        );

        let stuck = operations.begin(1, &id, "stuck");
        assert_eq!(
            operations.reattach(1, &id, "stuck").await,
            Reattach::WouldLoseResults,
            "it does not end"
        );
        drop(stuck);
        assert_eq!(operations.reattach(1, &id, "stuck").await, Reattach::Exact);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_open_streams_stay() {
        let operations = Operations::default();
        let id = spark_session();
        let open = operations.begin(1, &id, "open");
        for count in 0..2 * MAX_OPERATIONS {
            drop(operations.begin(1, &id, &count.to_string()));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(operations.known.lock().len() <= MAX_OPERATIONS);
        drop(open);
        assert_eq!(operations.reattach(1, &id, "open").await, Reattach::Exact);
        assert_eq!(
            operations.reattach(1, &id, "0").await,
            Reattach::WouldLoseResults,
            "forgotten"
        );
    }
}
