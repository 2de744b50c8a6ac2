//! How many pods the pools have: what is created, and which are deleted.

use super::{Limits, MAX_FAILURES, Pools};
use crate::kubernetes::pool::PoolKey;
use crate::kubernetes::pool::entry::{Action, Entry, Stage};
use std::time::Duration;
use tokio::time::Instant;

/// A pool that lacks pods.
struct Gap {
    key: PoolKey,
    /// Pods that it has or that are being created.
    have: usize,
    size: usize,
    /// Pods that may be created now.
    missing: usize,
}

impl Gap {
    /// Whether it is filled less than another, in proportion to its size.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let (this, that) = (self.have * other.size, other.have * self.size);
        this.cmp(&that)
    }
}

impl Pools {
    /// Deletes what exceeds the size of its pool, the newest first; those that did
    /// not answer yet before all others.
    pub(super) fn trim(&mut self, actions: &mut Vec<Action>) {
        for (key, wanted) in self.wanted.iter().flatten() {
            let mut alive: Vec<(&String, &mut Entry)> = self
                .pods
                .iter_mut()
                .filter(|(_, entry)| entry.seen.key == *key && entry.is_alive())
                .collect();
            let excess = alive.len().saturating_sub(wanted.pool.size);
            alive.sort_by_key(|(_, entry)| (entry.is_available(), entry.seen.age));
            let free = alive
                .into_iter()
                .filter(|(_, entry)| !matches!(entry.stage, Stage::Reserved(_)));
            for (uid, entry) in free.take(excess) {
                entry.stop.cancel();
                entry.stage = Stage::Gone;
                actions.push(Action::Delete {
                    uid: uid.clone(),
                    why: "its pool has more pods than wanted",
                });
            }
        }
    }

    /// Deletes the oldest pod of each pool if it is too old. The next one of the pool
    /// follows when it is full again, and none while its pods fail.
    pub(super) fn retire(&mut self, actions: &mut Vec<Action>, max_age: Option<Duration>) {
        let Some(max_age) = max_age else {
            return;
        };
        for (key, wanted) in self.wanted.iter().flatten() {
            let is_failing = wanted.failures > 0 || wanted.stopped.is_some();
            let own = self.pods.iter_mut();
            let available: Vec<(&String, &mut Entry)> = own
                .filter(|(_, entry)| entry.seen.key == *key && entry.is_available())
                .collect();
            if is_failing || available.len() < wanted.pool.size {
                continue;
            }
            let oldest = available.into_iter().max_by_key(|(_, entry)| entry.seen.age);
            if let Some((uid, entry)) = oldest.filter(|(_, entry)| entry.seen.age > max_age) {
                entry.stop.cancel();
                entry.stage = Stage::Gone;
                actions.push(Action::Delete {
                    uid: uid.clone(),
                    why: "it is older than compute.kubernetes.warm_pod_max_age",
                });
            }
        }
    }

    /// Creates what is missing. If not all of it may be created, the pool that is
    /// filled least comes first, in proportion to its size.
    pub(super) fn refill(&mut self, actions: &mut Vec<Action>, limits: &Limits) {
        let all_starting =
            self.pods.values().filter(|entry| entry.is_starting()).count() + self.creating.len();
        let budget = limits.max_starting.saturating_sub(all_starting).min(limits.room);
        let mut gaps = self.gaps();
        for _ in 0..budget {
            let open = gaps.iter_mut().filter(|gap| gap.missing > 0);
            let Some(gap) = open.min_by(|one, other| one.order(other)) else {
                return;
            };
            gap.missing -= 1;
            gap.have += 1;
            actions.push(Action::Create(gap.key.clone()));
        }
    }

    /// The pools that lack pods and may be refilled now, by name.
    fn gaps(&self) -> Vec<Gap> {
        let now = Instant::now();
        let mut gaps = Vec::new();
        for (key, wanted) in self.wanted.iter().flatten() {
            if now < wanted.retry_at {
                continue;
            }
            let alive = self.pods.values().filter(|e| e.seen.key == *key && e.is_alive());
            let (begun, ready): (Vec<_>, Vec<_>) = alive.partition(|entry| entry.is_starting());
            let creating = self.creating.values().filter(|(of, _)| of == key).count();
            let have = begun.len() + ready.len() + creating;
            let size = wanted.pool.size;
            let mut missing = size.saturating_sub(have);
            if wanted.failures > 0 || wanted.early_ends >= MAX_FAILURES {
                // One attempt at a time shows whether it works again.
                missing = missing.min(1usize.saturating_sub(begun.len() + creating));
            }
            let gap = Gap {
                key: key.clone(),
                have,
                size,
                missing,
            };
            let pool = &wanted.pool;
            let name = (
                pool.cluster.name.clone(),
                pool.profile_name().to_owned(),
                pool.catalog_name(),
            );
            gaps.push((name, gap));
        }
        gaps.sort_by(|(one, _), (other, _)| one.cmp(other));
        gaps.into_iter().map(|(_, gap)| gap).collect()
    }
}
