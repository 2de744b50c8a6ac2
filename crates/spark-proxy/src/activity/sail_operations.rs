//! Operations of one session on Sail, for all workers: whether results were delivered, whether the
//! operation was interrupted, and whether a stream is open.
//!
//! A disconnected client returns with `ReattachExecute` on any connection. Sail's own reattach
//! loses rows after results were sent or while an older stream is open (measured with Sail 0.7.2);
//! before that it is exact. A reattach is therefore forwarded only if this proxy carried the
//! operation from its start, delivered only heartbeats, and the older stream has ended.

use crate::grpc::identity::SparkSessionId;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Maximum number of recorded operations of one session; the least recently used are removed first.
const MAX_OPERATIONS: usize = 256;
/// Time for which an operation without a stream is recorded. PySpark 4.3, which retries longest,
/// retries for an hour.
const RETENTION: Duration = Duration::from_secs(3600);
/// Time limit for the end of an older stream.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The operations of one session. Most sessions are not on Sail, so the map is made when needed.
#[derive(Default)]
pub(crate) struct SailOperations {
    known: OnceLock<Box<Mutex<Operations>>>,
}

type Operations = HashMap<Key, Arc<Operation>>;

/// Clients choose operation ids; an id is unique within one Spark session on one generation of
/// compute.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    generation: u64,
    spark_session: SparkSessionId,
    operation: Box<str>,
}

#[derive(Default)]
struct Operation {
    has_results: AtomicBool,
    interrupted: AtomicBool,
    /// Number and cancellation token of the open stream.
    stream: Mutex<Option<(u64, CancellationToken)>>,
    streams: AtomicU64,
    stream_ended: Notify,
    touched: Mutex<Option<Instant>>,
}

/// Whether a client may reattach to an operation on Sail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reattach {
    /// No result is lost.
    Exact,
    /// Results were delivered, or this proxy cannot rule it out.
    WouldLoseResults,
    /// The operation was interrupted.
    Interrupted,
}

/// A stream of an operation, from start to end.
pub(crate) struct OperationStream {
    operation: Arc<Operation>,
    number: u64,
    /// Cancelled when a newer stream takes over.
    pub(crate) superseded: CancellationToken,
}

impl SailOperations {
    fn get(
        &self,
        generation: u64,
        spark_session: &SparkSessionId,
        operation: &str,
    ) -> Option<Arc<Operation>> {
        let key = Key::new(generation, spark_session, operation);
        self.known().get(&key).cloned()
    }

    fn known(&self) -> MutexGuard<'_, Operations> {
        self.known.get_or_init(Box::default).lock()
    }

    fn entry(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) -> Arc<Operation> {
        let mut known = self.known();
        if known.len() >= MAX_OPERATIONS {
            known.retain(|_, operation| !operation.is_stale(RETENTION));
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

    /// Begins a stream of an operation, by `ExecutePlan` or `ReattachExecute`.
    pub(crate) fn begin(
        &self,
        generation: u64,
        spark_session: &SparkSessionId,
        operation: &str,
    ) -> OperationStream {
        let operation = self.entry(generation, spark_session, operation);
        let superseded = CancellationToken::new();
        let number = operation.streams.fetch_add(1, Relaxed);
        *operation.stream.lock() = Some((number, superseded.clone()));
        OperationStream {
            operation,
            number,
            superseded,
        }
    }

    /// Records that the engine interrupted the operation.
    pub(crate) fn interrupted(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) {
        let operation = self.entry(generation, spark_session, operation);
        operation.touch();
        operation.interrupted.store(true, Relaxed);
    }

    /// Decides whether a client that received a part of the response may reattach. Ends an older
    /// stream of the operation on any worker first.
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

    /// Time since which no stream is open; `None` while one is open.
    fn idle_since(&self) -> Option<Instant> {
        if self.stream.lock().is_some() {
            return None;
        }
        *self.touched.lock()
    }

    fn is_stale(&self, after: Duration) -> bool {
        self.idle_since().is_some_and(|since| since.elapsed() >= after)
    }

    /// Ends the open stream and waits for its end; false on timeout.
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

impl OperationStream {
    /// Records that results were read from the engine: a disconnect can now lose some.
    pub(crate) fn has_results(&self) {
        self.operation.has_results.store(true, Relaxed);
    }

    /// Records that the engine ended the operation as interrupted.
    pub(crate) fn interrupted(&self) {
        self.operation.interrupted.store(true, Relaxed);
    }
}

impl Drop for OperationStream {
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
    async fn only_an_operation_without_results_is_reattached_exactly() {
        let operations = SailOperations::default();
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
        let operations = Arc::new(SailOperations::default());
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
    async fn operations_are_bounded_and_open_streams_are_kept() {
        let operations = SailOperations::default();
        let id = spark_session();
        let open = operations.begin(1, &id, "open");
        for count in 0..2 * MAX_OPERATIONS {
            drop(operations.begin(1, &id, &count.to_string()));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(operations.known().len() <= MAX_OPERATIONS);
        drop(open);
        assert_eq!(operations.reattach(1, &id, "open").await, Reattach::Exact);
        assert_eq!(
            operations.reattach(1, &id, "0").await,
            Reattach::WouldLoseResults,
            "forgotten"
        );
    }
}
