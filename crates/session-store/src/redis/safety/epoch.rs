//! The store epoch: which life of the store this is.
//!
//! Every server tells which process it is and which history of writes it
//! follows; together they are the store's lineage. When it is another one, a
//! server was started again or another one took over, and the last writes may
//! be lost. A restore behind a running server's back shows by the pulse of each
//! slot, a number that only rises: one that went back means that the store did.
//! The epoch is kept in Redis, so all managers agree on it, and it is made from
//! the time, so that it rises also when Redis forgot the last one.

use crate::Error;
use crate::redis::connection::{Connections, Failure};
use crate::redis::schema::keys::{Keys, Slot};
use crate::redis::scripts::Scripts;
use futures::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use tokio::sync::watch;

/// The store epoch, as far as this process knows it.
pub(in crate::redis) struct Epoch {
    connections: Arc<Connections>,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
    /// 0 before the first.
    known: watch::Sender<u64>,
    /// What `known` was told for.
    lineage: Mutex<String>,
    /// The last pulse of each slot.
    pulses: Mutex<Vec<u64>>,
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
            pulses: Mutex::new(vec![0; Slot::all().count()]),
        }
    }

    /// Tells whenever it rises.
    pub(in crate::redis) fn subscribe(&self) -> watch::Receiver<u64> {
        self.known.subscribe()
    }

    /// The epoch of the servers as they are connected now. Asks nobody while
    /// they are the same.
    pub(in crate::redis) async fn current(&self) -> Result<u64, Error> {
        let known = *self.known.borrow();
        match self.connections.lineage().await {
            Ok(lineage) if known != 0 && *self.lineage() == lineage => Ok(known),
            Ok(lineage) => self.agree(&lineage, false).await,
            // What is on a server that is away cannot be read either: the rest
            // goes on with what is known.
            Err(_) if known != 0 && !self.connections.is_one_server() => Ok(known),
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// Looks for signs that the store went back, and hears of what others found.
    pub(in crate::redis) async fn tick(&self) -> Result<(), Error> {
        let pulses = join_all(Slot::all().map(async |slot| {
            let call = self.scripts.pulse.key(self.keys.pulse(slot));
            (slot, self.connections.run::<u64>(&call).await)
        }));
        let mut back = false;
        for (slot, pulse) in pulses.await {
            let Ok(pulse) = pulse else { continue };
            let mut pulses = self.pulses();
            if let Some(last) = pulses.get_mut(slot.index()) {
                back |= pulse <= *last;
                *last = pulse;
            }
        }
        if back {
            tracing::warn!("Redis went back in time: everything is read anew");
        }
        self.current().await?;
        self.agree("", back).await.map(drop)
    }

    /// Agrees with all other managers on the epoch of a lineage.
    async fn agree(&self, lineage: &str, back: bool) -> Result<u64, Error> {
        let seen = *self.known.borrow();
        let mut call = self.scripts.epoch.key(self.keys.epoch());
        call.arg(lineage).arg(seen).arg(u8::from(back));
        let told: String = self.connections.run(&call).await?;
        let epoch: u64 = told
            .parse()
            .map_err(|_| Error::Corrupt(format!("the store epoch is {told:?}")))?;
        if !lineage.is_empty() {
            lineage.clone_into(&mut self.lineage());
        }
        let rose = self.known.send_if_modified(|known| {
            let rises = epoch > *known;
            *known = epoch.max(*known);
            rises
        });
        if rose && seen != 0 {
            tracing::warn!(epoch, "the store epoch rose: what was written last may be lost");
        }
        Ok(epoch.max(seen))
    }

    fn lineage(&self) -> MutexGuard<'_, String> {
        self.lineage.lock()
    }

    fn pulses(&self) -> MutexGuard<'_, Vec<u64>> {
        self.pulses.lock()
    }
}

impl Connections {
    /// Every server's process and history, in the order of the slots.
    async fn lineage(&self) -> Result<String, Failure> {
        let mut lineage = String::new();
        let mut last = None;
        for server in self.servers().await?.iter() {
            if last.is_some_and(|last| Arc::ptr_eq(last, server)) {
                continue;
            }
            last = Some(server);
            lineage.push_str(&self.server_info(server).await?.run);
            lineage.push(' ');
        }
        Ok(lineage)
    }
}
