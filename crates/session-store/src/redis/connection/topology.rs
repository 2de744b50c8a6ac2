//! Which server has which slot: always the same one, the one that the
//! sentinels name, or the one that the cluster's own map names. The answer is
//! kept until there is a doubt of it.

use super::failure::Failure;
use super::sentinels::Sentinels;
use super::server::{Request, Server};
use super::target::{Address, Kind, Role, Target};
use crate::redis::schema::keys::Slot;
use parking_lot::{Mutex, MutexGuard};
use redis::{Value, from_redis_value};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// One server is not waited for longer when several can be asked.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// Nobody is asked again for this long.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A server for each slot, in the order of [`Slot::index`].
type Map = Arc<Vec<Arc<Server>>>;

#[derive(Default)]
struct State {
    map: Option<Map>,
    found: Option<Instant>,
    servers: HashMap<Address, Arc<Server>>,
    failed: Option<(Instant, Failure)>,
}

/// Which server has which slot.
pub(super) struct Topology {
    target: Target,
    allow_eviction: bool,
    sentinels: Option<Arc<Sentinels>>,
    state: Mutex<State>,
    asking: tokio::sync::Mutex<()>,
}

impl Topology {
    pub(super) fn new(target: Target, allow_eviction: bool) -> Self {
        let sentinels = match &target.kind {
            Kind::Sentinel { sentinels, master } => Some(Arc::new(Sentinels::new(sentinels, master))),
            Kind::Single(_) | Kind::Cluster { .. } => None,
        };
        Self {
            target,
            allow_eviction,
            sentinels,
            state: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// May one step touch several partitions? Not in a cluster.
    pub(super) fn is_one_server(&self) -> bool {
        match self.target.kind {
            Kind::Single(_) | Kind::Sentinel { .. } => true,
            Kind::Cluster { .. } => false,
        }
    }

    /// The server that has `slot`.
    pub(super) async fn server_of(&self, slot: Slot) -> Result<Arc<Server>, Failure> {
        let map = self.map().await?;
        map.get(slot.index())
            .cloned()
            .ok_or_else(|| Failure::NoServer("a slot has no server".to_owned()))
    }

    /// The server of every slot, in the order of the slots.
    pub(super) async fn map(&self) -> Result<Map, Failure> {
        let known = self.state().map.clone();
        match known {
            Some(map) => Ok(map),
            // Boxed, because every call would carry the size of it.
            None => Box::pin(self.ask_unless_known()).await,
        }
    }

    async fn ask_unless_known(&self) -> Result<Map, Failure> {
        let _one_at_a_time = self.asking.lock().await;
        {
            let state = self.state();
            if let Some(map) = state.map.clone() {
                return Ok(map);
            }
            if let Some((at, failure)) = &state.failed
                && at.elapsed() < RETRY_PAUSE
            {
                return Err(failure.clone());
            }
        }
        self.ask().await
    }

    /// Finds out anew, although there is no doubt.
    pub(super) async fn refresh(&self) -> Result<(), Failure> {
        if matches!(self.target.kind, Kind::Single(_)) {
            return Ok(());
        }
        let _one_at_a_time = self.asking.lock().await;
        self.ask().await.map(drop)
    }

    /// What is known may be wrong: the next call finds out anew, unless that
    /// was done just now.
    pub(super) fn invalidate(&self) {
        let mut state = self.state();
        if state.found.is_none_or(|at| at.elapsed() >= RETRY_PAUSE) {
            state.map = None;
        }
    }

    /// The server at an address that another server named.
    pub(super) fn server_at(&self, address: &Address) -> Arc<Server> {
        let mut state = self.state();
        let server = state.servers.entry(address.clone()).or_insert_with(|| {
            let named_by = self.sentinels.clone();
            Arc::new(Server::data(address.clone(), self.allow_eviction, named_by))
        });
        Arc::clone(server)
    }

    async fn ask(&self) -> Result<Map, Failure> {
        let addresses = match (&self.target.kind, &self.sentinels) {
            (_, Some(sentinels)) => {
                let named = sentinels.named(&self.target).await;
                named.map(|named| vec![named.address; Slot::all().count()])
            }
            (Kind::Single(address), _) => Ok(vec![address.clone(); Slot::all().count()]),
            (Kind::Cluster { seeds }, _) => self.ask_cluster(seeds).await,
            (Kind::Sentinel { .. }, None) => Err(Failure::NoServer("there is no sentinel to ask".to_owned())),
        };
        match addresses {
            Ok(addresses) => {
                let map: Vec<_> = addresses.iter().map(|address| self.server_at(address)).collect();
                let map = Arc::new(map);
                let used: HashSet<&Address> = addresses.iter().collect();
                let mut state = self.state();
                // Whoever waits for a server that is no longer asked need not wait on.
                state.servers.retain(|address, _| used.contains(address));
                state.map = Some(Arc::clone(&map));
                state.found = Some(Instant::now());
                state.failed = None;
                Ok(map)
            }
            Err(failure) => {
                self.state().failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Any server of the cluster knows all of it. Those that were of use are
    /// asked before those that the URL names.
    async fn ask_cluster(&self, seeds: &[Address]) -> Result<Vec<Address>, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLUSTER").arg("SLOTS");
        for slot in Slot::all() {
            pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(slot.tag());
        }
        let mut why = Failure::NoServer("the cluster has no server to ask".to_owned());
        let known: Vec<_> = self.state().servers.values().cloned().collect();
        for server in known {
            let answer = server.call(&self.target, Request::Many(&pipeline));
            match timeout(ASK_LIMIT, answer).await {
                Ok(Ok(answers)) => return read_map(answers, &server.address),
                Ok(Err(failure)) => why = failure,
                Err(_) => why = Failure::Timeout(ASK_LIMIT),
            }
        }
        for seed in seeds {
            let answer = async {
                // A replica will do too, so it is not asked what it is.
                let mut connection = self.target.open(seed, Role::Data).await?;
                let answers = pipeline.query_async(&mut connection).await?;
                read_map(answers, seed)
            };
            match timeout(ASK_LIMIT, answer).await {
                Ok(Ok(addresses)) => return Ok(addresses),
                Ok(Err(failure)) => why = failure,
                Err(_) => why = Failure::Timeout(ASK_LIMIT),
            }
        }
        Err(why)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The owner of each slot, from the cluster's map and the number it gives each
/// of our slots; `teller` is who told it.
fn read_map(answers: Vec<Value>, teller: &Address) -> Result<Vec<Address>, Failure> {
    let mut answers = answers.into_iter();
    let ranges = answers
        .next()
        .and_then(|answer| read_ranges(answer, &teller.host));
    let ranges = ranges.ok_or_else(|| Failure::NoServer("the cluster's map cannot be read".to_owned()))?;
    let owner = |number: Value| {
        let number: u16 = from_redis_value(number).ok()?;
        let range = ranges
            .iter()
            .find(|range| (range.first..=range.last).contains(&number))?;
        Some(range.owner.clone())
    };
    let owners: Option<Vec<_>> = answers.map(owner).collect();
    owners.ok_or_else(|| Failure::NoServer("the cluster does not cover all slots".to_owned()))
}

/// Hash slots that one server has.
struct Range {
    first: u16,
    last: u16,
    owner: Address,
}

/// Reads `CLUSTER SLOTS`: of each range its ends, its owner and its replicas.
fn read_ranges(answer: Value, teller: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    let read = |range: Value| {
        let Value::Array(parts) = range else { return None };
        let mut parts = parts.into_iter();
        let first = from_redis_value(parts.next()?).ok()?;
        let last = from_redis_value(parts.next()?).ok()?;
        let Value::Array(owner) = parts.next()? else {
            return None;
        };
        let mut owner = owner.into_iter();
        let host: Option<String> = from_redis_value(owner.next()?).ok()?;
        let port: u16 = from_redis_value(owner.next()?).ok()?;
        let host = host.filter(|host| !host.is_empty() && host != "?");
        Some(Range {
            first,
            last,
            owner: Address {
                host: host.unwrap_or_else(|| teller.to_owned()),
                port,
            },
        })
    };
    ranges.into_iter().map(read).collect()
}
