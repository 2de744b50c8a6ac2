//! Topology: the server of each slot. It is the only server, the primary that the
//! sentinels name, or the node in the slot map of the cluster. The map is cached until
//! it is invalidated.

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

/// Time limit for one node when several can answer.
const QUERY_TIMEOUT: Duration = Duration::from_millis(500);
/// Minimum time between two queries.
const MIN_QUERY_INTERVAL: Duration = Duration::from_millis(100);

/// The server of each slot, in the order of [`Slot::index`].
type Map = Arc<Vec<Arc<Server>>>;

#[derive(Default)]
struct State {
    map: Option<Map>,
    read_at: Option<Instant>,
    servers: HashMap<Address, Arc<Server>>,
    failed: Option<(Instant, Failure)>,
}

/// The server of each slot.
pub(super) struct Topology {
    target: Target,
    allow_eviction: bool,
    sentinels: Option<Arc<Sentinels>>,
    state: Mutex<State>,
    query_lock: tokio::sync::Mutex<()>,
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
            query_lock: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Returns whether one command can use keys of several slots; false in a cluster.
    pub(super) fn is_one_server(&self) -> bool {
        match self.target.kind {
            Kind::Single(_) | Kind::Sentinel { .. } => true,
            Kind::Cluster { .. } => false,
        }
    }

    /// Returns the server of `slot`.
    pub(super) async fn server_of(&self, slot: Slot) -> Result<Arc<Server>, Failure> {
        let map = self.map().await?;
        map.get(slot.index())
            .cloned()
            .ok_or_else(|| Failure::NoServer("a slot has no server".to_owned()))
    }

    /// Returns the server of every slot, in the order of [`Slot::index`].
    pub(super) async fn map(&self) -> Result<Map, Failure> {
        let known = self.state().map.clone();
        match known {
            Some(map) => Ok(map),
            // Boxed, to keep the futures of all calls small.
            None => Box::pin(self.query_unless_cached()).await,
        }
    }

    async fn query_unless_cached(&self) -> Result<Map, Failure> {
        let _guard = self.query_lock.lock().await;
        {
            let state = self.state();
            if let Some(map) = state.map.clone() {
                return Ok(map);
            }
            if let Some((at, failure)) = &state.failed
                && at.elapsed() < MIN_QUERY_INTERVAL
            {
                return Err(failure.clone());
            }
        }
        self.query().await
    }

    /// Reads the map again, whether it was invalidated or not.
    pub(super) async fn refresh(&self) -> Result<(), Failure> {
        if matches!(self.target.kind, Kind::Single(_)) {
            return Ok(());
        }
        let _guard = self.query_lock.lock().await;
        self.query().await.map(drop)
    }

    /// Invalidates the map, unless it was read just now: the next call reads it again.
    pub(super) fn invalidate(&self) {
        let mut state = self.state();
        if state.read_at.is_none_or(|at| at.elapsed() >= MIN_QUERY_INTERVAL) {
            state.map = None;
        }
    }

    /// Returns the server at an address.
    pub(super) fn server_at(&self, address: &Address) -> Arc<Server> {
        let mut state = self.state();
        let server = state.servers.entry(address.clone()).or_insert_with(|| {
            let sentinels = self.sentinels.clone();
            Arc::new(Server::data(address.clone(), self.allow_eviction, sentinels))
        });
        Arc::clone(server)
    }

    async fn query(&self) -> Result<Map, Failure> {
        let addresses = match (&self.target.kind, &self.sentinels) {
            (_, Some(sentinels)) => {
                let primary = sentinels.primary(&self.target).await;
                primary.map(|primary| vec![primary.address; Slot::all().count()])
            }
            (Kind::Single(address), _) => Ok(vec![address.clone(); Slot::all().count()]),
            (Kind::Cluster { seeds }, _) => self.query_cluster(seeds).await,
            (Kind::Sentinel { .. }, None) => Err(Failure::NoServer("no sentinel is configured".to_owned())),
        };
        match addresses {
            Ok(addresses) => {
                let map: Vec<_> = addresses.iter().map(|address| self.server_at(address)).collect();
                let map = Arc::new(map);
                let used: HashSet<&Address> = addresses.iter().collect();
                let mut state = self.state();
                // Removed servers end the wait of their callers.
                state.servers.retain(|address, _| used.contains(address));
                state.map = Some(Arc::clone(&map));
                state.read_at = Some(Instant::now());
                state.failed = None;
                Ok(map)
            }
            Err(failure) => {
                self.state().failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Reads the slot map from any node: connected ones first, then those of the URL.
    async fn query_cluster(&self, seeds: &[Address]) -> Result<Vec<Address>, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLUSTER").arg("SLOTS");
        for slot in Slot::all() {
            pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(slot.tag());
        }
        let mut last_failure = Failure::NoServer("no cluster node is known".to_owned());
        let known: Vec<_> = self.state().servers.values().cloned().collect();
        for server in known {
            let reply = server.call(&self.target, Request::Many(&pipeline));
            match timeout(QUERY_TIMEOUT, reply).await {
                Ok(Ok(replies)) => return read_map(replies, &server.address),
                Ok(Err(failure)) => last_failure = failure,
                Err(_) => last_failure = Failure::Timeout(QUERY_TIMEOUT),
            }
        }
        for seed in seeds {
            let reply = async {
                // A replica also has the map, so the role is not verified.
                let mut connection = self.target.open(seed, Role::Data).await?;
                let replies = pipeline.query_async(&mut connection).await?;
                read_map(replies, seed)
            };
            match timeout(QUERY_TIMEOUT, reply).await {
                Ok(Ok(addresses)) => return Ok(addresses),
                Ok(Err(failure)) => last_failure = failure,
                Err(_) => last_failure = Failure::Timeout(QUERY_TIMEOUT),
            }
        }
        Err(last_failure)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Resolves the owner of each of our slots from `CLUSTER SLOTS` and `CLUSTER KEYSLOT`;
/// `source` is the node that answered.
fn read_map(replies: Vec<Value>, source: &Address) -> Result<Vec<Address>, Failure> {
    let mut replies = replies.into_iter();
    let ranges = replies.next().and_then(|reply| read_ranges(reply, &source.host));
    let ranges =
        ranges.ok_or_else(|| Failure::NoServer("the slot map of the cluster cannot be parsed".to_owned()))?;
    let owner = |number: Value| {
        let number: u16 = from_redis_value(number).ok()?;
        let range = ranges
            .iter()
            .find(|range| (range.first..=range.last).contains(&number))?;
        Some(range.owner.clone())
    };
    let owners: Option<Vec<_>> = replies.map(owner).collect();
    owners.ok_or_else(|| Failure::NoServer("the cluster does not cover all slots".to_owned()))
}

/// A range of hash slots and its owner.
struct Range {
    first: u16,
    last: u16,
    owner: Address,
}

/// Parses `CLUSTER SLOTS`: first slot, last slot, owner and replicas of each range.
fn read_ranges(reply: Value, source: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = reply else { return None };
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
                host: host.unwrap_or_else(|| source.to_owned()),
                port,
            },
        })
    };
    ranges.into_iter().map(read).collect()
}
