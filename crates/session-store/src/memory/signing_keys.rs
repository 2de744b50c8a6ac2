//! Signing keys in memory.

use super::MemoryStore;
use crate::signing_keys::{KEY_GAP, KEY_MEMORY, KnownKey, KnownKeys, MOST_KEYS};
use crate::{Error, SigningKeys};
use async_trait::async_trait;
use session_core::Timestamp;
use std::collections::BTreeMap;

/// Keys by id.
#[derive(Default)]
pub(super) struct Keys(BTreeMap<String, Kept>);

struct Kept {
    since: Timestamp,
    signed: Option<Timestamp>,
    seen: Timestamp,
}

#[async_trait]
impl SigningKeys for MemoryStore {
    async fn report_signing_keys(
        &self,
        published: &[String],
        signing: Option<&str>,
    ) -> Result<KnownKeys, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let kept = &mut state.signing_keys.0;
        kept.retain(|_, key| now.since(key.seen) <= KEY_MEMORY);
        let mut keys = Vec::new();
        for id in published {
            if !kept.contains_key(id) && kept.len() >= MOST_KEYS {
                let gone = kept.iter().filter(|(_, key)| now.since(key.seen) > KEY_GAP);
                let stalest = gone.min_by_key(|(_, key)| key.seen).map(|(id, _)| id.clone());
                let Some(stalest) = stalest else { continue };
                kept.remove(&stalest);
            }
            let key = kept.entry(id.clone()).or_insert(Kept {
                since: now,
                signed: None,
                seen: now,
            });
            if now.since(key.seen) > KEY_GAP {
                key.since = now;
            }
            key.seen = now;
            if signing == Some(id) {
                key.signed = Some(now);
            }
            keys.push(KnownKey {
                id: id.clone(),
                published_since: key.since,
                signed_at: key.signed,
            });
        }
        Ok(KnownKeys { now, keys })
    }
}
