//! Bindings in memory.

use super::MemoryStore;
use crate::spark_bindings::{Bind, Binding, BindingState, Bound, SEAL_DURATION, SparkSession};
use crate::{Error, SparkBindings};
use async_trait::async_trait;
use session_core::{SessionKey, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Expired seals and reservations are swept when their number reaches this.
const SWEEP_AT: usize = 4096;

#[derive(Default)]
pub(super) struct Bindings {
    owners: HashMap<SparkSession, IdOwner>,
    held: HashMap<SessionKey, HolderBindings>,
    seals: HashMap<SessionKey, (u64, Timestamp)>,
}

/// Owner of a Spark session id.
enum IdOwner {
    OwnedBy(SessionKey),
    Reserved { until: Timestamp },
}

/// Bindings of one holder.
#[derive(Default)]
struct HolderBindings {
    last: u64,
    bindings: BTreeMap<SparkSession, StoredBinding>,
}

struct StoredBinding {
    binding: Binding,
    order: u64,
    preparer: String,
    until: Timestamp,
}

impl HolderBindings {
    /// Uses an existing binding again.
    fn rebind(&mut self, bind: &Bind, now: Timestamp) -> Bound {
        let order = self.last + 1;
        let Some(stored) = self.bindings.get_mut(&bind.spark) else {
            return self.add(bind, now);
        };
        let binding = &mut stored.binding;
        if binding.state == BindingState::Releasing || binding.generation != bind.generation {
            binding.state = BindingState::Releasing;
            return Bound::Release(Box::new(binding.clone()));
        }
        self.last = order;
        stored.order = order;
        if binding.state == BindingState::Ready {
            return Bound::Ready;
        }
        if stored.until > now && stored.preparer != bind.ticket {
            return Bound::Wait;
        }
        let Some(time) = bind.prepare else {
            binding.state = BindingState::Ready;
            return Bound::Ready;
        };
        stored.preparer.clone_from(&bind.ticket);
        stored.until = now.after(time);
        Bound::Prepare
    }

    /// Adds a binding, or marks the least recently bound one for release at the limit.
    fn add(&mut self, bind: &Bind, now: Timestamp) -> Bound {
        if self.bindings.len() >= bind.limit
            && let Some(oldest) = self.bindings.values_mut().min_by_key(|stored| stored.order)
        {
            oldest.binding.state = BindingState::Releasing;
            return Bound::Release(Box::new(oldest.binding.clone()));
        }
        let (state, bound) = match bind.prepare {
            Some(_) => (BindingState::Unready, Bound::Prepare),
            None => (BindingState::Ready, Bound::Ready),
        };
        self.last += 1;
        let stored = StoredBinding {
            binding: Binding {
                spark: bind.spark.clone(),
                generation: bind.generation,
                state,
                serial: bind.ticket.clone(),
            },
            order: self.last,
            preparer: bind.ticket.clone(),
            until: bind.prepare.map_or(now, |time| now.after(time)),
        };
        self.bindings.insert(bind.spark.clone(), stored);
        bound
    }
}

impl Bindings {
    fn sweep(&mut self, now: Timestamp) {
        if self.seals.len() >= SWEEP_AT {
            self.seals.retain(|_, (_, until)| *until > now);
        }
        if self.owners.len() >= SWEEP_AT {
            self.owners
                .retain(|_, owner| !matches!(owner, IdOwner::Reserved { until } if *until <= now));
        }
    }

    fn bind(&mut self, bind: &Bind, now: Timestamp) -> Bound {
        self.sweep(now);
        let sealed = self.seals.get(&bind.holder);
        if sealed.is_some_and(|(generation, until)| bind.generation <= *generation && *until > now) {
            return Bound::Sealed;
        }
        match self.owners.get(&bind.spark) {
            Some(IdOwner::OwnedBy(holder)) if *holder != bind.holder => return Bound::Taken,
            Some(IdOwner::Reserved { until }) if *until > now => return Bound::Taken,
            Some(IdOwner::OwnedBy(_) | IdOwner::Reserved { .. }) | None => {}
        }
        let held = self.held.entry(bind.holder.clone()).or_default();
        if held.bindings.contains_key(&bind.spark) {
            return held.rebind(bind, now);
        }
        let bound = held.add(bind, now);
        if !matches!(bound, Bound::Release(_)) {
            let owner = IdOwner::OwnedBy(bind.holder.clone());
            self.owners.insert(bind.spark.clone(), owner);
        }
        bound
    }

    fn finish_preparation(
        &mut self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> bool {
        let held = self.held.get_mut(holder);
        let Some(stored) = held.and_then(|held| held.bindings.get_mut(spark)) else {
            return false;
        };
        if stored.binding.state != BindingState::Unready || stored.preparer != ticket {
            return false;
        }
        stored.until = Timestamp::ZERO;
        if ready {
            stored.binding.state = BindingState::Ready;
        }
        true
    }

    fn unbind(&mut self, holder: &SessionKey, binding: &Binding, keep_until: Option<Timestamp>) {
        let Some(held) = self.held.get_mut(holder) else {
            return;
        };
        let stored = held.bindings.get(&binding.spark);
        if stored.is_none_or(|stored| stored.binding.serial != binding.serial) {
            return;
        }
        held.bindings.remove(&binding.spark);
        if held.bindings.is_empty() {
            self.held.remove(holder);
        }
        match keep_until {
            Some(until) => {
                self.owners
                    .insert(binding.spark.clone(), IdOwner::Reserved { until });
            }
            None => {
                self.owners.remove(&binding.spark);
            }
        }
    }
}

#[async_trait]
impl SparkBindings for MemoryStore {
    async fn bind(&self, bind: &Bind) -> Result<Bound, Error> {
        let now = self.clock.now();
        Ok(self.state().spark_bindings.bind(bind, now))
    }

    async fn finish_preparation(
        &self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> Result<bool, Error> {
        Ok(self
            .state()
            .spark_bindings
            .finish_preparation(holder, spark, ticket, ready))
    }

    async fn list_bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error> {
        let state = self.state();
        let Some(held) = state.spark_bindings.held.get(holder) else {
            return Ok(Vec::new());
        };
        let mut stored: Vec<_> = held.bindings.values().collect();
        stored.sort_unstable_by_key(|stored| stored.order);
        Ok(stored.into_iter().map(|stored| stored.binding.clone()).collect())
    }

    async fn seal_bindings(&self, holder: &SessionKey, generation: u64) -> Result<(), Error> {
        let now = self.clock.now();
        let shared = &mut self.state().spark_bindings;
        shared.sweep(now);
        let seal = shared.seals.entry(holder.clone()).or_default();
        *seal = (seal.0.max(generation), now.after(SEAL_DURATION));
        Ok(())
    }

    async fn unbind(&self, holder: &SessionKey, binding: &Binding, keep: Duration) -> Result<(), Error> {
        let keep_until = (!keep.is_zero()).then(|| self.clock.now().after(keep));
        self.state().spark_bindings.unbind(holder, binding, keep_until);
        Ok(())
    }
}
