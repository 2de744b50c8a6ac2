//! The due-queue in memory.

use super::MemoryStore;
use super::State;
use crate::{DueQueue, Error};
use async_trait::async_trait;
use session_core::{SessionKey, Timestamp};
use std::time::Duration;

#[async_trait]
impl DueQueue for MemoryStore {
    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error> {
        let mut state = self.state();
        let entry = state.entry(key).ok_or(Error::NotFound)?;
        if entry.session.version != version {
            return Err(Error::Conflict);
        }
        state.set_due(key, due);
        Ok(())
    }

    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let due = state.due.iter().take_while(|(at, _)| *at <= now).take(limit);
        let keys: Vec<_> = due.map(|(_, key)| key.clone()).collect();
        for key in &keys {
            state.set_due(key, Some(now.after(lease)));
        }
        Ok(keys)
    }

    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error> {
        Ok(self.state().due.first().map(|(at, _)| *at))
    }
}

impl State {
    pub(super) fn set_due(&mut self, key: &SessionKey, due: Option<Timestamp>) {
        let Some(entry) = self.entry_mut(key) else { return };
        let before = std::mem::replace(&mut entry.due, due);
        if let Some(at) = before {
            self.due.remove(&(at, key.clone()));
        }
        if let Some(at) = due {
            self.due.insert((at, key.clone()));
        }
    }
}
