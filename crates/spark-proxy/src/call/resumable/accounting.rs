//! Held streams and unacknowledged bytes, in the shares of their session and in the metrics.

use crate::metrics::{Abandoned, HeldStreamMetrics, Metrics};
use crate::resource_limits::{LevelLimits, Reservation};
use crate::worker::Shared;
use crate::worker::session::Session;
use std::sync::Arc;

/// A held stream in the metrics; counted until dropped.
pub(super) struct HeldStream {
    metrics: Arc<Metrics>,
    /// Why the stream ended; `None` if its client returned, or has the whole result.
    abandoned: Option<Abandoned>,
}

impl HeldStream {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.held_streams.held.add(1);
        Self {
            metrics: Arc::clone(metrics),
            // The task was dropped: the session, the token or the proxy ended.
            abandoned: Some(Abandoned::Ended),
        }
    }

    pub(super) fn not_abandoned(mut self) {
        self.abandoned = None;
    }

    pub(super) fn abandoned(mut self, why: Abandoned) {
        self.abandoned = Some(why);
    }
}

impl Drop for HeldStream {
    fn drop(&mut self) {
        let HeldStreamMetrics { held, abandoned, .. } = &self.metrics.held_streams;
        held.add(-1);
        if let Some(why) = self.abandoned {
            abandoned.at(why).inc();
        }
    }
}

/// Memory of unacknowledged messages, in the shares of the session and in the metrics.
pub(super) struct RetainedBytes {
    reservation: Reservation,
    metrics: Arc<Metrics>,
    amount: usize,
}

impl RetainedBytes {
    pub(super) fn new(shared: &Shared, session: &Session) -> Self {
        let limits = &shared.config.limits;
        Self {
            reservation: Reservation::new(
                session.usage.levels(),
                |level| &level.unacknowledged_bytes,
                LevelLimits([
                    (
                        limits.unacknowledged_bytes_per_session,
                        "limits.unacknowledged_bytes_per_session",
                    ),
                    (
                        limits.unacknowledged_bytes_per_org,
                        "limits.unacknowledged_bytes_per_org",
                    ),
                    (limits.unacknowledged_bytes, "limits.unacknowledged_bytes"),
                ]),
            ),
            metrics: Arc::clone(&shared.metrics),
            amount: 0,
        }
    }

    pub(super) fn has_room(&self, more: usize) -> bool {
        self.reservation.has_room(more)
    }

    /// Whether more than three quarters of a limit are in use.
    pub(super) fn is_scarce(&self) -> bool {
        self.reservation.is_scarce()
    }

    /// Changes the amount; false if a level is beyond its limit, also with a lower amount.
    pub(super) fn set(&mut self, amount: usize) -> bool {
        self.count(amount);
        self.reservation.set(amount).is_ok() && self.has_room(0)
    }

    fn count(&mut self, amount: usize) {
        let change = amount as i64 - self.amount as i64;
        self.metrics.held_streams.bytes.add(change);
        self.amount = amount;
    }
}

impl Drop for RetainedBytes {
    fn drop(&mut self) {
        self.count(0);
    }
}
