//! Placements of sessions on static servers in memory.

use super::MemoryStore;
use crate::{Error, Placements};
use async_trait::async_trait;
use session_core::SessionKey;
use std::collections::BTreeSet;

#[async_trait]
impl Placements for MemoryStore {
    async fn place_session(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error> {
        let placements = &mut self.state().placements;
        let of = |server: &String| placements.get(server);
        if let Some(current) = servers
            .iter()
            .find(|server| of(server).is_some_and(|holders| holders.contains(holder)))
        {
            return Ok(Some(current.clone()));
        }
        let allowed = servers.iter().filter(|server| {
            !org_alone || of(server).is_none_or(|holders| holders.iter().all(|other| other.org == holder.org))
        });
        let chosen = allowed
            .min_by_key(|server| of(server).map_or(0, BTreeSet::len))
            .cloned();
        if let Some(server) = &chosen {
            placements
                .entry(server.clone())
                .or_default()
                .insert(holder.clone());
        }
        Ok(chosen)
    }

    async fn remove_placement(&self, server: &str, holder: &SessionKey) -> Result<(), Error> {
        let placements = &mut self.state().placements;
        if let Some(holders) = placements.get_mut(server) {
            holders.remove(holder);
            if holders.is_empty() {
                placements.remove(server);
            }
        }
        Ok(())
    }

    async fn list_placements(&self, holder: &SessionKey) -> Result<Vec<String>, Error> {
        let state = self.state();
        let held = state.placements.iter().filter(|(_, of)| of.contains(holder));
        Ok(held.map(|(server, _)| server.clone()).collect())
    }
}
