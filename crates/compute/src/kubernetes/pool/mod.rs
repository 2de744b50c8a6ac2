//! Pods that are kept ready without a session.
//!
//! ```text
//! key   ─ the start configuration of a pool, its hash, and the pod made from it
//! state, entry ─ pools and their pods: data, and what is to be done, without calls
//! state/fill ─ how many pods there are: created, deleted, replaced
//! keeper ─ the task that does it: creates, asks, deletes
//! claim ─ a starter takes a pod for its session
//! ```
//!
//! A pod of a pool has the label [`POOL_LABEL`](super::names::POOL_LABEL) and no
//! session. Every manager asks the engines of the pools itself, so a claim is one
//! write: a patch that sets the labels of the session and removes that of the pool,
//! on the condition that the pod is unchanged. One manager, the holder of a lease,
//! creates and deletes pods of pools; it deletes on the same condition, so a pod
//! that a session claimed meanwhile stays.

mod claim;
mod entry;
mod keeper;
mod key;
mod state;

pub(super) use entry::Reserved;
pub(super) use keeper::keep;
pub(super) use key::PoolKey;
pub(super) use state::Pools;

use super::{KubernetesProvider, Shared};
use crate::ComputeSpec;
use crate::warm_pools::{PoolUse, WarmPool, WarmPoolStatus, WarmPools};
use session_core::Provider;
use std::collections::BTreeMap;
use std::time::Duration;

impl WarmPools for KubernetesProvider {
    fn set(&self, pools: Vec<WarmPool>, refill_for: Duration) {
        let config = &self.shared.config;
        let mut wanted = BTreeMap::new();
        for pool in pools {
            match PoolKey::of_pool(&pool, config) {
                Ok(key) => drop(wanted.insert(key, pool)),
                Err(cause) => {
                    tracing::warn!(cluster = %pool.cluster.name, profile = pool.profile_name(), catalog = pool.catalog_name(), cause = %cause.text, detail = %cause.detail, "warm pool cannot be used");
                }
            }
        }
        self.shared.pools.lock().set(wanted, refill_for);
        self.shared.pools_changed.notify_one();
    }

    fn status(&self) -> Vec<WarmPoolStatus> {
        self.shared.pools.lock().status()
    }

    fn take_uses(&self) -> Vec<PoolUse> {
        self.shared.pools.lock().take_uses()
    }
}

impl Shared {
    /// The pool that has the start configuration of a session; `None` if its
    /// cluster has no pools.
    pub(super) fn pool_of(&self, spec: &ComputeSpec) -> Option<PoolKey> {
        let Provider::Kubernetes(pods) = &spec.cluster.provider else {
            return None;
        };
        if pods.warm_pods == 0 {
            return None;
        }
        PoolKey::of_session(spec, &self.config).ok()
    }
}
