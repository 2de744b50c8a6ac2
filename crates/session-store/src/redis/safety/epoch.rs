//! The store epoch: increases when writes may have been lost.
//!
//! Every server has a run id and a replication id; together they are the lineage of the
//! store. A changed lineage means that a server was restarted or replaced, and the last
//! writes may be lost. A restore on a running server is detected by the heartbeat of
//! each slot, a counter that only increases: a lower value means that the store went
//! back in time. The epoch is stored in Redis, so that all managers agree on it, and is
//! at least the time, so that it also increases when Redis lost the last one.

use crate::redis::connection::{Connections, Failure};
use crate::redis::schema::keys::{Keys, Slot};
use crate::redis::scripts::Scripts;
use crate::{Error, Outage};
use futures::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use tokio::sync::watch;

/// The store epoch as this process knows it.
pub(in crate::redis) struct Epoch {
    connections: Arc<Connections>,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
    /// 0 until first known.
    known: watch::Sender<u64>,
    /// Lineage for which `known` was agreed.
    lineage: Mutex<String>,
    /// Last heartbeat of each slot.
    heartbeats: Mutex<Vec<u64>>,
    /// Why a server rejected the last heartbeat, if one did.
    rejection: Mutex<Option<Outage>>,
}

impl Epoch {
    pub(in crate::redis) fn new(
        connections: Arc<Connections>,
        keys: Arc<Keys>,
        scripts: Arc<Scripts>,
    ) -> Self {
        Self {
            connections,
            keys,
            scripts,
            known: watch::Sender::new(0),
            lineage: Mutex::default(),
            heartbeats: Mutex::new(vec![0; Slot::all().count()]),
            rejection: Mutex::default(),
        }
    }

    /// Notifies of every increase.
    pub(in crate::redis) fn subscribe(&self) -> watch::Receiver<u64> {
        self.known.subscribe()
    }

    /// Returns the epoch of the connected servers; reads it from Redis only if the
    /// lineage changed.
    pub(in crate::redis) async fn current(&self) -> Result<u64, Error> {
        let known = *self.known.borrow();
        match self.connections.lineage().await {
            Ok(lineage) if known != 0 && *self.lineage() == lineage => Ok(known),
            Ok(lineage) => self.agree(&lineage, false).await,
            // In a cluster the reachable servers continue with the known epoch: data of
            // an unreachable one cannot be read anyway.
            Err(_) if known != 0 && !self.connections.is_one_server() => Ok(known),
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// Increments the heartbeats to detect a store that went back in time, and reads
    /// the epoch that other managers agreed on.
    pub(in crate::redis) async fn tick(&self) -> Result<(), Error> {
        let heartbeats = join_all(Slot::all().map(async |slot| {
            let call = self.scripts.heartbeat.key(self.keys.heartbeat(slot));
            (slot, self.connections.run::<u64>(&call).await)
        }));
        let (mut went_back, mut rejection) = (false, None);
        for (slot, heartbeat) in heartbeats.await {
            let heartbeat = match heartbeat {
                Ok(heartbeat) => heartbeat,
                Err(Error::Unavailable(outage)) if outage.cause.rejects_changes() => {
                    rejection = Some(outage);
                    continue;
                }
                Err(_) => continue,
            };
            let mut heartbeats = self.heartbeats();
            if let Some(last) = heartbeats.get_mut(slot.index()) {
                went_back |= heartbeat <= *last;
                *last = heartbeat;
            }
        }
        *self.rejection.lock() = rejection;
        if went_back {
            tracing::warn!("Redis went back in time; reading all state again");
        }
        self.current().await?;
        self.agree("", went_back).await.map(drop)
    }

    /// Why a server rejected the last heartbeat, and so rejects all changes.
    pub(in crate::redis) fn rejection(&self) -> Option<Outage> {
        self.rejection.lock().clone()
    }

    /// Agrees with all managers on the epoch of a lineage.
    async fn agree(&self, lineage: &str, went_back: bool) -> Result<u64, Error> {
        let seen = *self.known.borrow();
        let mut call = self.scripts.epoch.key(self.keys.epoch());
        call.arg(lineage).arg(seen).arg(u8::from(went_back));
        let reply: String = self.connections.run(&call).await?;
        let epoch: u64 = reply
            .parse()
            .map_err(|_| Error::Corrupt(format!("the store epoch is {reply:?}")))?;
        if !lineage.is_empty() {
            lineage.clone_into(&mut self.lineage());
        }
        let increased = self.known.send_if_modified(|known| {
            let increases = epoch > *known;
            *known = epoch.max(*known);
            increases
        });
        if increased && seen != 0 {
            tracing::warn!(epoch, "store epoch increased; the last writes may be lost");
        }
        Ok(epoch.max(seen))
    }

    fn lineage(&self) -> MutexGuard<'_, String> {
        self.lineage.lock()
    }

    fn heartbeats(&self) -> MutexGuard<'_, Vec<u64>> {
        self.heartbeats.lock()
    }
}

impl Connections {
    /// The lineage of all servers, in the order of the slots.
    async fn lineage(&self) -> Result<String, Failure> {
        let mut lineage = String::new();
        let mut last = None;
        for server in self.servers().await?.iter() {
            if last.is_some_and(|last| Arc::ptr_eq(last, server)) {
                continue;
            }
            last = Some(server);
            lineage.push_str(&self.server_info(server).await?.lineage);
            lineage.push(' ');
        }
        Ok(lineage)
    }
}
