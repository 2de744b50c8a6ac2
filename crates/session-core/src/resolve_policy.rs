//! Resolution of a new session's policy: the request, the defaults of its cluster, and
//! the bounds of its engine.

use crate::cluster::{Cluster, Engine};
use crate::policy::{MAX_LIFETIME, OutOfBounds, PolicyRequest, SessionPolicy};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

impl SessionPolicy {
    /// Resolves the policy of a new session on `cluster`.
    ///
    /// # Errors
    /// The first timeout outside its bounds.
    pub fn resolve(cluster: &Cluster, requested: &PolicyRequest) -> Result<Self, OutOfBounds> {
        let defaults = &cluster.policy;
        let min_idle = match cluster.engine {
            Engine::Sail => MINUTE,
            // Spark keeps a detached query for 5 minutes; an earlier idle timeout could
            // release compute while a client reattaches.
            Engine::Spark => 6 * MINUTE,
        };
        let resolve = |field, requested: Option<Duration>, defaults: Option<Duration>, default, min, max| {
            let value = requested.or(defaults).unwrap_or(default);
            if value < min || value > max {
                Err(OutOfBounds {
                    field,
                    min,
                    max,
                    given: value,
                })
            } else {
                Ok(value)
            }
        };
        Ok(Self {
            idle_timeout: resolve(
                "idle_timeout",
                requested.idle_timeout,
                defaults.idle_timeout,
                15 * MINUTE,
                min_idle,
                8 * HOUR,
            )?,
            close_after_idle: resolve(
                "close_after_idle",
                requested.close_after_idle,
                defaults.close_after_idle,
                HOUR,
                Duration::ZERO,
                24 * HOUR,
            )?,
            max_lifetime: resolve(
                "max_lifetime",
                requested.max_lifetime,
                defaults.max_lifetime,
                24 * HOUR,
                10 * MINUTE,
                MAX_LIFETIME,
            )?,
            provisioning_deadline: resolve(
                "provisioning_deadline",
                None,
                defaults.provisioning_deadline,
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
