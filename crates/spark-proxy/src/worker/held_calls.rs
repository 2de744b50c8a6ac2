//! Held calls: limits on their number and on the bytes of their requests.

use crate::activity::SessionUsage;
use crate::config::LimitConfig;
use crate::metrics::Metrics;
use crate::resource_limits::{LevelLimits, Reservation};
use session_core::Reason;
use session_proto::error::Refused;
use std::sync::Arc;

/// The place of one held call.
pub(crate) struct HeldCall {
    /// Counts one call.
    _call: Reservation,
    bytes: Reservation,
    metrics: Arc<Metrics>,
}

impl HeldCall {
    /// Takes a place for a call.
    pub(crate) fn reserve(
        limits: &LimitConfig,
        usage: &SessionUsage,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Refused> {
        let mut call = Reservation::new(
            usage.levels(),
            |level| &level.held_calls,
            LevelLimits([
                (limits.held_calls_per_session, "limits.held_calls_per_session"),
                (limits.held_calls_per_org, "limits.held_calls_per_org"),
                (limits.held_calls, "limits.held_calls"),
            ]),
        );
        call.raise_to(1).map_err(|exceeded| {
            let whose = exceeded.whose;
            exceeded.refused(
                Reason::TooManyWaiting,
                format_args!("Too many calls {whose} wait for compute already"),
            )
        })?;
        metrics.calls.held.add(1);
        Ok(Self {
            _call: call,
            bytes: Reservation::new(
                usage.levels(),
                |level| &level.held_bytes,
                LevelLimits([
                    (limits.held_bytes_per_session, "limits.held_bytes_per_session"),
                    (limits.held_bytes_per_org, "limits.held_bytes_per_org"),
                    (limits.held_bytes, "limits.held_bytes"),
                ]),
            ),
            metrics: Arc::clone(metrics),
        })
    }

    /// Updates the number of request bytes held for the call.
    pub(crate) fn set_bytes(&mut self, bytes: usize) -> Result<(), Refused> {
        self.bytes.raise_to(bytes).map_err(|exceeded| {
            let whose = exceeded.whose;
            exceeded.refused(
                Reason::TooManyWaiting,
                format_args!("The requests {whose} that wait for compute are too large together"),
            )
        })
    }
}

impl Drop for HeldCall {
    fn drop(&mut self) {
        self.metrics.calls.held.add(-1);
    }
}
