//! Held calls: limits on their number and on the bytes of their requests.

use crate::activity::Tally;
use crate::config::LimitConfig;
use crate::metrics::Metrics;
use crate::shares::{Limits, Taken};
use session_core::Reason;
use session_proto::error::Refused;
use std::sync::Arc;

/// The place of one held call.
pub(crate) struct Hold {
    /// Counts one call.
    _call: Taken,
    bytes: Taken,
    metrics: Arc<Metrics>,
}

impl Hold {
    /// Takes a place for a call.
    pub(crate) fn enter(
        limits: &LimitConfig,
        tally: &Tally,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Refused> {
        let mut call = Taken::new(
            tally.shares(),
            |shares| &shares.held_calls,
            Limits([
                (limits.held_calls_per_session, "limits.held_calls_per_session"),
                (limits.held_calls_per_org, "limits.held_calls_per_org"),
                (limits.held_calls, "limits.held_calls"),
            ]),
        );
        call.grow_to(1).map_err(|exceeded| {
            let whose = exceeded.whose;
            exceeded.refused(
                Reason::TooManyWaiting,
                format_args!("Too many calls {whose} wait for compute already"),
            )
        })?;
        metrics.held.add(1);
        Ok(Self {
            _call: call,
            bytes: Taken::new(
                tally.shares(),
                |shares| &shares.held_bytes,
                Limits([
                    (limits.held_bytes_per_session, "limits.held_bytes_per_session"),
                    (limits.held_bytes_per_org, "limits.held_bytes_per_org"),
                    (limits.held_bytes, "limits.held_bytes"),
                ]),
            ),
            metrics: Arc::clone(metrics),
        })
    }

    /// Updates the number of request bytes held for the call.
    pub(crate) fn weigh(&mut self, bytes: usize) -> Result<(), Refused> {
        self.bytes.grow_to(bytes).map_err(|exceeded| {
            let whose = exceeded.whose;
            exceeded.refused(
                Reason::TooManyWaiting,
                format_args!("The requests {whose} that wait for compute are too large together"),
            )
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.metrics.held.add(-1);
    }
}
