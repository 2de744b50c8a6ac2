//! How Redis is reached: the one place that knows connections, servers,
//! timeouts and what their failures mean. The rest of the store sends commands
//! through it and does not know how many servers there are.
//!
//! Every command names its keys, and a key names its slot ([`Slot`]); so a
//! command is sent to the server that has the slot. A command that a server
//! turned away is sent where it belongs; one whose fate is unknown never is
//! sent again here.

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

/// A call that a server turned away is sent again after this.
const RETRY: Duration = Duration::from_millis(50);

/// The connections of one store.
pub(super) struct Connections {
    topology: Topology,
    in_flight: Semaphore,
}

/// Can this URL be used, with these options?
pub(super) fn check(url: &str, options: &Options) -> Result<(), ConnectError> {
    Target::parse(url, options)?.check_files()
}

impl Connections {
    /// Connects, and refuses a Redis that may throw state away.
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

    /// Sends several commands at once, all of one slot; in one step if the
    /// pipeline is atomic.
    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Error> {
        let slot = pipeline.cmd_iter().next().map_or(Slot::Global, slot_of);
        self.send(slot, Request::Many(pipeline))
            .await
            .map_err(Failure::into_error)
    }

    /// Runs a script. One that Redis does not know, or has forgotten, is sent
    /// in full, so that nothing can come between.
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

    /// A connection of its own to the server that has `slot`, for commands
    /// that block.
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

    /// The server that has `slot`.
    pub(super) async fn server(&self, slot: Slot) -> Result<Arc<Server>, Failure> {
        self.bounded(self.topology.server_of(slot)).await
    }

    /// The server of every slot, in the order of the slots.
    pub(super) async fn servers(&self) -> Result<Arc<Vec<Arc<Server>>>, Failure> {
        self.bounded(self.topology.map()).await
    }

    /// What a server said of itself when it was connected to, or since.
    pub(super) async fn server_info(&self, server: &Server) -> Result<ServerInfo, Failure> {
        let info = self.bounded(server.server_info(self.topology.target())).await;
        if info.is_err() {
            self.topology.invalidate();
        }
        info
    }

    /// Finds out anew who has which slot, and asks each server about itself.
    pub(super) async fn refresh(&self) -> Result<(), Failure> {
        self.bounded(self.topology.refresh()).await?;
        let map = self.servers().await?;
        let target = self.topology.target();
        let asked = distinct(&map).into_iter().map(|server| server.refresh(target));
        self.all(asked.collect()).await
    }

    /// Is every server there?
    pub(super) async fn ping(&self) -> Result<(), Failure> {
        let map = self.servers().await?;
        let (target, ping) = (self.topology.target(), redis::cmd("PING"));
        let asked = distinct(&map)
            .into_iter()
            .map(|server| server.call(target, Request::One(&ping)));
        self.all(asked.collect()).await
    }

    /// Waits for all answers, bounded; an error if one of them is.
    async fn all(&self, asked: Vec<impl Future<Output = Result<(), Failure>>>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for answer in join_all(asked.into_iter().map(|one| self.bounded(one))).await {
            if answer.is_err() {
                self.topology.invalidate();
                outcome = answer;
            }
        }
        outcome
    }

    /// Do all slots live on one server?
    pub(super) fn is_one_server(&self) -> bool {
        self.topology.is_one_server()
    }

    /// The longest that any call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.topology.target().timeout()
    }

    async fn send<T: FromRedisValue>(&self, slot: Slot, request: Request<'_>) -> Result<T, Failure> {
        // Whoever cannot be served soon is told at once, rather than piling up.
        let _place = self
            .in_flight
            .try_acquire()
            .map_err(|_| Failure::TooManyInFlight)?;
        self.bounded(self.send_on(slot, request)).await
    }

    async fn send_on<T: FromRedisValue>(&self, slot: Slot, request: Request<'_>) -> Result<T, Failure> {
        let target = self.topology.target();
        let mut told: Option<Address> = None;
        loop {
            let server = match told.take() {
                Some(address) => self.topology.server_at(&address),
                None => self.topology.server_of(slot).await?,
            };
            let failure = match server.call(target, request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match failure.advice(&server.address) {
                Advice::GiveUp => {
                    if failure.is_loss() {
                        self.topology.invalidate();
                    }
                    return Err(failure);
                }
                Advice::Moved(address) => {
                    self.topology.invalidate();
                    told = Some(address);
                }
                Advice::Ask(address) => match Box::pin(self.send_asking(&address, request)).await {
                    // Some of its keys are there and some are not: until they all are.
                    Err(failure) if failure.advice(&address) == Advice::Later => {
                        tokio::time::sleep(RETRY).await;
                    }
                    outcome => return outcome,
                },
                Advice::Later => {
                    self.topology.invalidate();
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Sends to a server that is about to get the slot. It takes only what
    /// follows `ASKING` at once, so no other caller may come between.
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

/// A connection for blocking reads; its owner replaces it when it fails.
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
            Ok(answer) => answer.map_err(Failure::Redis),
            Err(_) => Err(Failure::Timeout(limit)),
        };
        outcome.map_err(Failure::into_error)
    }
}

/// Each server once.
fn distinct(map: &[Arc<Server>]) -> Vec<&Arc<Server>> {
    let mut servers: Vec<&Arc<Server>> = Vec::new();
    for server in map {
        if !servers.iter().any(|known| Arc::ptr_eq(known, server)) {
            servers.push(server);
        }
    }
    servers
}

/// The slot of the first key; commands without one go where everything global is.
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

    /// Every call is moved a few times on its way; what is rarely done must
    /// not make it larger.
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
