//! Operations of one session on Sail, for all workers: the task that owns the stream of an operation,
//! and whether the operation was interrupted.
//!
//! A disconnected client returns with `ReattachExecute` on any connection. Sail's own reattach
//! loses rows (measured with Sail 0.7.2), so the proxy keeps Sail's stream open, and the call of the
//! returning client receives the response from the task that owns the stream. The task may be in
//! another worker, so both exchange messages by bounded channels.

use crate::grpc::identity::SparkSessionId;
use crate::grpc::response_scanner::ResponseId;
use crate::metrics::Outcome;
use bytes::Bytes;
use http::HeaderMap;
use parking_lot::{Mutex, MutexGuard};
use session_core::PrincipalId;
use session_proto::error::Refused;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;

/// Maximum number of recorded operations of one session; the least recently used are removed first.
const MAX_OPERATIONS: usize = 256;
/// Maximum number of hashes of removed operations, 24 bytes each.
const MAX_EVICTED: usize = 4096;
/// Time for which an operation without a stream is recorded. PySpark 4.3, which retries longest,
/// retries for an hour.
const RETENTION: Duration = Duration::from_secs(3600);
/// Maximum number of queued requests to the task of a stream.
const MAX_REQUESTS: usize = 16;
/// Time limit for the response of a task.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The operations of one session. Most sessions are not on Sail, so the map is made when needed.
#[derive(Default)]
pub(crate) struct SailOperations {
    recorded: OnceLock<Box<Mutex<Operations>>>,
}

#[derive(Default)]
struct Operations {
    by_key: HashMap<Key, Arc<Operation>>,
    /// Operations that were removed to make room: when they ended, and hashes of their keys.
    evicted: VecDeque<(Instant, u64)>,
    /// End of the newest operation that was removed from `evicted` too. Until [`RETENTION`] after it,
    /// every operation without a record may have been sent to the compute.
    evicted_at: Option<Instant>,
}

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
    interrupted: AtomicBool,
    /// The compute provably did not process it.
    not_processed: AtomicBool,
    /// Number and handle of the stream.
    stream: Mutex<Option<(u64, StreamHandle)>>,
    streams: AtomicU64,
    touched: Mutex<Option<Instant>>,
}

/// State of an operation.
pub(crate) enum Found {
    Open(StreamHandle),
    /// This proxy no longer has its stream, or has removed the record of it.
    Ended {
        interrupted: bool,
    },
    /// It was not sent to the compute by this proxy.
    Unknown,
}

/// The part of a response that a returning client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Nothing,
    /// Everything up to this message.
    UpTo(ResponseId),
}

/// The next message for the client was removed, or never existed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotRetained;

/// A request to the task that owns a stream.
pub(crate) enum StreamRequest {
    /// Attaches the call of a returning client.
    Attach {
        received: Received,
        reply: oneshot::Sender<Result<mpsc::Receiver<StreamEvent>, NotRetained>>,
    },
    /// The client has everything up to this message.
    ReleaseUntil(ResponseId),
    /// The client released the whole result.
    ReleaseAll,
}

/// A part of a response, for the call of a client that returned.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    Headers(HeaderMap),
    Data(Bytes),
    End(StreamEnd),
}

/// How a response ended.
#[derive(Debug, Clone)]
pub(crate) enum StreamEnd {
    Trailers(HeaderMap, Outcome),
    /// The whole response is headers.
    HeadersOnly(HeaderMap, Outcome),
    /// Berth error.
    Refused(Refused),
    /// Engine error, translated for clients.
    Engine(Box<Status>),
}

/// Access to a stream from any worker.
#[derive(Clone)]
pub(crate) struct StreamHandle {
    subject: PrincipalId,
    requests: mpsc::Sender<StreamRequest>,
}

/// A stream in the table, from its start to its end; owned by its task.
pub(crate) struct RegisteredStream {
    operation: Arc<Operation>,
    number: u64,
    requests: mpsc::Receiver<StreamRequest>,
}

impl SailOperations {
    fn recorded(&self) -> MutexGuard<'_, Operations> {
        self.recorded.get_or_init(Box::default).lock()
    }

    fn entry(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) -> Arc<Operation> {
        let mut recorded = self.recorded();
        recorded.make_room();
        let key = Key::new(generation, spark_session, operation);
        Arc::clone(recorded.by_key.entry(key).or_default())
    }

    /// Whether clients may return for operations of the session. While they may, the records must be
    /// kept: a client runs an operation without a record again.
    pub(crate) fn is_needed(&self) -> bool {
        self.recorded.get().is_some_and(|recorded| {
            let recorded = recorded.lock();
            recorded.by_key.values().any(|operation| !operation.is_stale())
                || recorded.evicted.iter().any(|(at, _)| is_recent(*at))
                || recorded.evicted_at.is_some_and(is_recent)
        })
    }

    /// Registers the stream of an operation, which a client with this subject started. An older
    /// stream of the same operation gets no more requests. `None` if the older stream is another
    /// subject's: clients choose operation ids, and must not end the operations of others.
    pub(crate) fn begin(
        &self,
        generation: u64,
        spark_session: &SparkSessionId,
        operation: &str,
        subject: &PrincipalId,
    ) -> Option<RegisteredStream> {
        let operation = self.entry(generation, spark_session, operation);
        let mut stream = operation.stream.lock();
        if stream.as_ref().is_some_and(|(_, handle)| !handle.is_of(subject)) {
            return None;
        }
        let (sender, requests) = mpsc::channel(MAX_REQUESTS);
        let number = operation.streams.fetch_add(1, Relaxed);
        let handle = StreamHandle {
            subject: subject.clone(),
            requests: sender,
        };
        operation.not_processed.store(false, Relaxed);
        *stream = Some((number, handle));
        drop(stream);
        Some(RegisteredStream {
            operation,
            number,
            requests,
        })
    }

    /// Records that the engine interrupted the operation.
    pub(crate) fn interrupted(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) {
        let operation = self.entry(generation, spark_session, operation);
        operation.touch();
        operation.interrupted.store(true, Relaxed);
    }

    /// Finds an operation.
    pub(crate) fn find(&self, generation: u64, spark_session: &SparkSessionId, operation: &str) -> Found {
        let key = Key::new(generation, spark_session, operation);
        let operation = {
            let recorded = self.recorded();
            match recorded.by_key.get(&key) {
                Some(operation) => Arc::clone(operation),
                None if recorded.may_have_evicted(&key) => return Found::Ended { interrupted: false },
                None => return Found::Unknown,
            }
        };
        if let Some((_, handle)) = &*operation.stream.lock() {
            return Found::Open(handle.clone());
        }
        if operation.not_processed.load(Relaxed) {
            return Found::Unknown;
        }
        Found::Ended {
            interrupted: operation.interrupted.load(Relaxed),
        }
    }
}

impl Operations {
    /// Removes operations that ended long ago, or else the one that ended first, if there are too
    /// many.
    fn make_room(&mut self) {
        if self.by_key.len() >= MAX_OPERATIONS {
            self.by_key.retain(|_, operation| !operation.is_stale());
        }
        if self.by_key.len() >= MAX_OPERATIONS {
            self.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        let ended = self
            .by_key
            .values()
            .filter_map(|operation| operation.idle_since());
        let Some(oldest) = ended.min() else { return };
        let hasher = self.by_key.hasher().clone();
        let oldest_ones = self
            .by_key
            .extract_if(|_, operation| operation.idle_since() == Some(oldest));
        let hashes = oldest_ones.map(|(key, _)| (oldest, hasher.hash_one(&key)));
        self.evicted.extend(hashes);
        while self.evicted.len() > MAX_EVICTED {
            let forgotten = self.evicted.pop_front();
            self.evicted_at = self.evicted_at.max(forgotten.map(|(at, _)| at));
        }
    }

    /// Whether an operation without a record may have been removed while its client may return.
    fn may_have_evicted(&self, key: &Key) -> bool {
        let hash = self.by_key.hasher().hash_one(key);
        let mut evicted = self.evicted.iter();
        self.evicted_at.is_some_and(is_recent) || evicted.any(|(at, other)| *other == hash && is_recent(*at))
    }
}

fn is_recent(at: Instant) -> bool {
    at.elapsed() < RETENTION
}

impl StreamHandle {
    /// Whether the operation was started by this subject: others of the session cannot read it.
    pub(crate) fn is_of(&self, subject: &PrincipalId) -> bool {
        self.subject == *subject
    }

    /// Asks for the rest of the response; `None` if the stream has ended.
    pub(crate) async fn attach(
        &self,
        received: Received,
    ) -> Option<Result<mpsc::Receiver<StreamEvent>, NotRetained>> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let request = StreamRequest::Attach { received, reply };
            self.requests.send(request).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(REQUEST_TIMEOUT, asked).await.ok().flatten()
    }

    /// Forwards an acknowledgement of the client. A later acknowledgement includes earlier ones, so an
    /// acknowledgement is dropped if the queue is full.
    pub(crate) async fn release(&self, request: StreamRequest) {
        if let Err(mpsc::error::TrySendError::Full(request @ StreamRequest::ReleaseAll)) =
            self.requests.try_send(request)
        {
            let _ = self.requests.send_timeout(request, REQUEST_TIMEOUT).await;
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

    fn is_stale(&self) -> bool {
        self.idle_since().is_some_and(|since| !is_recent(since))
    }
}

impl RegisteredStream {
    /// The next request; `None` if a newer stream of the operation replaced this one.
    pub(crate) async fn request(&mut self) -> Option<StreamRequest> {
        self.requests.recv().await
    }

    /// Records that the engine ended the operation as interrupted.
    pub(crate) fn interrupted(&self) {
        self.operation.interrupted.store(true, Relaxed);
    }

    /// Records that the compute provably did not process the operation: its client may start it
    /// again.
    pub(crate) fn not_processed(&self) {
        self.operation.not_processed.store(true, Relaxed);
    }
}

impl Drop for RegisteredStream {
    fn drop(&mut self) {
        self.operation.touch();
        let mut stream = self.operation.stream.lock();
        if stream.as_ref().is_some_and(|(number, _)| *number == self.number) {
            *stream = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATION: &str = "operation";

    fn spark_session() -> SparkSessionId {
        "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap()
    }

    fn subject(name: &str) -> PrincipalId {
        format!("sa|{name}").parse().unwrap()
    }

    fn begin(operations: &SailOperations) -> RegisteredStream {
        begin_operation(operations, OPERATION)
    }

    fn begin_operation(operations: &SailOperations, operation: &str) -> RegisteredStream {
        let stream = operations.begin(1, &spark_session(), operation, &subject("ada"));
        stream.unwrap()
    }

    fn find(operations: &SailOperations) -> Found {
        operations.find(1, &spark_session(), OPERATION)
    }

    #[tokio::test]
    async fn a_stream_is_found_until_it_ends() {
        let operations = SailOperations::default();
        assert!(matches!(find(&operations), Found::Unknown));
        let mut stream = begin(&operations);
        let Found::Open(handle) = find(&operations) else {
            panic!("not found")
        };
        assert!(handle.is_of(&subject("ada")) && !handle.is_of(&subject("eve")));
        let other = operations.find(2, &spark_session(), OPERATION);
        assert!(matches!(other, Found::Unknown), "of another generation");

        let answering = async {
            let Some(StreamRequest::Attach { received, reply }) = stream.request().await else {
                panic!("no request")
            };
            assert_eq!(received, Received::Nothing);
            reply.send(Err(NotRetained)).unwrap();
        };
        let (answer, ()) = tokio::join!(handle.attach(Received::Nothing), answering);
        assert_eq!(answer.unwrap().unwrap_err(), NotRetained);

        drop(stream);
        assert!(handle.attach(Received::Nothing).await.is_none());
        assert!(matches!(find(&operations), Found::Ended { interrupted: false }));
    }

    #[tokio::test]
    async fn the_same_operation_started_again_takes_over() {
        let operations = SailOperations::default();
        let mut first = begin(&operations);
        let second = begin(&operations);
        assert!(first.request().await.is_none());
        drop(first);
        assert!(matches!(find(&operations), Found::Open(_)));
        let other = operations.begin(1, &spark_session(), OPERATION, &subject("eve"));
        assert!(other.is_none(), "of another subject");
        assert!(matches!(find(&operations), Found::Open(stream) if stream.is_of(&subject("ada"))));
        drop(second);
        assert!(matches!(find(&operations), Found::Ended { .. }));
        assert!(
            operations
                .begin(1, &spark_session(), OPERATION, &subject("eve"))
                .is_some()
        );
    }

    #[test]
    fn an_interrupt_is_remembered_and_an_unprocessed_operation_is_not() {
        let operations = SailOperations::default();
        begin(&operations).interrupted();
        assert!(matches!(find(&operations), Found::Ended { interrupted: true }));
        let operations = SailOperations::default();
        operations.interrupted(1, &spark_session(), OPERATION);
        assert!(matches!(find(&operations), Found::Ended { interrupted: true }));
        let operations = SailOperations::default();
        begin(&operations).not_processed();
        assert!(matches!(find(&operations), Found::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn recorded_operations_are_bounded() {
        let operations = SailOperations::default();
        let id = spark_session();
        let open = begin(&operations);
        for number in 0..2 * MAX_OPERATIONS {
            tokio::time::advance(Duration::from_millis(1)).await;
            drop(begin_operation(&operations, &number.to_string()));
            let found = operations.find(1, &id, &number.to_string());
            assert!(matches!(found, Found::Ended { .. }));
        }
        assert!(operations.recorded().by_key.len() <= MAX_OPERATIONS);
        assert!(matches!(find(&operations), Found::Open(_)));
        drop(open);
    }

    /// The client of a removed operation must not run it again.
    #[tokio::test(start_paused = true)]
    async fn a_removed_operation_counts_as_ended_while_its_client_may_return() {
        let operations = SailOperations::default();
        let never_sent = |operations: &SailOperations| operations.find(1, &spark_session(), "never sent");
        drop(begin(&operations));
        for number in 0..MAX_OPERATIONS + MAX_EVICTED {
            assert!(matches!(never_sent(&operations), Found::Unknown), "{number}");
            tokio::time::advance(Duration::from_millis(1)).await;
            drop(begin_operation(&operations, &number.to_string()));
            assert!(matches!(find(&operations), Found::Ended { interrupted: false }));
        }
        // The hash of the first operation was removed.
        assert!(matches!(never_sent(&operations), Found::Ended { .. }));
        assert_eq!(operations.recorded().evicted.len(), MAX_EVICTED);
        assert!(operations.is_needed());
        tokio::time::advance(RETENTION).await;
        assert!(matches!(find(&operations), Found::Unknown));
        assert!(matches!(never_sent(&operations), Found::Unknown));
        assert!(!operations.is_needed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_acknowledgements_does_not_wait_and_loses_no_release() {
        let operations = SailOperations::default();
        let mut stream = begin(&operations);
        let Found::Open(handle) = find(&operations) else {
            panic!("not found")
        };
        let id = ResponseId::parse("01234567-89ab-cdef-0123-456789abcdef").unwrap();
        for _ in 0..100 {
            handle.release(StreamRequest::ReleaseUntil(id)).await;
        }
        let reading = async {
            let mut count = 0;
            while let Some(StreamRequest::ReleaseUntil(_)) = stream.request().await {
                count += 1;
            }
            count
        };
        let (count, ()) = tokio::join!(reading, handle.release(StreamRequest::ReleaseAll));
        assert_eq!(count, MAX_REQUESTS);
    }
}
