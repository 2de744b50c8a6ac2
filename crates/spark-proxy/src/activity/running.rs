//! Spark sessions in which an operation runs or recently ended. Calls with an expired token may
//! continue only these: for any other Spark session id, an engine would create a new Spark session.

use crate::grpc::identity::SparkSessionId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum number of recorded Spark sessions of one session.
const MAX_SPARK_SESSIONS: usize = 256;
/// Time after its last stream for which an operation counts as recently ended. Spark keeps an
/// operation without a stream for 5 minutes.
const RECENT_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Spark sessions of one session, for all workers. Most sessions have one, which a list keeps in a
/// fifth of the memory of a map.
#[derive(Default)]
pub(crate) struct RunningSessions {
    known: Mutex<Vec<Streams>>,
}

/// Generation of compute and Spark session id.
type Key = (u64, SparkSessionId);

/// The streams of operations in one Spark session.
#[derive(Debug, Clone, Copy)]
struct Streams {
    key: Key,
    open: usize,
    last_stream: Instant,
}

/// One stream of an operation, from the start to the end of its response.
pub(crate) struct RunningStream {
    sessions: Arc<RunningSessions>,
    key: Key,
}

impl RunningSessions {
    /// Records that the engine responds to an operation in this Spark session.
    pub(crate) fn begin(self: &Arc<Self>, generation: u64, spark_session: SparkSessionId) -> RunningStream {
        let key = (generation, spark_session);
        let now = Instant::now();
        let mut known = self.known.lock();
        if let Some(streams) = known.iter_mut().find(|streams| streams.key == key) {
            streams.open += 1;
        } else {
            make_room(&mut known, now);
            known.reserve_exact(1);
            known.push(Streams {
                key,
                open: 1,
                last_stream: now,
            });
        }
        drop(known);
        RunningStream {
            sessions: Arc::clone(self),
            key,
        }
    }

    /// Whether an operation runs or recently ended in this Spark session.
    pub(crate) fn is_running(&self, generation: u64, spark_session: SparkSessionId) -> bool {
        let key = (generation, spark_session);
        let known = self.known.lock();
        let streams = known.iter().find(|streams| streams.key == key);
        streams.is_some_and(|streams| streams.is_recent(Instant::now()))
    }
}

/// Removes what is no longer recent once the list is full, else the oldest without an open stream.
fn make_room(known: &mut Vec<Streams>, now: Instant) {
    if known.len() >= MAX_SPARK_SESSIONS {
        known.retain(|streams| streams.is_recent(now));
    }
    if known.len() >= MAX_SPARK_SESSIONS {
        let closed = known.iter().enumerate().filter(|(_, streams)| streams.open == 0);
        let oldest = closed.min_by_key(|(_, streams)| streams.last_stream);
        if let Some((at, _)) = oldest {
            known.swap_remove(at);
        }
    }
}

impl Streams {
    fn is_recent(&self, now: Instant) -> bool {
        self.open > 0 || now.duration_since(self.last_stream) < RECENT_LIMIT
    }
}

impl Drop for RunningStream {
    fn drop(&mut self) {
        let mut known = self.sessions.known.lock();
        if let Some(streams) = known.iter_mut().find(|streams| streams.key == self.key) {
            streams.open -= 1;
            streams.last_stream = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spark_session(number: usize) -> SparkSessionId {
        format!("{number:08x}-89ab-cdef-0123-456789abcdef")
            .parse()
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_counts_as_running_until_the_recent_limit() {
        let sessions = Arc::<RunningSessions>::default();
        let of = spark_session(1);
        assert!(!sessions.is_running(1, of));
        let stream = sessions.begin(1, of);
        tokio::time::advance(2 * RECENT_LIMIT).await;
        assert!(sessions.is_running(1, of));
        assert!(!sessions.is_running(2, of), "of another generation");
        drop(stream);
        assert!(sessions.is_running(1, of));
        tokio::time::advance(RECENT_LIMIT).await;
        assert!(!sessions.is_running(1, of));
    }

    #[tokio::test(start_paused = true)]
    async fn recorded_spark_sessions_are_bounded() {
        let sessions = Arc::<RunningSessions>::default();
        let running = sessions.begin(1, spark_session(0));
        for number in 1..2 * MAX_SPARK_SESSIONS {
            tokio::time::advance(Duration::from_millis(1)).await;
            drop(sessions.begin(1, spark_session(number)));
            assert!(sessions.is_running(1, spark_session(number)));
        }
        assert!(sessions.known.lock().len() <= MAX_SPARK_SESSIONS);
        assert!(sessions.is_running(1, spark_session(0)));
        drop(running);
    }
}
