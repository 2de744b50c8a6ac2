//! Generations that were released, so that a late `ensure` does not bring one
//! back.

use session_core::SessionKey;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Kept at least so long, should there be many.
const KEEP: Duration = Duration::from_secs(3600);
const MANY: usize = 10_000;

/// The highest released generation by session.
#[derive(Debug, Default)]
pub(crate) struct Released(HashMap<SessionKey, (u64, Instant)>);

impl Released {
    /// Records the release of a generation and all before it.
    pub(crate) fn add(&mut self, key: &SessionKey, up_to: u64) {
        let now = Instant::now();
        if self.0.len() >= MANY {
            self.0.retain(|_, (_, at)| now.duration_since(*at) < KEEP);
        }
        let entry = self.0.entry(key.clone()).or_insert((up_to, now));
        *entry = (entry.0.max(up_to), now);
    }

    /// Whether this generation was released.
    pub(crate) fn contains(&self, key: &SessionKey, generation: u64) -> bool {
        self.0.get(key).is_some_and(|(up_to, _)| generation <= *up_to)
    }
}
