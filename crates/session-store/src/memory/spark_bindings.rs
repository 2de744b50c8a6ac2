//! Bindings in memory.

use super::MemoryStore;
use crate::spark_bindings::{Bind, Binding, BindingState, Bound, SEAL_MEMORY, SparkSession};
use crate::{Error, SparkBindings};
use async_trait::async_trait;
use session_core::{SessionKey, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Seals and ids that are kept from everybody are looked through when so many are there.
const SWEEP_AT: usize = 4096;

#[derive(Default)]
pub(super) struct Bindings {
    names: HashMap<SparkSession, Name>,
    held: HashMap<SessionKey, Held>,
    seals: HashMap<SessionKey, (u64, Timestamp)>,
}

/// Whose an id is.
enum Name {
    Of(SessionKey),
    Nobodys { until: Timestamp },
}

/// A holder's bindings.
#[derive(Default)]
struct Held {
    last: u64,
    bindings: BTreeMap<SparkSession, Kept>,
}

struct Kept {
    binding: Binding,
    order: u64,
    preparer: String,
    until: Timestamp,
}

impl Bindings {
    fn sweep(&mut self, now: Timestamp) {
        if self.seals.len() >= SWEEP_AT {
            self.seals.retain(|_, (_, until)| *until > now);
        }
        if self.names.len() >= SWEEP_AT {
            self.names
                .retain(|_, name| !matches!(name, Name::Nobodys { until } if *until <= now));
        }
    }

    fn bind(&mut self, bind: &Bind, now: Timestamp) -> Bound {
        self.sweep(now);
        let sealed = self.seals.get(&bind.holder);
        if sealed.is_some_and(|(generation, until)| bind.generation <= *generation && *until > now) {
            return Bound::Sealed;
        }
        match self.names.get(&bind.spark) {
            Some(Name::Of(holder)) if *holder != bind.holder => return Bound::Taken,
            Some(Name::Nobodys { until }) if *until > now => return Bound::Taken,
            Some(Name::Of(_) | Name::Nobodys { .. }) | None => {}
        }
        let held = self.held.entry(bind.holder.clone()).or_default();
        let order = held.last + 1;
        let until = bind.prepare.map_or(now, |time| now.after(time));
        match held.bindings.get_mut(&bind.spark) {
            Some(kept) => {
                let binding = &mut kept.binding;
                if binding.state == BindingState::Releasing || binding.generation != bind.generation {
                    binding.state = BindingState::Releasing;
                    return Bound::Release(Box::new(binding.clone()));
                }
                held.last = order;
                kept.order = order;
                if binding.state == BindingState::Ready {
                    return Bound::Ready;
                }
                if kept.until > now && kept.preparer != bind.ticket {
                    return Bound::Wait;
                }
                if bind.prepare.is_none() {
                    binding.state = BindingState::Ready;
                    return Bound::Ready;
                }
                kept.preparer.clone_from(&bind.ticket);
                kept.until = until;
                Bound::Prepare
            }
            None => {
                if held.bindings.len() >= bind.limit
                    && let Some(oldest) = held.bindings.values_mut().min_by_key(|kept| kept.order)
                {
                    oldest.binding.state = BindingState::Releasing;
                    return Bound::Release(Box::new(oldest.binding.clone()));
                }
                let state = match bind.prepare {
                    Some(_) => BindingState::Unready,
                    None => BindingState::Ready,
                };
                let kept = Kept {
                    binding: Binding {
                        spark: bind.spark.clone(),
                        generation: bind.generation,
                        state,
                        serial: bind.ticket.clone(),
                    },
                    order,
                    preparer: bind.ticket.clone(),
                    until,
                };
                held.last = order;
                held.bindings.insert(bind.spark.clone(), kept);
                self.names
                    .insert(bind.spark.clone(), Name::Of(bind.holder.clone()));
                match state {
                    BindingState::Unready => Bound::Prepare,
                    BindingState::Ready | BindingState::Releasing => Bound::Ready,
                }
            }
        }
    }

    fn prepared(&mut self, holder: &SessionKey, spark: &SparkSession, ticket: &str, ready: bool) -> bool {
        let held = self.held.get_mut(holder);
        let Some(kept) = held.and_then(|held| held.bindings.get_mut(spark)) else {
            return false;
        };
        if kept.binding.state != BindingState::Unready || kept.preparer != ticket {
            return false;
        }
        kept.until = Timestamp::ZERO;
        if ready {
            kept.binding.state = BindingState::Ready;
        }
        true
    }

    fn unbind(&mut self, holder: &SessionKey, binding: &Binding, keep_until: Option<Timestamp>) {
        let Some(held) = self.held.get_mut(holder) else {
            return;
        };
        let stored = held.bindings.get(&binding.spark);
        if stored.is_none_or(|kept| kept.binding.serial != binding.serial) {
            return;
        }
        held.bindings.remove(&binding.spark);
        if held.bindings.is_empty() {
            self.held.remove(holder);
        }
        match keep_until {
            Some(until) => {
                self.names.insert(binding.spark.clone(), Name::Nobodys { until });
            }
            None => {
                self.names.remove(&binding.spark);
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
        Ok(self.state().spark_bindings.prepared(holder, spark, ticket, ready))
    }

    async fn list_bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error> {
        let state = self.state();
        let Some(held) = state.spark_bindings.held.get(holder) else {
            return Ok(Vec::new());
        };
        let mut kept: Vec<_> = held.bindings.values().collect();
        kept.sort_unstable_by_key(|kept| kept.order);
        Ok(kept.into_iter().map(|kept| kept.binding.clone()).collect())
    }

    async fn seal_bindings(&self, holder: &SessionKey, generation: u64) -> Result<(), Error> {
        let now = self.clock.now();
        let shared = &mut self.state().spark_bindings;
        shared.sweep(now);
        let seal = shared.seals.entry(holder.clone()).or_default();
        *seal = (seal.0.max(generation), now.after(SEAL_MEMORY));
        Ok(())
    }

    async fn unbind(&self, holder: &SessionKey, binding: &Binding, keep: Duration) -> Result<(), Error> {
        let keep_until = (!keep.is_zero()).then(|| self.clock.now().after(keep));
        self.state().spark_bindings.unbind(holder, binding, keep_until);
        Ok(())
    }
}
