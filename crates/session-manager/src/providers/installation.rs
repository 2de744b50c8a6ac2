//! Which installation this is, and since when its store has been whole.
//!
//! Compute carries the id of its installation, so that nobody gives back what
//! another one made. Beside the id the store keeps since when nothing was lost
//! from it, as far as anybody can tell: compute that is older than that may
//! belong to a session whose record was lost, and is never given back for want
//! of a record. Every manager confirms both once a minute.

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use session_core::Timestamp;
use session_store::{Error, Kind, SessionStore};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "this";
/// When nobody confirmed it for so long, the store may be another one: a copy
/// that was put back, or the same after any number of hands were at it.
const GAP: Duration = Duration::from_secs(180);
const RACES: usize = 8;

/// What the store says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Install {
    /// Tells this installation from others.
    pub(crate) id: String,
    /// Nothing was lost since then.
    pub(crate) whole_since: Timestamp,
    seen_at: Timestamp,
    store_epoch: u64,
}

/// What this manager knows from before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Own {
    id: String,
    /// The version of what it last read or wrote.
    version: u64,
}

/// The store belongs to another installation than this manager began with.
#[derive(Debug, PartialEq, Eq)]
struct Foreign;

/// Keeps the store's word about itself.
#[derive(Debug)]
pub(crate) struct Identity {
    store: Arc<dyn SessionStore>,
    own: Mutex<Option<Own>>,
}

/// The id of the installation; made if there is none yet.
///
/// # Errors
/// When the store cannot be read or written.
pub(crate) async fn id(store: &Arc<dyn SessionStore>) -> Result<String, Error> {
    let identity = Identity::new(Arc::clone(store));
    let install = identity.confirm().await?;
    install
        .map(|install| install.id)
        .ok_or_else(|| Error::Corrupt("the installation has two ids".to_owned()))
}

impl Identity {
    pub(crate) fn new(store: Arc<dyn SessionStore>) -> Self {
        Self {
            store,
            own: Mutex::default(),
        }
    }

    /// Reads what the store says, and says that somebody looked. None if it is
    /// another installation's by now.
    pub(crate) async fn confirm(&self) -> Result<Option<Install>, Error> {
        for _ in 0..RACES {
            let stored = self.store.get_definition(Kind::InstallationId, NAME).await?;
            let epoch = self.store.epoch().await?;
            let now = self.store.now().await?;
            let before = match &stored {
                None => None,
                Some(stored) => {
                    let install: Install = serde_json::from_str(&stored.json)
                        .map_err(|error| Error::Corrupt(error.to_string()))?;
                    Some((install, stored.version))
                }
            };
            let own = self.own().clone();
            let Ok(next) = confirmed(before.as_ref(), own.as_ref(), now, epoch) else {
                return Ok(None);
            };
            let json = serde_json::to_string(&next).map_err(|error| Error::Corrupt(error.to_string()))?;
            let expected = stored.map_or(0, |stored| stored.version);
            match self
                .store
                .put_definition(Kind::InstallationId, NAME, expected, &json)
                .await
            {
                Ok(version) => {
                    *self.own() = Some(Own {
                        id: next.id.clone(),
                        version,
                    });
                    return Ok(Some(next));
                }
                Err(Error::Conflict | Error::Exists | Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Conflict)
    }

    /// The same manager, after its store was emptied under it.
    #[cfg(test)]
    pub(crate) fn moved_to(&mut self, store: Arc<dyn SessionStore>) {
        self.store = store;
    }

    fn own(&self) -> MutexGuard<'_, Option<Own>> {
        self.own.lock()
    }
}

/// What is to be written after a look at `stored` and its version.
fn confirmed(
    stored: Option<&(Install, u64)>,
    own: Option<&Own>,
    now: Timestamp,
    store_epoch: u64,
) -> Result<Install, Foreign> {
    let Some((before, version)) = stored else {
        // A new installation; or everything is gone, and its compute is ours still.
        let id = own.map_or_else(
            || format!("{:032x}", rand::random::<u128>()),
            |own| own.id.clone(),
        );
        return Ok(Install {
            id,
            whole_since: now,
            seen_at: now,
            store_epoch,
        });
    };
    if own.is_some_and(|own| own.id != before.id) {
        return Err(Foreign);
    }
    let went_back = own.is_some_and(|own| *version < own.version);
    let changed = before.store_epoch != store_epoch;
    let unseen = now.since(before.seen_at) > GAP || before.seen_at.since(now) > GAP;
    Ok(Install {
        id: before.id.clone(),
        whole_since: if went_back || changed || unseen {
            now
        } else {
            before.whole_since
        },
        seen_at: now,
        store_epoch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::time::ManualClock;
    use session_store::memory::MemoryStore;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(clock: &Arc<ManualClock>) -> Arc<dyn SessionStore> {
        Arc::new(MemoryStore::new(Arc::clone(clock) as _))
    }

    #[tokio::test]
    async fn every_manager_has_the_same_id_and_the_store_is_whole_since_the_first() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = at(&clock);
        let managers = [0, 1, 2].map(|_| Identity::new(Arc::clone(&store)));
        let first = managers[0].confirm().await.unwrap().unwrap();
        assert_eq!((first.id.len(), first.whole_since.as_millis()), (32, 1_000_000));
        for minute in 0..30 {
            clock.advance(MINUTE);
            let install = managers[minute % 3].confirm().await.unwrap().unwrap();
            assert_eq!(
                (install.id, install.whole_since),
                (first.id.clone(), first.whole_since)
            );
        }
        assert_eq!(id(&store).await.unwrap(), first.id);
    }

    #[tokio::test]
    async fn an_emptied_store_gets_its_id_back_and_is_whole_since_now() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let mut manager = Identity::new(at(&clock));
        let first = manager.confirm().await.unwrap().unwrap();
        clock.advance(MINUTE);
        manager.moved_to(at(&clock));
        let install = manager.confirm().await.unwrap().unwrap();
        assert_eq!(install.id, first.id);
        assert_eq!(install.whole_since, first.whole_since.after(MINUTE));

        // Somebody who knew nothing was faster: two installations, hands off.
        manager.moved_to(at(&clock));
        id(&manager.store).await.unwrap();
        assert_eq!(manager.confirm().await.unwrap(), None);
    }

    #[test]
    fn a_store_that_may_have_lost_something_is_whole_since_now() {
        let (then, now) = (
            Timestamp::from_millis(1_000_000),
            Timestamp::from_millis(2_000_000),
        );
        let stored = |seen_at: Timestamp, version| {
            let install = Install {
                id: "a".to_owned(),
                whole_since: then,
                seen_at,
                store_epoch: 1,
            };
            (install, version)
        };
        let own = Own {
            id: "a".to_owned(),
            version: 7,
        };
        let whole = |stored: (Install, u64), epoch| {
            let install = confirmed(Some(&stored), Some(&own), now, epoch).unwrap();
            install.whole_since == then
        };
        assert!(whole(stored(now.before(MINUTE), 7), 1));
        assert!(whole(stored(now.before(GAP), 9), 1));
        assert!(!whole(stored(now.before(MINUTE), 6), 1), "its version went back");
        assert!(!whole(stored(now.before(MINUTE), 7), 2), "another primary");
        assert!(!whole(stored(now.before(GAP + MINUTE), 7), 1), "nobody looked");
        assert!(
            !whole(stored(now.after(GAP + MINUTE), 7), 1),
            "the clock went back"
        );
    }
}
