//! How much one caller may ask for: rates by key in bounded memory, and calls
//! at once.
//!
//! A rate is a token bucket kept as one moment per key: the one at which the
//! bucket is full again. A key whose moment has passed needs no memory. When
//! more keys are busy than fit, those that are new share one bucket, so that
//! an attacker with many addresses is limited too, and costs no more memory.

use crate::config::{Problems, Validate, duration};
use crate::tls::{AcceptLimits, IdleLimits};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Keys that one book remembers.
const MOST_KEYS: usize = 50_000;
/// How often a full book looks for keys that it can forget.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Calls of standard services (health, reflection) that one address may have
/// open. They have no caller, and no share of the room for callers' calls.
const STANDARD_CALLS_PER_ADDRESS: u32 = 32;
/// The same for all addresses together to which limits by address do not apply.
const STANDARD_CALLS_OF_SHARED_ADDRESSES: u32 = 1024;
const SMALLEST_REQUEST: usize = 16 * 1024;
const LARGEST_REQUEST: usize = 4 * 1024 * 1024;
const CONNECTION_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// What an API puts up with. Zero is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Calls of one principal per second; twice as many in a burst.
    pub calls_per_second_per_principal: u32,
    /// Calls of one principal at once.
    pub calls_at_once_per_principal: u32,
    /// Calls of one organization at once.
    pub calls_at_once_per_org: u32,
    /// Calls from one address per second, whoever calls; twice as many in a burst.
    pub calls_per_second_per_address: u32,
    /// Credentials that one address may get wrong per minute.
    pub failures_per_minute_per_address: u32,
    /// Calls from one address at once whose caller is not known yet.
    pub calls_at_once_per_address: u32,
    /// Connections of one address at once.
    pub connections_per_address: u32,
    /// How long a connection stays on which no caller is known yet.
    #[serde(with = "duration")]
    pub connection_caller_timeout: Duration,
    /// How long a connection stays without a call.
    #[serde(with = "duration")]
    pub connection_idle_timeout: Duration,
    /// Calls at once in all.
    pub calls_at_once: u32,
    /// The largest request.
    pub request_bytes: usize,
    /// Networks whose addresses stand for many callers: load balancers, the
    /// console. Limits by address do not apply to them.
    pub shared_addresses: Vec<ipnet::IpNet>,
    /// Networks of proxies whose `x-forwarded-for` is believed: the address it
    /// names is limited, and audited, instead of theirs.
    pub trusted_proxies: Vec<ipnet::IpNet>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            calls_per_second_per_principal: 200,
            calls_at_once_per_principal: 200,
            calls_at_once_per_org: 1000,
            calls_per_second_per_address: 1000,
            failures_per_minute_per_address: 60,
            calls_at_once_per_address: 100,
            connections_per_address: 200,
            connection_caller_timeout: Duration::from_secs(30),
            connection_idle_timeout: Duration::from_secs(300),
            calls_at_once: 4000,
            request_bytes: 256 * 1024,
            shared_addresses: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Validate for LimitsConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            (SMALLEST_REQUEST..=LARGEST_REQUEST).contains(&self.request_bytes),
            "request_bytes",
            "must be 16384 to 4194304",
        );
        for (field, timeout) in [
            ("connection_caller_timeout", self.connection_caller_timeout),
            ("connection_idle_timeout", self.connection_idle_timeout),
        ] {
            problems.require(CONNECTION_TIMEOUTS.contains(&timeout), field, "must be 1s to 24h");
        }
    }
}

impl LimitsConfig {
    /// Do limits by address apply to it?
    pub fn counts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !self.shared_addresses.iter().any(|net| net.contains(&address))
    }

    /// The limits of a port's connections. Those of a trusted proxy stand for
    /// many callers, as shared addresses do.
    pub fn connections(&self) -> AcceptLimits {
        let exempt = self.shared_addresses.iter().chain(&self.trusted_proxies);
        AcceptLimits {
            connections_per_address: self.connections_per_address,
            exempt: exempt.copied().collect(),
            ..AcceptLimits::default()
        }
    }

    /// The same for a port whose calls pass a [`crate::admission::Gate`].
    pub fn api_connections(&self) -> AcceptLimits {
        AcceptLimits {
            idle: Some(IdleLimits {
                unknown_caller: self.connection_caller_timeout,
                idle: self.connection_idle_timeout,
            }),
            ..self.connections()
        }
    }
}

/// What stands for an address: of IPv6 the /64, which one customer has whole.
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Rates by key.
#[derive(Debug)]
pub struct Rates<K> {
    /// What one costs; zero is no limit.
    interval: Duration,
    burst: Duration,
    most: usize,
    book: Mutex<Book<K>>,
}

#[derive(Debug)]
struct Book<K> {
    full_at: HashMap<K, Instant>,
    /// Of the keys that found no room.
    others: Option<Instant>,
    swept: Option<Instant>,
}

impl<K: Hash + Eq + Clone> Rates<K> {
    /// `count` in `period`, and no more than `burst` at once. A count of zero
    /// is no limit.
    pub fn new(count: u32, period: Duration, burst: u32) -> Self {
        Self::bounded(count, period, burst, MOST_KEYS)
    }

    fn bounded(count: u32, period: Duration, burst: u32, most: usize) -> Self {
        let interval = period.checked_div(count).unwrap_or_default();
        Self {
            interval,
            burst: interval.saturating_mul(burst.max(1)),
            most,
            book: Mutex::new(Book {
                full_at: HashMap::new(),
                others: None,
                swept: None,
            }),
        }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait, if there is none left.
    pub fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        if self.interval.is_zero() {
            return Ok(());
        }
        let mut book = self.book();
        if book.full_at.len() >= self.most && !book.full_at.contains_key(key) {
            book.sweep(now);
        }
        let room = book.full_at.len() < self.most || book.full_at.contains_key(key);
        let full_at = if room {
            book.full_at.entry(key.clone()).or_insert(now)
        } else {
            book.others.get_or_insert(now)
        };
        let next = (*full_at).max(now) + self.interval;
        let wait = next.saturating_duration_since(now + self.burst);
        if wait.is_zero() {
            *full_at = next;
            Ok(())
        } else {
            Err(wait)
        }
    }

    /// Is there one left? Takes nothing.
    ///
    /// # Errors
    /// How long to wait, if not.
    pub fn peek(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let book = self.book();
        let full_at = match book.full_at.get(key) {
            Some(at) => Some(*at),
            None if book.full_at.len() >= self.most => book.others,
            None => None,
        };
        let wait = full_at.map(|at| (at + self.interval).saturating_duration_since(now + self.burst));
        match wait {
            Some(wait) if !wait.is_zero() => Err(wait),
            Some(_) | None => Ok(()),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book<K>> {
        self.book.lock()
    }
}

impl<K: Hash + Eq> Book<K> {
    fn sweep(&mut self, now: Instant) {
        let due = self
            .swept
            .is_none_or(|at| now.saturating_duration_since(at) >= SWEEP_EVERY);
        if due {
            self.swept = Some(now);
            self.full_at.retain(|_, full_at| *full_at > now);
        }
    }
}

/// How many at once, by key. Its memory is bounded by how many there are in all.
#[derive(Debug)]
pub struct AtOnce<K: Hash + Eq> {
    most: u32,
    open: Mutex<HashMap<K, u32>>,
}

/// One of them; ends when dropped.
#[derive(Debug)]
pub struct Permit<K: Hash + Eq> {
    of: Arc<AtOnce<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> AtOnce<K> {
    /// At most `most` of one key; zero is no limit.
    pub fn new(most: u32) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
        })
    }

    /// One more of this key, unless there are too many.
    pub fn enter(self: &Arc<Self>, key: K) -> Option<Permit<K>> {
        let mut open = self.open.lock();
        let count = open.get(&key).copied().unwrap_or_default();
        if self.most > 0 && count >= self.most {
            return None;
        }
        open.insert(key.clone(), count + 1);
        drop(open);
        Some(Permit {
            of: Arc::clone(self),
            key,
        })
    }
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut open = self.of.open.lock();
        match open.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                open.remove(&self.key);
            }
        }
    }
}

/// What one address may do before it is known who calls. Nothing here is shared
/// between the addresses to which limits by address apply.
#[derive(Debug)]
pub struct ByAddress {
    config: LimitsConfig,
    calls: Rates<IpAddr>,
    failures: Rates<IpAddr>,
    at_once: Arc<AtOnce<IpAddr>>,
    standard: Arc<AtOnce<IpAddr>>,
    standard_shared: Arc<AtOnce<()>>,
}

/// The place of an open call whose caller is not known; ends when dropped.
#[derive(Debug)]
pub struct Place {
    _address: Option<Permit<IpAddr>>,
    _shared: Option<Permit<()>>,
}

/// Too much, and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Too many calls of one address.
    #[error("Too many calls come from your address")]
    Calls(Duration),
    /// Too many wrong credentials of one address.
    #[error("Too many credentials from your address were wrong")]
    Failures(Duration),
    /// Too many calls of one address at once.
    #[error("Too many calls from your address are under way")]
    AddressAtOnce,
    /// Too many calls at once.
    #[error("Too many calls are under way")]
    AtOnce,
}

impl Exceeded {
    /// How long to wait.
    pub fn wait(self) -> Duration {
        match self {
            Self::Calls(wait) | Self::Failures(wait) => wait,
            Self::AddressAtOnce | Self::AtOnce => Duration::from_secs(1),
        }
    }
}

impl ByAddress {
    /// As configured.
    pub fn new(config: &LimitsConfig) -> Self {
        let (calls, failures) = (
            config.calls_per_second_per_address,
            config.failures_per_minute_per_address,
        );
        Self {
            calls: Rates::new(calls, Duration::from_secs(1), calls.saturating_mul(2)),
            failures: Rates::new(failures, Duration::from_secs(60), failures),
            at_once: AtOnce::new(config.calls_at_once_per_address),
            standard: AtOnce::new(STANDARD_CALLS_PER_ADDRESS),
            standard_shared: AtOnce::new(STANDARD_CALLS_OF_SHARED_ADDRESSES),
            config: config.clone(),
        }
    }

    /// The address that a call counts for.
    pub fn origin(&self, call: &http::request::Parts) -> Option<SocketAddr> {
        crate::client_ip::origin(call, &self.config.trusted_proxies)
    }

    /// Admits a call that has a caller, who is not known yet. The place is held
    /// until the caller is known, or until the call's end where nobody asks.
    ///
    /// # Errors
    /// [`Exceeded`]; nothing was done for the call yet.
    pub fn enter(&self, peer: Option<SocketAddr>, now: Instant) -> Result<Place, Exceeded> {
        let address = self.within_rates(peer, now)?;
        let place = |address| self.at_once.enter(address).ok_or(Exceeded::AddressAtOnce);
        Ok(Place {
            _address: address.map(place).transpose()?,
            _shared: None,
        })
    }

    /// Admits a call of a standard service (health, reflection), which has no
    /// caller. The place is held until the call's end.
    ///
    /// # Errors
    /// [`Exceeded`]; nothing was done for the call yet.
    pub fn enter_standard(&self, peer: Option<SocketAddr>, now: Instant) -> Result<Place, Exceeded> {
        Ok(match self.within_rates(peer, now)? {
            Some(address) => Place {
                _address: Some(self.standard.enter(address).ok_or(Exceeded::AddressAtOnce)?),
                _shared: None,
            },
            None => Place {
                _address: None,
                _shared: Some(self.standard_shared.enter(()).ok_or(Exceeded::AtOnce)?),
            },
        })
    }

    /// A credential that came from there was wrong.
    pub fn failed(&self, peer: Option<SocketAddr>, now: Instant) {
        if let Some(address) = self.key(peer) {
            let _ = self.failures.take(&address, now);
        }
    }

    /// What the peer counts for, if limits by address apply to it.
    fn within_rates(&self, peer: Option<SocketAddr>, now: Instant) -> Result<Option<IpAddr>, Exceeded> {
        let address = self.key(peer);
        if let Some(address) = &address {
            self.calls.take(address, now).map_err(Exceeded::Calls)?;
            self.failures.peek(address, now).map_err(Exceeded::Failures)?;
        }
        Ok(address)
    }

    fn key(&self, peer: Option<SocketAddr>) -> Option<IpAddr> {
        let address = peer?.ip();
        self.config.counts(address).then(|| address_key(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_then_the_rate_and_each_key_by_itself() {
        let rates = Rates::new(10, SECOND, 20);
        let now = Instant::now();
        let taken = (0..100).filter(|_| rates.take(&"a", now).is_ok()).count();
        assert_eq!(taken, 20);
        let wait = rates.take(&"a", now).unwrap_err();
        assert_eq!(wait, SECOND / 10);
        assert!(rates.take(&"b", now).is_ok());
        assert!(rates.take(&"a", now + wait).is_ok());
        assert!(rates.take(&"a", now + wait).is_err());
        let taken = (0..100)
            .filter(|_| rates.take(&"a", now + 100 * SECOND).is_ok())
            .count();
        assert_eq!(taken, 20);
    }

    #[test]
    fn to_peek_takes_nothing() {
        let rates = Rates::new(1, SECOND, 1);
        let now = Instant::now();
        for _ in 0..10 {
            assert!(rates.peek(&1, now).is_ok());
        }
        assert!(rates.take(&1, now).is_ok());
        assert!(rates.peek(&1, now).is_err());
        assert!(rates.peek(&2, now).is_ok());
        assert!(rates.peek(&1, now + SECOND).is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let rates = Rates::new(0, SECOND, 0);
        assert!((0..1000).all(|_| rates.take(&1, Instant::now()).is_ok()));
        let at_once = AtOnce::new(0);
        let permits: Vec<_> = (0..1000).filter_map(|_| at_once.enter(1)).collect();
        assert_eq!(permits.len(), 1000);
    }

    #[test]
    fn many_keys_cost_bounded_memory_and_still_are_limited() {
        let rates = Rates::bounded(1, SECOND, 2, 100);
        let now = Instant::now();
        let taken = (0..10_000)
            .filter(|key: &u32| rates.take(key, now).is_ok())
            .count();
        assert_eq!(taken, 102, "those that have room, and one bucket for all others");
        assert_eq!(rates.book().full_at.len(), 100);
        assert!(rates.peek(&9_999, now).is_err() && rates.peek(&1, now).is_ok());
        let later = now + 10 * SECOND;
        assert!(rates.take(&20_000, later).is_ok());
        assert_eq!(rates.book().full_at.len(), 1, "what is full again is forgotten");
    }

    #[test]
    fn permits_count_by_key_and_leave_nothing_behind() {
        let at_once = AtOnce::new(2);
        let first = at_once.enter("a").unwrap();
        let second = at_once.enter("a").unwrap();
        assert!(at_once.enter("a").is_none() && at_once.enter("b").is_some());
        drop(first);
        assert!(at_once.enter("a").is_some());
        drop(second);
        assert!(at_once.open.lock().is_empty());
    }

    #[test]
    fn wrong_credentials_shut_the_door_for_their_address_alone() {
        let doors = ByAddress::new(&LimitsConfig {
            failures_per_minute_per_address: 3,
            shared_addresses: vec!["10.0.0.1/32".parse().unwrap()],
            ..LimitsConfig::default()
        });
        let peer = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        let (bad, good, shared) = (peer("192.0.2.1:1"), peer("192.0.2.2:1"), peer("10.0.0.1:1"));
        let now = Instant::now();
        for _ in 0..3 {
            assert!(doors.enter(bad, now).is_ok());
            doors.failed(bad, now);
            doors.failed(shared, now);
        }
        let Err(Exceeded::Failures(wait)) = doors.enter(peer("192.0.2.1:2"), now) else {
            panic!("the door is open");
        };
        assert_eq!(wait, 20 * SECOND);
        assert!(doors.enter(good, now).is_ok() && doors.enter(shared, now).is_ok());
        assert!(doors.enter(None, now).is_ok());
        assert!(doors.enter(bad, now + wait).is_ok());
    }

    #[test]
    fn open_calls_without_a_caller_count_for_their_address_alone() {
        let doors = ByAddress::new(&LimitsConfig {
            calls_at_once_per_address: 5,
            calls_at_once: 6,
            shared_addresses: vec!["10.0.0.1/32".parse().unwrap()],
            ..LimitsConfig::default()
        });
        let peer = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        let (one, other, shared) = (peer("192.0.2.1:1"), peer("192.0.2.2:1"), peer("10.0.0.1:1"));
        let now = Instant::now();
        let places: Vec<_> = (0..9).filter_map(|_| doors.enter(one, now).ok()).collect();
        assert_eq!(places.len(), 5);
        assert!(matches!(doors.enter(one, now), Err(Exceeded::AddressAtOnce)));
        let standard = |peer| {
            let enter = |_| doors.enter_standard(peer, now).ok();
            (0..5000).map_while(enter).collect::<Vec<_>>()
        };
        let health = standard(one);
        assert_eq!(health.len(), 32, "beside the calls that have a caller");
        let checks = standard(shared);
        assert_eq!(checks.len(), 1024);
        for peer in [other, shared, None] {
            let held: Vec<_> = (0..5).map(|_| doors.enter(peer, now)).collect();
            assert!(held.iter().all(Result::is_ok), "{peer:?}");
        }
        drop(places);
        assert!(doors.enter(one, now).is_ok());
    }

    #[test]
    fn one_customer_is_one_address() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2:ffff::1"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        let config = LimitsConfig {
            shared_addresses: vec!["10.0.0.0/8".parse().unwrap()],
            ..LimitsConfig::default()
        };
        assert!(!config.counts("::ffff:10.1.2.3".parse().unwrap()));
        assert!(config.counts("192.0.2.1".parse().unwrap()));
    }
}
