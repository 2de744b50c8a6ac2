//! Places on shared servers in memory.

use super::MemoryStore;
use crate::{Error, Places};
use async_trait::async_trait;
use session_core::SessionKey;
use std::collections::BTreeSet;

#[async_trait]
impl Places for MemoryStore {
    async fn take_place(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error> {
        let places = &mut self.state().places;
        let of = |server: &String| places.get(server);
        if let Some(had) = servers
            .iter()
            .find(|server| of(server).is_some_and(|holders| holders.contains(holder)))
        {
            return Ok(Some(had.clone()));
        }
        let free = servers.iter().filter(|server| {
            !org_alone || of(server).is_none_or(|holders| holders.iter().all(|other| other.org == holder.org))
        });
        let best = free
            .min_by_key(|server| of(server).map_or(0, BTreeSet::len))
            .cloned();
        if let Some(server) = &best {
            places.entry(server.clone()).or_default().insert(holder.clone());
        }
        Ok(best)
    }

    async fn leave_place(&self, server: &str, holder: &SessionKey) -> Result<(), Error> {
        let places = &mut self.state().places;
        if let Some(holders) = places.get_mut(server) {
            holders.remove(holder);
            if holders.is_empty() {
                places.remove(server);
            }
        }
        Ok(())
    }

    async fn places_of(&self, holder: &SessionKey) -> Result<Vec<String>, Error> {
        let state = self.state();
        let held = state.places.iter().filter(|(_, of)| of.contains(holder));
        Ok(held.map(|(server, _)| server.clone()).collect())
    }
}
