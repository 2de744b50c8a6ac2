//! One Redis server: a connection that all callers share, and what the server
//! last told of itself. A connection is handed out only after the server said
//! that it takes writes and keeps what it is given, and after that the sentinels,
//! if there are any, still called it the primary: one that was started again
//! after another one took its place does not know yet that it is none.

use super::failure::Failure;
use super::sentinels::Sentinels;
use super::target::{Address, Role, Target};
use parking_lot::{Mutex, MutexGuard};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, InfoDict, Pipeline, RedisResult};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A server that could not be reached is not tried again for this long, so
/// that callers who wait for each other do not wait for each other's tries.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What is sent.
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

/// What a server tells of itself.
#[derive(Debug, Clone, Default)]
pub(in crate::redis) struct ServerInfo {
    /// This process, with this history of writes: another one when the server
    /// was started again, or took over from another one.
    pub(in crate::redis) run: String,
    /// Bytes in use.
    pub(in crate::redis) used: u64,
    /// Bytes it may use; 0 if that is not limited.
    pub(in crate::redis) limit: u64,
    /// Replicas that are connected.
    pub(in crate::redis) replicas: u64,
    primary: bool,
    policy: String,
}

impl ServerInfo {
    async fn ask(connection: &mut MultiplexedConnection) -> Result<Self, Failure> {
        let mut pipeline = redis::pipe();
        for section in ["server", "replication", "memory"] {
            pipeline.cmd("INFO").arg(section);
        }
        let (server, replication, memory): (InfoDict, InfoDict, InfoDict) =
            pipeline.query_async(connection).await?;
        let text = |info: &InfoDict, name: &str| info.get::<String>(name).unwrap_or_default();
        let number = |info: &InfoDict, name: &str| text(info, name).parse().unwrap_or(0);
        Ok(Self {
            run: format!(
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
struct Link {
    connection: MultiplexedConnection,
    number: u64,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    info: ServerInfo,
    /// It had a replica once.
    replicated: bool,
    opened: u64,
    failed: Option<(Instant, Failure)>,
}

/// One server.
pub(in crate::redis) struct Server {
    pub(super) address: Address,
    role: Role,
    allow_eviction: bool,
    named_by: Option<Arc<Sentinels>>,
    state: Mutex<State>,
    opening: tokio::sync::Mutex<()>,
}

impl Server {
    pub(super) fn sentinel(address: Address) -> Self {
        Self::new(address, Role::Sentinel, true, None)
    }

    /// A server that has state; `named_by` are the sentinels that choose it.
    pub(super) fn data(address: Address, allow_eviction: bool, named_by: Option<Arc<Sentinels>>) -> Self {
        Self::new(address, Role::Data, allow_eviction, named_by)
    }

    fn new(address: Address, role: Role, allow_eviction: bool, named_by: Option<Arc<Sentinels>>) -> Self {
        Self {
            address,
            role,
            allow_eviction,
            named_by,
            state: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// Sends a request on the shared connection, opening it first if need be.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        target: &Target,
        request: Request<'_>,
    ) -> Result<T, Failure> {
        let mut link = self.link(target).await?;
        let answer = request.send(&mut link.connection).await;
        if answer
            .as_ref()
            .is_err_and(redis::RedisError::is_unrecoverable_error)
        {
            self.drop_link(link.number);
        }
        Ok(answer?)
    }

    /// Has the shared connection opened, if it is not, and tells what the
    /// server said of itself then.
    pub(super) async fn server_info(&self, target: &Target) -> Result<ServerInfo, Failure> {
        self.link(target).await?;
        Ok(self.info())
    }

    /// Asks the server about itself again. One that must not be used any more
    /// loses its connection.
    pub(super) async fn refresh(&self, target: &Target) -> Result<(), Failure> {
        let mut link = self.link(target).await?;
        let checked = match ServerInfo::ask(&mut link.connection).await {
            Ok(info) => self.check(info),
            Err(failure) => Err(failure),
        };
        match checked {
            Ok(info) => {
                self.note(&info);
                Ok(())
            }
            Err(failure) => {
                self.drop_link(link.number);
                Err(failure)
            }
        }
    }

    /// A connection of its own to this server.
    pub(super) async fn open(&self, target: &Target) -> Result<MultiplexedConnection, Failure> {
        let mut connection = target.open(&self.address, self.role).await?;
        if self.role == Role::Data {
            let info = self.check(ServerInfo::ask(&mut connection).await?)?;
            self.note(&info);
        }
        if let Some(sentinels) = &self.named_by {
            let named = sentinels.named(target).await?;
            if named.address != self.address {
                return Err(Failure::Replica(self.address.clone()));
            }
            // Also when none is connected, as after a fail-over.
            self.state().replicated |= named.has_replicas;
        }
        Ok(connection)
    }

    /// Where it answers.
    pub(in crate::redis) fn address(&self) -> &Address {
        &self.address
    }

    /// What it last told.
    pub(in crate::redis) fn info(&self) -> ServerInfo {
        self.state().info.clone()
    }

    /// Has it replicas, or had it ever one?
    pub(in crate::redis) fn is_replicated(&self) -> bool {
        self.state().replicated
    }

    async fn link(&self, target: &Target) -> Result<Link, Failure> {
        let link = self.state().link.clone();
        match link {
            Some(link) => Ok(link),
            // Boxed, because every call would carry the size of a handshake.
            None => Box::pin(self.open_link(target)).await,
        }
    }

    /// Opens the shared connection, unless somebody else just did.
    async fn open_link(&self, target: &Target) -> Result<Link, Failure> {
        let _one_at_a_time = self.opening.lock().await;
        {
            let state = self.state();
            if let Some(link) = state.link.clone() {
                return Ok(link);
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
                let link = Link {
                    connection,
                    number: state.opened,
                };
                state.link = Some(link.clone());
                state.failed = None;
                Ok(link)
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
                "Redis may throw sessions away when memory is short: set maxmemory-policy noeviction"
            );
            return Err(Failure::Evicts(info.policy));
        }
        Ok(info)
    }

    fn note(&self, info: &ServerInfo) {
        let mut state = self.state();
        state.replicated |= info.replicas > 0;
        state.info = info.clone();
    }

    /// Drops the shared connection, unless a newer one has taken its place.
    fn drop_link(&self, number: u64) {
        let mut state = self.state();
        if state.link.as_ref().is_some_and(|link| link.number == number) {
            state.link = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}
