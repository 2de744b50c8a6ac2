//! The store in Redis.
//!
//! Every write is one Lua script: precondition, record, indexes, due entry, quota,
//! history and the partition's stream of changes are written together or not at all.
//! The keys of an organization share one hash slot ([`keys`]), so the same scripts run
//! on one server and on Redis Cluster. Time is Redis `TIME`.

mod activity_reports;
mod audit_trail;
mod change_feed;
mod connection;
mod definitions;
mod due_queue;
mod leases;
mod options;
mod placements;
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
use safety::monitor::Monitor;
use safety::replication::Replication;
use schema::keys::Keys;
use scripts::{Call, Reply, Scripts};
use serde::de::DeserializeOwned;
use session_core::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// Verifies `url` and `options` without a connection, to check a configuration.
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
    /// First partition of the next claim of due sessions.
    next_partition: Arc<AtomicU8>,
    /// Ends with the last clone of the store that a caller holds.
    _monitor: Option<Arc<Monitor>>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to the Redis at `url` and verifies that it evicts nothing. The URL is
    /// one of
    /// - `redis://[user:password@]host[:port][/db]`: one server;
    /// - `redis-sentinel://[user:password@]host[:port],.../name[?db=N]`: the
    ///   primary with this name in the sentinels;
    /// - `redis-cluster://[user:password@]host[:port],...`: a cluster with
    ///   these first nodes;
    ///
    /// or the same with `rediss` in place of `redis` for TLS.
    ///
    /// # Errors
    /// [`ConnectError`] has the cause.
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
            _monitor: None,
        };
        store.epoch.current().await.map_err(ConnectError::Unavailable)?;
        let _monitor = Some(Arc::new(Monitor::begin(store.clone())));
        Ok(Self { _monitor, ..store })
    }

    async fn run(&self, call: &Call<'_>) -> Result<Reply, Error> {
        self.connections.run(call).await.map(Reply)
    }

    /// Deletes members without a valid name from an index: nothing else would remove
    /// them, and they must not block the others.
    async fn remove_dangling(&self, index: &str, dangling: &[String]) -> Result<(), Error> {
        tracing::error!(index, ?dangling, "deleting dangling index entries");
        let mut cmd = redis::cmd("ZREM");
        self.connections.query::<()>(cmd.arg(index).arg(dangling)).await
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

fn decode<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Corrupt(error.to_string()))
}

/// Converts a reply of `TIME`.
fn from_redis_time((seconds, micros): (u64, u64)) -> Timestamp {
    Timestamp::from_millis(seconds * 1000 + micros / 1000)
}

/// A time as a score. Scores are doubles: exact up to 2^53, about 285 000 years.
fn score(at: Timestamp) -> u64 {
    at.as_millis().min(1 << 53)
}
