//! The clocks of a new session: what was asked for, over the defaults of its
//! cluster, within the bounds of its engine.

use crate::cluster::{Cluster, Engine};
use crate::policy::{LONGEST_LIFETIME, OutOfBounds, PolicyRequest, SessionPolicy};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

impl SessionPolicy {
    /// Settles the clocks of a new session on `cluster`.
    ///
    /// # Errors
    /// The first clock that is outside its bounds.
    pub fn settle(cluster: &Cluster, asked: &PolicyRequest) -> Result<Self, OutOfBounds> {
        let own = &cluster.policy;
        let least_idle = match cluster.engine {
            Engine::Sail => MINUTE,
            // Spark keeps a detached query for 5 minutes; idling sooner would
            // take compute from under a client that is reattaching.
            Engine::Spark => 6 * MINUTE,
        };
        let pick = |field, asked: Option<Duration>, own: Option<Duration>, default, min, max| {
            let given = asked.or(own).unwrap_or(default);
            if given < min || given > max {
                Err(OutOfBounds {
                    field,
                    min,
                    max,
                    given,
                })
            } else {
                Ok(given)
            }
        };
        Ok(Self {
            idle_timeout: pick(
                "idle_timeout",
                asked.idle_timeout,
                own.idle_timeout,
                15 * MINUTE,
                least_idle,
                8 * HOUR,
            )?,
            close_after_idle: pick(
                "close_after_idle",
                asked.close_after_idle,
                own.close_after_idle,
                HOUR,
                Duration::ZERO,
                24 * HOUR,
            )?,
            max_lifetime: pick(
                "max_lifetime",
                asked.max_lifetime,
                own.max_lifetime,
                24 * HOUR,
                10 * MINUTE,
                LONGEST_LIFETIME,
            )?,
            provisioning_deadline: pick(
                "provisioning_deadline",
                None,
                own.provisioning_deadline,
                2 * MINUTE,
                Duration::from_secs(10),
                15 * MINUTE,
            )?,
            on_idle: cluster.effective_idle_policy(),
            wake: cluster.wake,
            dedicated: cluster.provider.is_dedicated(),
        })
    }
}
