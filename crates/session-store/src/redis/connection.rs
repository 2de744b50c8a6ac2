//! How Redis is reached: the one place that knows connections, timeouts and
//! what their failures mean. The rest of the store sends commands through it.

use super::{ConnectError, Options};
use crate::Error;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisError, RedisResult, ScriptInvocation, ServerErrorKind,
};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// Requests that may queue on the connection before callers wait.
const QUEUE: usize = 1024;

/// The connections of one store.
pub(super) struct Connections {
    client: Client,
    shared: RwLock<ConnectionManager>,
    timeout: Duration,
}

impl Connections {
    /// Connects, and refuses a Redis that may throw state away.
    pub(super) async fn open(url: &str, options: &Options) -> Result<Self, ConnectError> {
        let client = client(url, options)?;
        let timeout = options.call_timeout;
        let shared = manager(&client, timeout).map_err(|error| ConnectError::Url(error.to_string()))?;
        let connections = Self {
            client,
            shared: RwLock::new(shared),
            timeout,
        };
        let memory: redis::InfoDict = connections
            .query(redis::cmd("INFO").arg("memory"))
            .await
            .map_err(ConnectError::Unavailable)?;
        let policy: String = memory
            .get("maxmemory_policy")
            .unwrap_or_else(|| "unknown".to_owned());
        if policy != "noeviction" && !options.allow_eviction {
            return Err(ConnectError::Evicts { policy });
        }
        Ok(connections)
    }

    /// Sends one command.
    pub(super) async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Error> {
        let mut shared = self.shared();
        self.bounded(cmd.query_async(&mut shared)).await
    }

    /// Sends several commands at once; in one step if the pipeline is atomic.
    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Error> {
        let mut shared = self.shared();
        self.bounded(pipeline.query_async(&mut shared)).await
    }

    /// Runs a script, loading it first if this Redis does not know it.
    pub(super) async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Error> {
        let mut shared = self.shared();
        self.bounded(script.invoke_async(&mut shared)).await
    }

    /// A connection of its own, for commands that block.
    pub(super) async fn dedicated(&self) -> Result<Dedicated, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(None);
        let connection = self
            .bounded(self.client.get_multiplexed_async_connection_with_config(&config))
            .await?;
        Ok(Dedicated {
            connection,
            timeout: self.timeout,
        })
    }

    fn shared(&self) -> ConnectionManager {
        self.shared.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn bounded<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<T, Error> {
        let result = bounded(self.timeout, call).await;
        result.map_err(|failure| {
            if failure.needs_new_manager() {
                self.replace_manager();
            }
            failure.into_error()
        })
    }

    /// The manager reconnects by itself after I/O errors only; after a refused
    /// login it would repeat that answer for ever.
    fn replace_manager(&self) {
        if let Ok(fresh) = manager(&self.client, self.timeout) {
            *self.shared.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }
}

/// A connection for blocking reads; its owner replaces it when it fails.
pub(super) struct Dedicated {
    connection: MultiplexedConnection,
    timeout: Duration,
}

impl Dedicated {
    /// Sends a command that may block for `block` on the server.
    pub(super) async fn query<T: FromRedisValue>(&mut self, cmd: &Cmd, block: Duration) -> Result<T, Error> {
        bounded(self.timeout + block, cmd.query_async(&mut self.connection))
            .await
            .map_err(Failure::into_error)
    }

    /// Sends several commands at once.
    pub(super) async fn pipeline<T: FromRedisValue>(&mut self, pipeline: &Pipeline) -> Result<T, Error> {
        bounded(self.timeout, pipeline.query_async(&mut self.connection))
            .await
            .map_err(Failure::into_error)
    }
}

/// Reads the URL; connects to nothing.
pub(super) fn client(url: &str, options: &Options) -> Result<Client, ConnectError> {
    let refused = |error: RedisError| ConnectError::Url(error.to_string());
    let info = url.into_connection_info().map_err(refused)?;
    if !matches!(info.addr(), ConnectionAddr::Tcp(..)) {
        return Err(ConnectError::Url(
            "only redis://host:port is supported yet".to_owned(),
        ));
    }
    // A peer that vanished without a word shows only by what it does not acknowledge.
    let tcp = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(options.call_timeout * 2);
    Client::open(info.set_tcp_settings(tcp)).map_err(refused)
}

fn manager(client: &Client, timeout: Duration) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout))
        .set_number_of_retries(1)
        .set_min_delay(Duration::from_millis(20))
        .set_pipeline_buffer_size(QUEUE);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// Why a call did not succeed.
enum Failure {
    Late(Duration),
    Redis(RedisError),
}

async fn bounded<T>(limit: Duration, call: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Failure::Redis),
        Err(_) => Err(Failure::Late(limit)),
    }
}

impl Failure {
    fn needs_new_manager(&self) -> bool {
        match self {
            Self::Late(_) => false,
            Self::Redis(error) => matches!(error.kind(), ErrorKind::AuthenticationFailed),
        }
    }

    /// What a caller can do about it: wait, or call for a human.
    fn into_error(self) -> Error {
        let error = match self {
            Self::Late(limit) => return Error::Unavailable(format!("no answer within {limit:?}")),
            Self::Redis(error) => error,
        };
        match error.kind() {
            // A command on a key of another type, a script that failed, an
            // answer of another form: the data is not what we wrote.
            ErrorKind::UnexpectedReturnType
            | ErrorKind::Parse
            | ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::CrossSlot) => {
                Error::Corrupt(error.to_string())
            }
            ErrorKind::Extension if error.code() == Some("WRONGTYPE") => Error::Corrupt(error.to_string()),
            _ => Error::Unavailable(error.to_string()),
        }
    }
}
