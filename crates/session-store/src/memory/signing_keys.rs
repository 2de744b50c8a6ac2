//! Signing keys in memory.

use super::MemoryStore;
use crate::signing_keys::{KEY_GAP, KEY_RETENTION, KnownKey, KnownKeys, MAX_SIGNING_KEYS};
use crate::{Error, SigningKeys};
use async_trait::async_trait;
use session_core::Timestamp;
use std::collections::BTreeMap;

/// Observed keys by id.
#[derive(Default)]
pub(super) struct Keys(BTreeMap<String, KeyState>);

struct KeyState {
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
        let known = &mut state.signing_keys.0;
        known.retain(|_, key| now.since(key.seen) <= KEY_RETENTION);
        let mut keys = Vec::new();
        for id in published {
            if !known.contains_key(id) && known.len() >= MAX_SIGNING_KEYS {
                let unreported = known.iter().filter(|(_, key)| now.since(key.seen) > KEY_GAP);
                let oldest = unreported
                    .min_by_key(|(_, key)| key.seen)
                    .map(|(id, _)| id.clone());
                let Some(oldest) = oldest else { continue };
                known.remove(&oldest);
            }
            let key = known.entry(id.clone()).or_insert(KeyState {
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
