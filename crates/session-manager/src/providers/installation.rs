//! The installation id, its pool secret, and the time since when the store has lost
//! nothing.
//!
//! Compute carries the id of its installation, so that no other installation
//! deletes it. Beside the id the store keeps `whole_since`, the earliest time since
//! when no writes can have been lost. Compute older than that may belong to a
//! session whose record was lost, so a missing record never proves that it is an
//! orphan. Every manager confirms both once a minute.
//!
//! The pool secret is the key of the hash that marks pods of warm pools. All managers
//! must have the same one, and who reads pods must not know it.

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use session_core::Timestamp;
use session_core::route::Secret;
use session_store::{Error, Kind, SessionStore};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "this";
/// Longest time between two confirmations. After a longer gap the store may have
/// been restored from a copy or changed by hand.
const MAX_CONFIRMATION_GAP: Duration = Duration::from_secs(180);
/// Attempts to confirm when other managers confirm concurrently.
const MAX_ATTEMPTS: usize = 8;

/// The stored description of the installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Installation {
    /// The installation id.
    pub(crate) id: String,
    /// 256 random bits in hexadecimal. Empty in a description of an earlier release;
    /// the next confirmation adds them.
    #[serde(
        default = "no_secret",
        serialize_with = "session_core::route::serialize_exposed"
    )]
    pub(crate) pool_secret: Secret,
    /// The store has lost nothing since then.
    pub(crate) whole_since: Timestamp,
    seen_at: Timestamp,
    store_epoch: u64,
}

/// The last confirmation of this manager.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Confirmed {
    id: String,
    pool_secret: Secret,
    /// The version that this manager wrote.
    version: u64,
}

/// The store belongs to another installation than at the start of this manager.
#[derive(Debug, PartialEq, Eq)]
struct OtherInstallation;

/// Reads and confirms the description of the installation.
#[derive(Debug)]
pub(crate) struct InstallationIdentity {
    store: Arc<dyn SessionStore>,
    confirmed: Mutex<Option<Confirmed>>,
}

/// The installation id; created if there is none yet.
///
/// # Errors
/// If reading or writing the store fails.
pub(crate) async fn id(store: &Arc<dyn SessionStore>) -> Result<String, Error> {
    Ok(read(store).await?.id)
}

/// The description of the installation; created if there is none yet.
///
/// # Errors
/// If reading or writing the store fails.
pub(crate) async fn read(store: &Arc<dyn SessionStore>) -> Result<Installation, Error> {
    let identity = InstallationIdentity::new(Arc::clone(store));
    let install = identity.confirm().await?;
    install.ok_or_else(|| Error::Corrupt("the installation has two ids".to_owned()))
}

fn no_secret() -> Secret {
    Secret::new(String::new())
}

fn new_secret() -> Secret {
    let halves: [u128; 2] = rand::random();
    Secret::new(halves.map(|half| format!("{half:032x}")).concat())
}

impl InstallationIdentity {
    pub(crate) fn new(store: Arc<dyn SessionStore>) -> Self {
        Self {
            store,
            confirmed: Mutex::default(),
        }
    }

    /// Reads the description and records the confirmation. None if the store now
    /// belongs to another installation.
    ///
    /// # Errors
    /// A store error, or [`Error::Conflict`] after [`MAX_ATTEMPTS`].
    pub(crate) async fn confirm(&self) -> Result<Option<Installation>, Error> {
        for _ in 0..MAX_ATTEMPTS {
            let stored = self.store.get_definition(Kind::InstallationId, NAME).await?;
            let epoch = self.store.epoch().await?;
            let now = self.store.now().await?;
            let before = match &stored {
                None => None,
                Some(stored) => {
                    let install: Installation = serde_json::from_str(&stored.json)
                        .map_err(|error| Error::Corrupt(error.to_string()))?;
                    Some((install, stored.version))
                }
            };
            let last = self.confirmed().clone();
            let Ok(next) = next_description(before.as_ref(), last.as_ref(), now, epoch) else {
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
                    *self.confirmed() = Some(Confirmed {
                        id: next.id.clone(),
                        pool_secret: next.pool_secret.clone(),
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

    /// Simulates the loss of the store's data during the life of a manager.
    #[cfg(test)]
    pub(crate) fn replace_store(&mut self, store: Arc<dyn SessionStore>) {
        self.store = store;
    }

    fn confirmed(&self) -> MutexGuard<'_, Option<Confirmed>> {
        self.confirmed.lock()
    }
}

/// The description to write, given the stored one with its version and this
/// manager's last confirmation.
fn next_description(
    stored: Option<&(Installation, u64)>,
    last: Option<&Confirmed>,
    now: Timestamp,
    store_epoch: u64,
) -> Result<Installation, OtherInstallation> {
    let Some((before, version)) = stored else {
        // A new installation, or a store that lost everything: its compute keeps the id.
        let id = last.map_or_else(
            || format!("{:032x}", rand::random::<u128>()),
            |last| last.id.clone(),
        );
        return Ok(Installation {
            id,
            pool_secret: last.map_or_else(new_secret, |last| last.pool_secret.clone()),
            whole_since: now,
            seen_at: now,
            store_epoch,
        });
    };
    if last.is_some_and(|last| last.id != before.id) {
        return Err(OtherInstallation);
    }
    let pool_secret = match (&before.pool_secret, last) {
        (stored, _) if !stored.expose().is_empty() => stored.clone(),
        (_, Some(last)) => last.pool_secret.clone(),
        (_, None) => new_secret(),
    };
    let rolled_back = last.is_some_and(|last| *version < last.version);
    let failed_over = before.store_epoch != store_epoch;
    let unconfirmed =
        now.since(before.seen_at) > MAX_CONFIRMATION_GAP || before.seen_at.since(now) > MAX_CONFIRMATION_GAP;
    Ok(Installation {
        id: before.id.clone(),
        pool_secret,
        whole_since: if rolled_back || failed_over || unconfirmed {
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
    async fn all_managers_share_the_id_and_whole_since() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = at(&clock);
        let managers = [0, 1, 2].map(|_| InstallationIdentity::new(Arc::clone(&store)));
        let first = managers[0].confirm().await.unwrap().unwrap();
        assert_eq!((first.id.len(), first.whole_since.as_millis()), (32, 1_000_000));
        for minute in 0..30 {
            clock.advance(MINUTE);
            let install = managers[minute % 3].confirm().await.unwrap().unwrap();
            assert_eq!(
                (install.id, install.whole_since),
                (first.id.clone(), first.whole_since)
            );
            assert_eq!(install.pool_secret, first.pool_secret);
        }
        assert_eq!(first.pool_secret.expose().len(), 64);
        let other = read(&at(&clock)).await.unwrap();
        assert_ne!(other.pool_secret, first.pool_secret, "of another installation");
        assert_eq!(id(&store).await.unwrap(), first.id);
    }

    #[tokio::test]
    async fn an_emptied_store_keeps_the_id_and_is_whole_since_now() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let mut manager = InstallationIdentity::new(at(&clock));
        let first = manager.confirm().await.unwrap().unwrap();
        clock.advance(MINUTE);
        manager.replace_store(at(&clock));
        let install = manager.confirm().await.unwrap().unwrap();
        assert_eq!(install.id, first.id);
        assert_eq!(install.pool_secret, first.pool_secret);
        assert_eq!(install.whole_since, first.whole_since.after(MINUTE));

        // A new manager wrote another id first: the store counts as another installation's.
        manager.replace_store(at(&clock));
        id(&manager.store).await.unwrap();
        assert_eq!(manager.confirm().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_description_without_a_pool_secret_gets_one() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000_000)));
        let store = at(&clock);
        let old = r#"{"id": "a", "whole_since": 1, "seen_at": 1, "store_epoch": 0}"#;
        let old = store.put_definition(Kind::InstallationId, NAME, 0, old).await;
        old.unwrap();
        let first = read(&store).await.unwrap();
        assert_eq!((first.id.as_str(), first.pool_secret.expose().len()), ("a", 64));
        assert_eq!(read(&store).await.unwrap().pool_secret, first.pool_secret);
    }

    #[test]
    fn a_store_that_may_have_lost_writes_is_whole_since_now() {
        let (then, now) = (
            Timestamp::from_millis(1_000_000),
            Timestamp::from_millis(2_000_000),
        );
        let stored = |seen_at: Timestamp, version| {
            let install = Installation {
                id: "a".to_owned(),
                pool_secret: Secret::new("s".to_owned()),
                whole_since: then,
                seen_at,
                store_epoch: 1,
            };
            (install, version)
        };
        let last = Confirmed {
            id: "a".to_owned(),
            pool_secret: Secret::new("s".to_owned()),
            version: 7,
        };
        let whole = |stored: (Installation, u64), epoch| {
            let install = next_description(Some(&stored), Some(&last), now, epoch).unwrap();
            install.whole_since == then
        };
        assert!(whole(stored(now.before(MINUTE), 7), 1));
        assert!(whole(stored(now.before(MAX_CONFIRMATION_GAP), 9), 1));
        assert!(!whole(stored(now.before(MINUTE), 6), 1), "version rolled back");
        assert!(!whole(stored(now.before(MINUTE), 7), 2), "another primary");
        assert!(
            !whole(stored(now.before(MAX_CONFIRMATION_GAP + MINUTE), 7), 1),
            "not confirmed for too long"
        );
        assert!(
            !whole(stored(now.after(MAX_CONFIRMATION_GAP + MINUTE), 7), 1),
            "clock set back"
        );
    }
}
