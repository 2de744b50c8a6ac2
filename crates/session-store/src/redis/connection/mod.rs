//! Connections to Redis. Only this module handles connections, servers, timeouts and
//! their failures; the rest of the store sends commands through it, independent of the
//! number of servers.
//!
//! A command contains its keys, and a key contains its slot ([`Slot`]), so a command is
//! sent to the server of the slot. A command that a server redirected is sent again; a
//! command with an unknown outcome is never repeated here.

mod failure;
mod sentinels;
mod server;
mod target;
mod topology;

use super::schema::keys::Slot;
use super::scripts::Call;
use super::{ConnectError, Options};
use crate::Error;
use failure::Advice;
pub(super) use failure::Failure;
use futures::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, FromRedisValue, Pipeline};
use server::Request;
pub(super) use server::{Server, ServerInfo};
use std::sync::Arc;
use std::time::Duration;
pub(super) use target::Address;
use target::Target;
use tokio::sync::Semaphore;
use topology::Topology;

/// Delay before a rejected call is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// The connections of one store.
pub(super) struct Connections {
    topology: Topology,
    in_flight: Semaphore,
}

/// Verifies URL, options and certificate files without a connection.
pub(super) fn check(url: &str, options: &Options) -> Result<(), ConnectError> {
    Target::parse(url, options)?.check_files()
}

impl Connections {
    /// Connects; rejects a Redis whose eviction policy may delete keys.
    pub(super) async fn open(url: &str, options: &Options) -> Result<Self, ConnectError> {
        let target = Target::parse(url, options)?;
        target.check_files()?;
        let connections = Self {
            topology: Topology::new(target, options.allow_eviction),
            in_flight: Semaphore::new(options.max_in_flight),
        };
        match connections.ping().await {
            Ok(()) => Ok(connections),
            Err(Failure::Evicts(policy)) => Err(ConnectError::Evicts { policy }),
            Err(failure) => Err(ConnectError::Unavailable(failure.into_error())),
        }
    }

    /// Sends one command.
    pub(super) async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Error> {
        self.send(slot_of(cmd), Request::One(cmd))
            .await
            .map_err(Failure::into_error)
    }

    /// Sends several commands of one slot at once, in one step if the pipeline is
    /// atomic.
    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Error> {
        let slot = pipeline.cmd_iter().next().map_or(Slot::Global, slot_of);
        self.send(slot, Request::Many(pipeline))
            .await
            .map_err(Failure::into_error)
    }

    /// Runs a script by its hash. If Redis has not loaded it, the full text is sent, so
    /// that no second round trip can fail.
    pub(super) async fn run<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Error> {
        let slot = call.slot();
        let outcome = match self.send(slot, Request::One(&call.by_hash())).await {
            Err(failure) if failure.is_unknown_script() => {
                self.send(slot, Request::One(&call.in_full())).await
            }
            outcome => outcome,
        };
        outcome.map_err(Failure::into_error)
    }

    /// Opens a dedicated connection to the server of `slot`, for blocking commands.
    pub(super) async fn dedicated(&self, slot: Slot) -> Result<Dedicated, Error> {
        let opened = async {
            let server = self.topology.server_of(slot).await?;
            let opened = server.open(self.topology.target()).await;
            if opened.is_err() {
                self.topology.invalidate();
            }
            opened
        };
        Ok(Dedicated {
            connection: self.bounded(opened).await.map_err(Failure::into_error)?,
            timeout: self.timeout(),
        })
    }

    /// Returns the server of `slot`.
    pub(super) async fn server(&self, slot: Slot) -> Result<Arc<Server>, Failure> {
        self.bounded(self.topology.server_of(slot)).await
    }

    /// Returns the server of every slot, in the order of [`Slot::index`].
    pub(super) async fn servers(&self) -> Result<Arc<Vec<Arc<Server>>>, Failure> {
        self.bounded(self.topology.map()).await
    }

    /// Returns the last `INFO` of a server.
    pub(super) async fn server_info(&self, server: &Server) -> Result<ServerInfo, Failure> {
        let info = self.bounded(server.server_info(self.topology.target())).await;
        if info.is_err() {
            self.topology.invalidate();
        }
        info
    }

    /// Reads the topology and the `INFO` of each server again.
    pub(super) async fn refresh(&self) -> Result<(), Failure> {
        self.bounded(self.topology.refresh()).await?;
        let map = self.servers().await?;
        let target = self.topology.target();
        let results = distinct(&map).into_iter().map(|server| server.refresh(target));
        self.all(results.collect()).await
    }

    /// Verifies that every server answers.
    pub(super) async fn ping(&self) -> Result<(), Failure> {
        let map = self.servers().await?;
        let (target, ping) = (self.topology.target(), redis::cmd("PING"));
        let results = distinct(&map)
            .into_iter()
            .map(|server| server.call(target, Request::One(&ping)));
        self.all(results.collect()).await
    }

    /// Waits for all results, with the time limit; returns an error if one failed.
    async fn all(&self, results: Vec<impl Future<Output = Result<(), Failure>>>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for reply in join_all(results.into_iter().map(|one| self.bounded(one))).await {
            if reply.is_err() {
                self.topology.invalidate();
                outcome = reply;
            }
        }
        outcome
    }

    /// Returns whether one server has all slots.
    pub(super) fn is_one_server(&self) -> bool {
        self.topology.is_one_server()
    }

    /// Time limit of a call.
    pub(super) fn timeout(&self) -> Duration {
        self.topology.target().timeout()
    }

    async fn send<T: FromRedisValue>(&self, slot: Slot, request: Request<'_>) -> Result<T, Failure> {
        // Reject at once instead of queueing without limit.
        let _permit = self
            .in_flight
            .try_acquire()
            .map_err(|_| Failure::TooManyInFlight)?;
        let mut rejection = None;
        let sent = self.send_with_retries(slot, request, &mut rejection);
        match self.bounded(sent).await {
            // Servers answered, but the call was not executed in time: the cause of that
            // explains more than the time limit.
            Err(Failure::Timeout(limit)) => Err(rejection.unwrap_or(Failure::Timeout(limit))),
            outcome => outcome,
        }
    }

    async fn send_with_retries<T: FromRedisValue>(
        &self,
        slot: Slot,
        request: Request<'_>,
        rejection: &mut Option<Failure>,
    ) -> Result<T, Failure> {
        let target = self.topology.target();
        let mut redirect: Option<Address> = None;
        loop {
            let server = match redirect.take() {
                Some(address) => self.topology.server_at(&address),
                None => self.topology.server_of(slot).await?,
            };
            let failure = match server.call(target, request).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            match failure.advice(&server.address) {
                Advice::Fail => {
                    if failure.invalidates_topology() {
                        self.topology.invalidate();
                    }
                    return Err(failure);
                }
                Advice::Moved(address) => {
                    self.topology.invalidate();
                    redirect = Some(address);
                }
                Advice::Ask(address) => match Box::pin(self.send_asking(&address, request)).await {
                    // Its keys are split over two servers until the migration ends.
                    Err(failure) if failure.advice(&address) == Advice::Retry => {
                        *rejection = Some(failure);
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                    outcome => return outcome,
                },
                Advice::Retry => {
                    self.topology.invalidate();
                    *rejection = Some(failure);
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Sends to a server that is importing the slot. `ASKING` applies to the next
    /// command only, so the connection is not shared.
    async fn send_asking<T: FromRedisValue>(
        &self,
        address: &Address,
        request: Request<'_>,
    ) -> Result<T, Failure> {
        let server = self.topology.server_at(address);
        let mut connection = server.open(self.topology.target()).await?;
        redis::cmd("ASKING").query_async::<()>(&mut connection).await?;
        Ok(request.send(&mut connection).await?)
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let limit = self.timeout();
        match tokio::time::timeout(limit, call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.topology.invalidate();
                Err(Failure::Timeout(limit))
            }
        }
    }
}

/// A connection for blocking reads; the owner replaces it after a failure.
pub(super) struct Dedicated {
    connection: MultiplexedConnection,
    timeout: Duration,
}

impl Dedicated {
    /// Sends a command that may block for `block` on the server.
    pub(super) async fn query<T: FromRedisValue>(&mut self, cmd: &Cmd, block: Duration) -> Result<T, Error> {
        self.send(Request::One(cmd), self.timeout + block).await
    }

    /// Sends several commands at once, which may block for `block` in all.
    pub(super) async fn pipeline<T: FromRedisValue>(
        &mut self,
        pipeline: &Pipeline,
        block: Duration,
    ) -> Result<T, Error> {
        self.send(Request::Many(pipeline), self.timeout + block).await
    }

    async fn send<T: FromRedisValue>(&mut self, request: Request<'_>, limit: Duration) -> Result<T, Error> {
        let outcome = match tokio::time::timeout(limit, request.send(&mut self.connection)).await {
            Ok(reply) => reply.map_err(Failure::Redis),
            Err(_) => Err(Failure::Timeout(limit)),
        };
        outcome.map_err(Failure::into_error)
    }
}

/// The distinct servers of a map.
fn distinct(map: &[Arc<Server>]) -> Vec<&Arc<Server>> {
    let mut servers: Vec<&Arc<Server>> = Vec::new();
    for server in map {
        if !servers.iter().any(|known| Arc::ptr_eq(known, server)) {
            servers.push(server);
        }
    }
    servers
}

/// The slot of the first key; [`Slot::Global`] for commands without a key.
fn slot_of(cmd: &Cmd) -> Slot {
    cmd.args_iter()
        .find_map(|arg| match arg {
            Arg::Simple(bytes) => Slot::of_key(bytes),
            _ => None,
        })
        .unwrap_or(Slot::Global)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Futures of calls are moved several times, so rare steps must not enlarge them.
    #[tokio::test]
    async fn a_call_does_not_carry_the_size_of_a_handshake() {
        let target = Target::parse("redis://127.0.0.1:1", &Options::default()).unwrap();
        let connections = Connections {
            topology: Topology::new(target, false),
            in_flight: Semaphore::new(1),
        };
        let (one, many) = (redis::cmd("TIME"), redis::pipe());
        let sizes = [
            size_of_val(&connections.query::<(u64, u64)>(&one)),
            size_of_val(&connections.pipeline::<Vec<Option<String>>>(&many)),
        ];
        assert!(sizes.iter().all(|size| *size < 2048), "{sizes:?}");
    }
}
