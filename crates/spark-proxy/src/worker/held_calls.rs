//! Calls that wait for compute: how many, and how many bytes of theirs this
//! proxy holds meanwhile, all of it bounded.

use crate::activity::Tally;
use crate::config::LimitConfig;
use crate::metrics::Metrics;
use session_core::Reason;
use session_proto::error::Refused;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(5);

/// What all held calls of the proxy take.
#[derive(Default)]
pub(crate) struct Held {
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place among the held calls.
pub(crate) struct Hold {
    held: Arc<Held>,
    tally: Arc<Tally>,
    metrics: Arc<Metrics>,
    bytes: usize,
}

impl Hold {
    /// Takes a place for a call whose request may take `bytes`.
    pub(crate) fn enter(
        held: &Arc<Held>,
        limits: &LimitConfig,
        tally: &Arc<Tally>,
        metrics: &Arc<Metrics>,
        bytes: usize,
    ) -> Result<Self, Refused> {
        let hold = Self {
            held: Arc::clone(held),
            tally: Arc::clone(tally),
            metrics: Arc::clone(metrics),
            bytes,
        };
        metrics.held.add(1);
        let of_session = tally.hold();
        let calls = held.calls.fetch_add(1, Relaxed);
        let total = held.bytes.fetch_add(bytes, Relaxed) + bytes;
        // Dropping the place gives back what it took.
        if of_session >= limits.held_calls_per_session {
            return Err(too_many("of this session"));
        }
        if calls >= limits.held_calls || total > limits.held_bytes {
            return Err(too_many("at this proxy"));
        }
        Ok(hold)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.metrics.held.add(-1);
        self.tally.unhold();
        self.held.calls.fetch_sub(1, Relaxed);
        self.held.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

fn too_many(where_: &str) -> Refused {
    Refused::new(
        Reason::TooManyWaiting,
        format!("Too many calls {where_} wait for compute already. Try again in a little while."),
    )
    .retry_after(RETRY)
}
