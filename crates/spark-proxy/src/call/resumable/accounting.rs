//! Held streams and unacknowledged bytes, in the shares of their session and in the metrics.

use crate::metrics::{Abandoned, HeldStreamMetrics, Metrics};
use crate::resource_limits::{LevelLimits, Reservation};
use crate::worker::Shared;
use crate::worker::session::Session;
use std::sync::Arc;

/// A stream that is held; counted while it lives.
pub(super) struct Held {
    metrics: Arc<Metrics>,
    /// `None` once its client has returned, or has everything.
    abandoned: Option<Abandoned>,
}

impl Held {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.held_streams.held.add(1);
        Self {
            metrics: Arc::clone(metrics),
            // Its call was ended: by the end of the session, of the token, or of the proxy.
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

impl Drop for Held {
    fn drop(&mut self) {
        let HeldStreamMetrics { held, abandoned, .. } = &self.metrics.held_streams;
        held.add(-1);
        if let Some(why) = self.abandoned {
            abandoned.at(why).inc();
        }
    }
}

/// Memory of unacknowledged messages, in the shares of the session and in the metrics.
pub(super) struct KeptBytes {
    reservation: Reservation,
    metrics: Arc<Metrics>,
    amount: usize,
}

impl KeptBytes {
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

    /// Whether a level is near its limit: what its client probably has gives way to what is needed.
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

impl Drop for KeptBytes {
    fn drop(&mut self) {
        self.count(0);
    }
}
