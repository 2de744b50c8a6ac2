//! One Redis server: a shared connection and the last `INFO` of the server. A
//! connection is used only after the server is verified to be a primary that evicts
//! nothing, and after that the sentinels, if any, still name it as the primary: a
//! restarted former primary still reports itself as one.

use super::failure::Failure;
use super::sentinels::Sentinels;
use super::target::{Address, Role, Target};
use parking_lot::{Mutex, MutexGuard};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, InfoDict, Pipeline, RedisResult};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pause after a failed connection attempt, so that queued callers do not each wait for
/// a new attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A command or a pipeline.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    One(&'a Cmd),
    Many(&'a Pipeline),
}

impl Request<'_> {
    pub(super) async fn send<T: FromRedisValue>(&self, to: &mut MultiplexedConnection) -> RedisResult<T> {
        match self {
            Self::One(cmd) => cmd.query_async(to).await,
            Self::Many(pipeline) => pipeline.query_async(to).await,
        }
    }
}

/// Parsed `INFO` of a server.
#[derive(Debug, Clone, Default)]
pub(in crate::redis) struct ServerInfo {
    /// Run id and replication id: changes when the server restarts or takes over from
    /// another one.
    pub(in crate::redis) lineage: String,
    /// Used memory, in bytes.
    pub(in crate::redis) used: u64,
    /// `maxmemory`, in bytes; 0 if unlimited.
    pub(in crate::redis) limit: u64,
    /// Number of connected replicas.
    pub(in crate::redis) replicas: u64,
    primary: bool,
    policy: String,
}

impl ServerInfo {
    async fn fetch(connection: &mut MultiplexedConnection) -> Result<Self, Failure> {
        let mut pipeline = redis::pipe();
        for section in ["server", "replication", "memory"] {
            pipeline.cmd("INFO").arg(section);
        }
        let (server, replication, memory): (InfoDict, InfoDict, InfoDict) =
            pipeline.query_async(connection).await?;
        let text = |info: &InfoDict, name: &str| info.get::<String>(name).unwrap_or_default();
        let number = |info: &InfoDict, name: &str| text(info, name).parse().unwrap_or(0);
        Ok(Self {
            lineage: format!(
                "{}/{}",
                text(&server, "run_id"),
                text(&replication, "master_replid")
            ),
            used: number(&memory, "used_memory"),
            limit: number(&memory, "maxmemory"),
            replicas: number(&replication, "connected_slaves"),
            primary: text(&replication, "role") == "master",
            policy: text(&memory, "maxmemory_policy"),
        })
    }
}

#[derive(Clone)]
struct SharedConnection {
    connection: MultiplexedConnection,
    number: u64,
}

#[derive(Default)]
struct State {
    shared: Option<SharedConnection>,
    info: ServerInfo,
    /// Whether it has or had a replica.
    replicated: bool,
    opened: u64,
    failed: Option<(Instant, Failure)>,
}

/// A Redis server.
pub(in crate::redis) struct Server {
    pub(super) address: Address,
    role: Role,
    allow_eviction: bool,
    sentinels: Option<Arc<Sentinels>>,
    state: Mutex<State>,
    opening: tokio::sync::Mutex<()>,
}

impl Server {
    pub(super) fn sentinel(address: Address) -> Self {
        Self::new(address, Role::Sentinel, true, None)
    }

    /// A server with state; `sentinels` name it as the primary.
    pub(super) fn data(address: Address, allow_eviction: bool, sentinels: Option<Arc<Sentinels>>) -> Self {
        Self::new(address, Role::Data, allow_eviction, sentinels)
    }

    fn new(address: Address, role: Role, allow_eviction: bool, sentinels: Option<Arc<Sentinels>>) -> Self {
        Self {
            address,
            role,
            allow_eviction,
            sentinels,
            state: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// Sends a request on the shared connection, which is opened if necessary.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        target: &Target,
        request: Request<'_>,
    ) -> Result<T, Failure> {
        let mut shared = self.shared(target).await?;
        let reply = request.send(&mut shared.connection).await;
        if reply
            .as_ref()
            .is_err_and(redis::RedisError::is_unrecoverable_error)
        {
            self.drop_shared(shared.number);
        }
        Ok(reply?)
    }

    /// Returns the `INFO` of the shared connection, which is opened if necessary.
    pub(super) async fn server_info(&self, target: &Target) -> Result<ServerInfo, Failure> {
        self.shared(target).await?;
        Ok(self.info())
    }

    /// Reads the `INFO` again. Drops the connection of a server that must no longer be
    /// used.
    pub(super) async fn refresh(&self, target: &Target) -> Result<(), Failure> {
        let mut shared = self.shared(target).await?;
        let checked = match ServerInfo::fetch(&mut shared.connection).await {
            Ok(info) => self.check(info),
            Err(failure) => Err(failure),
        };
        match checked {
            Ok(info) => {
                self.record_info(&info);
                Ok(())
            }
            Err(failure) => {
                self.drop_shared(shared.number);
                Err(failure)
            }
        }
    }

    /// Opens a dedicated connection to this server.
    pub(super) async fn open(&self, target: &Target) -> Result<MultiplexedConnection, Failure> {
        let mut connection = target.open(&self.address, self.role).await?;
        if self.role == Role::Data {
            let info = self.check(ServerInfo::fetch(&mut connection).await?)?;
            self.record_info(&info);
        }
        if let Some(sentinels) = &self.sentinels {
            let primary = sentinels.primary(target).await?;
            if primary.address != self.address {
                return Err(Failure::Replica(self.address.clone()));
            }
            // Also if none is connected, as after a fail-over.
            self.state().replicated |= primary.has_replicas;
        }
        Ok(connection)
    }

    /// Address of the server.
    pub(in crate::redis) fn address(&self) -> &Address {
        &self.address
    }

    /// The last `INFO`.
    pub(in crate::redis) fn info(&self) -> ServerInfo {
        self.state().info.clone()
    }

    /// Returns whether it has or ever had a replica.
    pub(in crate::redis) fn is_replicated(&self) -> bool {
        self.state().replicated
    }

    async fn shared(&self, target: &Target) -> Result<SharedConnection, Failure> {
        let shared = self.state().shared.clone();
        match shared {
            Some(shared) => Ok(shared),
            // Boxed, to keep the futures of all calls small.
            None => Box::pin(self.open_shared(target)).await,
        }
    }

    /// Opens the shared connection, unless another caller just did.
    async fn open_shared(&self, target: &Target) -> Result<SharedConnection, Failure> {
        let _guard = self.opening.lock().await;
        {
            let state = self.state();
            if let Some(shared) = state.shared.clone() {
                return Ok(shared);
            }
            if let Some((at, failure)) = &state.failed
                && at.elapsed() < RETRY_PAUSE
            {
                return Err(failure.clone());
            }
        }
        let opened = self.open(target).await;
        let mut state = self.state();
        match opened {
            Ok(connection) => {
                state.opened += 1;
                let shared = SharedConnection {
                    connection,
                    number: state.opened,
                };
                state.shared = Some(shared.clone());
                state.failed = None;
                Ok(shared)
            }
            Err(failure) => {
                state.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    fn check(&self, info: ServerInfo) -> Result<ServerInfo, Failure> {
        if !info.primary {
            return Err(Failure::Replica(self.address.clone()));
        }
        if info.policy != "noeviction" && !self.allow_eviction {
            tracing::error!(
                server = %self.address, policy = info.policy,
                "Redis eviction policy may delete sessions: set maxmemory-policy noeviction"
            );
            return Err(Failure::Evicts(info.policy));
        }
        Ok(info)
    }

    fn record_info(&self, info: &ServerInfo) {
        let mut state = self.state();
        state.replicated |= info.replicas > 0;
        state.info = info.clone();
    }

    /// Drops the shared connection, unless it was replaced by a newer one.
    fn drop_shared(&self, number: u64) {
        let mut state = self.state();
        if state
            .shared
            .as_ref()
            .is_some_and(|shared| shared.number == number)
        {
            state.shared = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}
