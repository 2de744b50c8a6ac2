//! The store in Redis.
//!
//! Every write is one Lua script: precondition, record, indexes, due entry,
//! quota, history and the partition's stream of changes change together or not
//! at all. An organization's keys share one hash slot ([`keys`]), so the same
//! scripts run on one server and on Redis Cluster. Time is Redis `TIME`.

mod activity_reports;
mod audit_trail;
mod change_feed;
mod connection;
mod definitions;
mod due_queue;
mod leases;
mod options;
mod places;
mod retention;
mod safety;
mod schema;
mod scripts;
mod session_index;
mod sessions;
mod signing_keys;
mod spark_bindings;
mod spark_sessions;
mod store_health;
mod tokens;

use crate::Error;
use connection::Connections;
pub use options::{ConnectError, Credentials, Options, TlsFiles};
use safety::epoch::Epoch;
use safety::monitor::Watch;
use safety::replication::Replication;
use schema::keys::Keys;
use scripts::{Call, Reply, Scripts};
use serde::de::DeserializeOwned;
use session_core::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// Can `url` name a store, and `options` be used with it? Opens nothing, so that
/// a configuration can be checked before anything is.
///
/// # Errors
/// [`ConnectError::Url`], [`ConnectError::Prefix`] or [`ConnectError::Tls`].
pub fn check(url: &str, options: &Options) -> Result<(), ConnectError> {
    if url == crate::MEMORY {
        return Ok(());
    }
    Keys::new(&options.prefix).ok_or(ConnectError::Prefix)?;
    connection::check(url, options)
}

/// Sessions in Redis.
#[derive(Clone)]
pub struct RedisStore {
    connections: Arc<Connections>,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
    epoch: Arc<Epoch>,
    replication: Arc<Replication>,
    audit_length: usize,
    /// Where the next claim of due sessions begins.
    next_partition: Arc<AtomicU8>,
    /// Ends with the last of those that callers hold.
    _watch: Option<Arc<Watch>>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to the Redis at `url` and checks that it keeps what it is
    /// given. The URL is one of
    /// - `redis://[user:password@]host[:port][/db]`: one server;
    /// - `redis-sentinel://[user:password@]host[:port],.../name[?db=N]`: the
    ///   server that the sentinels call by that name;
    /// - `redis-cluster://[user:password@]host[:port],...`: a cluster, found
    ///   through any of these;
    ///
    /// or the same with `rediss` in place of `redis` for TLS.
    ///
    /// # Errors
    /// [`ConnectError`] says which of these it was.
    pub async fn connect(url: &str, options: &Options) -> Result<Self, ConnectError> {
        let keys = Arc::new(Keys::new(&options.prefix).ok_or(ConnectError::Prefix)?);
        let connections = Arc::new(Connections::open(url, options).await?);
        let scripts = Arc::new(Scripts::new());
        let epoch = Epoch::new(Arc::clone(&connections), Arc::clone(&keys), Arc::clone(&scripts));
        let store = Self {
            connections,
            keys,
            scripts,
            epoch: Arc::new(epoch),
            replication: Arc::default(),
            audit_length: options.audit_length,
            next_partition: Arc::default(),
            _watch: None,
        };
        store.epoch.current().await.map_err(ConnectError::Unavailable)?;
        let _watch = Some(Arc::new(Watch::begin(store.clone())));
        Ok(Self { _watch, ..store })
    }

    async fn run(&self, call: &Call<'_>) -> Result<Reply, Error> {
        self.connections.run(call).await.map(Reply)
    }

    /// Takes members that name no session out of an index: nobody could ever
    /// settle them, and they must not hold up the others.
    async fn drop_strays(&self, index: &str, strays: &[String]) -> Result<(), Error> {
        tracing::error!(index, ?strays, "entries that name no session are dropped");
        let mut cmd = redis::cmd("ZREM");
        self.connections.query::<()>(cmd.arg(index).arg(strays)).await
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

fn decode<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Corrupt(error.to_string()))
}

/// What `TIME` answers.
fn moment((seconds, micros): (u64, u64)) -> Timestamp {
    Timestamp::from_millis(seconds * 1000 + micros / 1000)
}

/// A moment as a score. Scores are doubles: exact up to 2^53, some 285 000 years.
fn score(at: Timestamp) -> u64 {
    at.as_millis().min(1 << 53)
}
