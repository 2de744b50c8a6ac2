//! Pools and their pods: data without calls.

use super::PoolKey;
use super::entry::{Action, Entry, Reserved, SeenPod, SeenState, Stage};
use crate::warm_pools::{PoolUse, WarmPool, WarmPoolStatus};
use session_core::Route;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A pool stops after this number of failures in a row.
const MAX_FAILURES: u32 = 3;
/// Pause of a pool that stopped; doubles each time.
const MIN_STOP: Duration = Duration::from_secs(60);
const MAX_STOP: Duration = Duration::from_secs(15 * 60);
/// Pause after a failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(2);
/// Pause after the end of a pod that had answered.
const CRASH_PAUSE: Duration = Duration::from_secs(10);
/// A pod that ends within this time after its first answer counts as a failure: its
/// successors would do the same.
const EARLY_END: Duration = Duration::from_secs(5 * 60);
/// Time limit for the first answer of a pod: a node may have to be added and a
/// large image pulled.
const START_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Time after which a created pod that no watch shows is forgotten.
const UNSEEN_LIMIT: Duration = Duration::from_secs(30);
/// Maximum number of unread uses.
const MAX_USES: usize = 10_000;

/// Limits of one pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Pods that start at a time.
    pub(super) max_starting: usize,
    /// Pods that are created.
    pub(super) room: usize,
    /// Age of a pod above which it is replaced; `None` means never.
    pub(super) max_age: Option<Duration>,
}

/// A pool that is wanted, and its failures.
#[derive(Debug)]
struct Wanted {
    pool: WarmPool,
    failures: u32,
    /// Pods in a row that ended within [`EARLY_END`] of their first answer.
    early_ends: u32,
    /// How often it stopped since its last success.
    stops: u32,
    /// Why it stopped.
    stopped: Option<String>,
    /// When the next pod may be created.
    retry_at: Instant,
}

impl Wanted {
    /// Stops the pool for a while, with the reason.
    fn stop(&mut self, why: &str) {
        let pause = MIN_STOP.saturating_mul(1 << self.stops.min(8)).min(MAX_STOP);
        self.stops += 1;
        self.retry_at = Instant::now() + pause;
        self.stopped = Some(why.to_owned());
        let cluster = &self.pool.cluster.name;
        let (profile, catalog) = (self.pool.profile_name(), self.pool.catalog_name());
        tracing::warn!(%cluster, profile, catalog, cause = why, pause = ?pause, "warm pool stopped: its pods fail; it is tried again after the pause");
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::kubernetes) struct Pools {
    /// `None` before the first call of `set`.
    wanted: Option<BTreeMap<PoolKey, Wanted>>,
    refill_until: Option<Instant>,
    /// By uid.
    pods: HashMap<String, Entry>,
    /// Pods that were created and not seen yet, by name.
    creating: HashMap<String, (PoolKey, Instant)>,
    uses: Vec<PoolUse>,
}

impl Pools {
    pub(super) fn set(&mut self, pools: BTreeMap<PoolKey, WarmPool>, refill_for: Duration) {
        let now = Instant::now();
        let mut before = self.wanted.take().unwrap_or_default();
        let wanted = pools.into_iter().map(|(key, pool)| {
            let old = before
                .remove(&key)
                .filter(|old| old.pool.cluster.version == pool.cluster.version);
            let wanted = match old {
                Some(old) => Wanted { pool, ..old },
                None => Wanted {
                    pool,
                    failures: 0,
                    early_ends: 0,
                    stops: 0,
                    stopped: None,
                    retry_at: now,
                },
            };
            (key, wanted)
        });
        self.wanted = Some(wanted.collect());
        self.refill_until = (!refill_for.is_zero()).then(|| now + refill_for);
    }

    /// Whether this process creates and deletes pods of pools now.
    pub(super) fn refills(&self) -> bool {
        self.refill_until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes note of all pods of pools, and decides what is to be done within the
    /// limits.
    pub(super) fn scan(&mut self, seen: Vec<SeenPod>, limits: &Limits) -> Vec<Action> {
        self.note(seen);
        if self.wanted.is_none() {
            return Vec::new();
        }
        let mut actions = self.tend();
        if self.refills() {
            self.trim(&mut actions);
            self.retire(&mut actions, limits.max_age);
            self.refill(&mut actions, limits);
        }
        actions
    }

    fn note(&mut self, seen: Vec<SeenPod>) {
        let mut before = std::mem::take(&mut self.pods);
        for pod in seen {
            let is_own = self.creating.remove(&pod.name).is_some();
            let entry = match before.remove(&pod.uid) {
                Some(entry) => Entry { seen: pod, ..entry },
                None => Entry {
                    seen: pod,
                    stage: Stage::Starting,
                    // The task that created the pod creates its Secret too.
                    has_secret: is_own,
                    answered_at: None,
                    is_counted: false,
                    stop: CancellationToken::new(),
                },
            };
            self.pods.insert(entry.seen.uid.clone(), entry);
        }
        for gone in before.into_values() {
            gone.stop.cancel();
        }
        let now = Instant::now();
        self.creating
            .retain(|_, (_, since)| now.duration_since(*since) < UNSEEN_LIMIT);
    }

    /// What each pod needs: its Secret, a question, or its end.
    fn tend(&mut self) -> Vec<Action> {
        let refills = self.refills();
        let mut actions = Vec::new();
        let mut failed = Vec::new();
        for (uid, entry) in &mut self.pods {
            let is_wanted = self
                .wanted
                .as_ref()
                .is_some_and(|all| all.contains_key(&entry.seen.key));
            if matches!(entry.stage, Stage::Gone | Stage::Reserved(_)) || entry.seen.is == SeenState::Leaving
            {
                continue;
            }
            if !is_wanted {
                entry.stop.cancel();
                entry.stage = if refills { Stage::Gone } else { Stage::Starting };
                actions.extend(refills.then(|| Action::Delete {
                    uid: uid.clone(),
                    why: "its pool is not wanted any more",
                }));
                continue;
            }
            match (&entry.seen.is, &entry.stage) {
                (SeenState::Failed(why), _) if refills => failed.push((uid.clone(), why.clone())),
                (SeenState::Waiting, _) if refills && entry.seen.age > START_LIMIT => {
                    failed.push((uid.clone(), "its pods did not start in time".to_owned()));
                }
                (SeenState::Waiting, Stage::Starting) if refills && !entry.has_secret => {
                    entry.has_secret = true;
                    actions.push(Action::CreateSecret { uid: uid.clone() });
                }
                (SeenState::Running(_), Stage::Starting) => {
                    entry.stage = Stage::Asking;
                    entry.stop = CancellationToken::new();
                    actions.push(Action::Ask { uid: uid.clone() });
                }
                (SeenState::Failed(_) | SeenState::Waiting, Stage::Available(_) | Stage::Asking) => {
                    entry.stop.cancel();
                    entry.stage = Stage::Starting;
                }
                _ => {}
            }
        }
        for (uid, why) in failed {
            self.failed_pod(&uid, &why);
            let why = "it failed";
            actions.push(Action::Delete { uid, why });
        }
        actions
    }

    /// Records that a pod of the pool is being created.
    pub(super) fn creating(&mut self, key: &PoolKey, name: &str) {
        self.creating
            .insert(name.to_owned(), (key.clone(), Instant::now()));
    }

    /// Records that a pod was not created.
    pub(super) fn not_created(&mut self, name: &str) {
        self.creating.remove(name);
    }

    /// Records the answer of an engine.
    pub(super) fn answered(&mut self, uid: &str, route: Route) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        if !matches!(entry.stage, Stage::Asking) {
            return;
        }
        entry.stage = Stage::Available(route);
        entry.answered_at.get_or_insert_with(Instant::now);
        let key = entry.seen.key.clone();
        if let Some(wanted) = self.wanted.as_mut().and_then(|all| all.get_mut(&key)) {
            if wanted.stopped.take().is_some() {
                tracing::info!(cluster = %wanted.pool.cluster.name, profile = wanted.pool.profile_name(), catalog = wanted.pool.catalog_name(), "warm pool is refilled again");
            }
            wanted.failures = 0;
            if wanted.early_ends == 0 {
                wanted.stops = 0;
            }
            wanted.retry_at = Instant::now();
        }
    }

    /// Records that a pod failed; it is deleted.
    pub(super) fn failed_pod(&mut self, uid: &str, why: &str) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        entry.stop.cancel();
        let counts = !std::mem::replace(&mut entry.is_counted, true);
        let answered_at = entry.answered_at;
        entry.stage = Stage::Gone;
        let key = entry.seen.key.clone();
        match answered_at {
            None if counts => self.failed(&key, why),
            Some(at) if counts => self.ended(&key, at.elapsed(), why),
            None | Some(_) => {}
        }
    }

    /// Records the end of a pod this long after its first answer.
    fn ended(&mut self, key: &PoolKey, after: Duration, why: &str) {
        let Some(wanted) = self.wanted.as_mut().and_then(|all| all.get_mut(key)) else {
            return;
        };
        wanted.retry_at = wanted.retry_at.max(Instant::now() + CRASH_PAUSE);
        if after >= EARLY_END {
            wanted.early_ends = 0;
            return;
        }
        wanted.early_ends += 1;
        if wanted.early_ends >= MAX_FAILURES {
            wanted.stop(&format!("its pods end soon after they answered: {why}"));
        }
    }

    /// Records that a start of a pod of the pool failed.
    pub(super) fn failed(&mut self, key: &PoolKey, why: &str) {
        let Some(wanted) = self.wanted.as_mut().and_then(|all| all.get_mut(key)) else {
            return;
        };
        wanted.failures += 1;
        wanted.retry_at = Instant::now() + FAILURE_PAUSE;
        if wanted.failures >= MAX_FAILURES {
            wanted.stop(why);
            return;
        }
        let cluster = &wanted.pool.cluster.name;
        let (profile, catalog) = (wanted.pool.profile_name(), wanted.pool.catalog_name());
        tracing::info!(%cluster, profile, catalog, cause = why, "a pod of a warm pool failed");
    }

    /// Takes an available pod for one starter. `session` makes several managers
    /// choose the same pod for one session, and different pods for different ones.
    pub(super) fn reserve(&mut self, key: &PoolKey, session: &str, since: Instant) -> Option<Reserved> {
        let entry = self
            .pods
            .values_mut()
            .filter(|entry| entry.seen.key == *key && entry.is_available())
            .max_by_key(|entry| weight(&entry.seen.uid, session))?;
        let Stage::Available(route) = &entry.stage else {
            return None;
        };
        let route = route.clone();
        entry.stage = Stage::Reserved(route.clone());
        let SeenPod {
            namespace,
            name,
            uid,
            version,
            ..
        } = entry.seen.clone();
        Some(Reserved {
            key: key.clone(),
            namespace,
            name,
            uid,
            version,
            route,
            since,
        })
    }

    /// Gives a pod back that was not claimed.
    pub(in crate::kubernetes) fn give_back(&mut self, reserved: &Reserved) {
        if let Some(entry) = self.pods.get_mut(&reserved.uid)
            && let Stage::Reserved(route) = &entry.stage
        {
            entry.stage = Stage::Available(route.clone());
        }
    }

    /// A pod whose engine must be asked again, or that could not be deleted now.
    pub(super) fn start_again(&mut self, uid: &str) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.stage = Stage::Starting;
        }
    }

    /// Records that a pod is no pod of a pool any more.
    pub(super) fn left(&mut self, uid: &str) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        entry.stop.cancel();
        entry.stage = Stage::Gone;
        if let Some(wanted) = self.wanted.as_mut().and_then(|all| all.get_mut(&entry.seen.key)) {
            wanted.early_ends = 0;
        }
    }

    /// The pool of a key, if it is wanted.
    pub(super) fn pool(&self, key: &PoolKey) -> Option<WarmPool> {
        Some(self.wanted.as_ref()?.get(key)?.pool.clone())
    }

    pub(super) fn entry(&self, uid: &str) -> Option<&Entry> {
        self.pods.get(uid)
    }

    /// Pods that were created and that no watch shows yet.
    pub(in crate::kubernetes) fn unseen(&self) -> usize {
        self.creating.len()
    }

    /// Records how a start used the pools of its cluster.
    pub(in crate::kubernetes) fn used(&mut self, how: PoolUse) {
        if self.uses.len() >= MAX_USES {
            self.uses.remove(0);
        }
        self.uses.push(how);
    }

    /// Records a start without a pod of the pool.
    pub(in crate::kubernetes) fn missed(&mut self, key: &PoolKey) {
        let is_wanted = self.wanted.as_ref().is_some_and(|all| all.contains_key(key));
        self.used(if is_wanted {
            PoolUse::Empty
        } else {
            PoolUse::Different
        });
    }

    pub(super) fn take_uses(&mut self) -> Vec<PoolUse> {
        std::mem::take(&mut self.uses)
    }

    pub(super) fn status(&self) -> Vec<WarmPoolStatus> {
        let status = |(key, wanted): (&PoolKey, &Wanted)| {
            let own = self
                .pods
                .values()
                .filter(|entry| entry.seen.key == *key && entry.is_alive());
            let (starting, available): (Vec<_>, Vec<_>) = own.partition(|entry| entry.is_starting());
            let creating = self.creating.values().filter(|(of, _)| of == key).count();
            WarmPoolStatus {
                cluster: wanted.pool.cluster.name.clone(),
                profile: wanted.pool.profile_name().to_owned(),
                catalog: wanted.pool.catalog_name(),
                available: available.len(),
                starting: starting.len() + creating,
                oldest: available.iter().map(|entry| entry.seen.age).max(),
                stopped: wanted.stopped.clone(),
            }
        };
        self.wanted.iter().flatten().map(status).collect()
    }
}

/// Rendezvous hashing: the same for all processes.
fn weight(uid: &str, session: &str) -> u64 {
    session_core::id::fnv1a(session.bytes().chain(uid.bytes()))
}

mod fill;
#[cfg(test)]
mod tests;
