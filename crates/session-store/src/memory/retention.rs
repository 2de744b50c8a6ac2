//! Deletion of ended sessions in memory.

use super::MemoryStore;
use super::State;
use crate::{Error, Retention, Tombstones};
use async_trait::async_trait;
use session_core::{PrincipalId, SessionId, SessionKey, Timestamp};
use std::collections::HashMap;

impl State {
    pub(super) fn trim(&mut self, keep: &Tombstones, limit: usize, now: Timestamp) -> usize {
        let mut expired = Vec::new();
        for (org, sessions) in &self.orgs {
            let mut ended: Vec<(Timestamp, &SessionId, &PrincipalId, bool)> = sessions
                .iter()
                .filter_map(|(id, entry)| {
                    let at = entry.session.closed_at?;
                    Some((at, id, &entry.session.owner, entry.due.is_some()))
                })
                .collect();
            ended.sort_unstable();
            let mut owner_counts: HashMap<&PrincipalId, usize> = HashMap::new();
            for (_, _, owner, _) in &ended {
                *owner_counts.entry(owner).or_default() += 1;
            }
            let mut of_org = ended.len();
            for (at, id, owner, due) in ended {
                let left = owner_counts.entry(owner).or_default();
                let kept = now.since(at) < keep.age && *left <= keep.per_owner && of_org <= keep.per_org;
                *left -= 1;
                of_org -= 1;
                if !kept && !due {
                    expired.push(SessionKey {
                        org: org.clone(),
                        id: id.clone(),
                    });
                }
            }
        }
        expired.truncate(limit);
        for key in &expired {
            self.orgs
                .get_mut(&key.org)
                .map(|sessions| sessions.remove(&key.id));
        }
        expired.len()
    }
}

#[async_trait]
impl Retention for MemoryStore {
    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error> {
        let now = self.clock.now();
        Ok(self.state().trim(keep, limit, now))
    }
}
