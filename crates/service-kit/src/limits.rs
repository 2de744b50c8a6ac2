//! Limits of an API: their configuration, and the limits of one address for
//! callers that are not authenticated yet.

use crate::config::{Problems, Validate, duration};
use crate::connection::IdleLimits;
use crate::limiter::{ConcurrencyLimiter, Permit, RateLimiter, address_key};
use crate::listen::AcceptLimits;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum number of concurrent calls of standard services (health, reflection)
/// of one address. They have no caller and are not part of the callers' limits.
const MAX_STANDARD_CALLS_PER_ADDRESS: u32 = 32;
/// The same for all addresses together that are exempt from limits per address.
const MAX_STANDARD_CALLS_OF_SHARED_ADDRESSES: u32 = 1024;
const MIN_REQUEST_BYTES: usize = 16 * 1024;
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
const CONNECTION_TIMEOUT_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Limits of an API. Zero means no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Calls of one principal per second; the burst is twice as many.
    pub calls_per_second_per_principal: u32,
    /// Concurrent calls of one principal.
    pub calls_at_once_per_principal: u32,
    /// Concurrent calls of one organization.
    pub calls_at_once_per_org: u32,
    /// Calls of one address per second, with any caller; the burst is twice as
    /// many.
    pub calls_per_second_per_address: u32,
    /// Rejected credentials of one address per minute.
    pub failures_per_minute_per_address: u32,
    /// Concurrent calls of one address before their callers are authenticated.
    pub calls_at_once_per_address: u32,
    /// Open connections of one address.
    pub connections_per_address: u32,
    /// Timeout of a connection without an authenticated caller: 1 s to 24 h.
    #[serde(with = "duration")]
    pub connection_caller_timeout: Duration,
    /// Timeout of a connection without calls: 1 s to 24 h.
    #[serde(with = "duration")]
    pub connection_idle_timeout: Duration,
    /// Concurrent calls in all.
    pub calls_at_once: u32,
    /// Maximum size of a request in bytes: 16 KiB to 4 MiB.
    pub request_bytes: usize,
    /// Networks whose addresses have many callers: load balancers, the console.
    /// They are exempt from limits per address.
    pub shared_addresses: Vec<ipnet::IpNet>,
    /// Networks of proxies whose `x-forwarded-for` is trusted: the reported
    /// address is limited and audited instead of theirs.
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
            (MIN_REQUEST_BYTES..=MAX_REQUEST_BYTES).contains(&self.request_bytes),
            "request_bytes",
            "must be 16384 to 4194304",
        );
        for (field, timeout) in [
            ("connection_caller_timeout", self.connection_caller_timeout),
            ("connection_idle_timeout", self.connection_idle_timeout),
        ] {
            problems.require(
                CONNECTION_TIMEOUT_RANGE.contains(&timeout),
                field,
                "must be 1s to 24h",
            );
        }
    }
}

impl LimitsConfig {
    /// Whether limits per address apply to `address`.
    pub fn limits_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !self.shared_addresses.iter().any(|net| net.contains(&address))
    }

    /// Connection limits of a port. Trusted proxies are exempt from the limit per
    /// address, as shared addresses are.
    pub fn connections(&self) -> AcceptLimits {
        let exempt = self.shared_addresses.iter().chain(&self.trusted_proxies);
        AcceptLimits {
            connections_per_address: self.connections_per_address,
            exempt: exempt.copied().collect(),
            ..AcceptLimits::default()
        }
    }

    /// The same, with idle timeouts, for a port with a
    /// [`crate::admission::AdmissionLayer`].
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

/// Limits of calls per address, before the caller is authenticated. Addresses
/// share nothing here, except those that are exempt from limits per address.
#[derive(Debug)]
pub struct AddressLimits {
    config: LimitsConfig,
    calls: RateLimiter<IpAddr>,
    failures: RateLimiter<IpAddr>,
    at_once: Arc<ConcurrencyLimiter<IpAddr>>,
    standard: Arc<ConcurrencyLimiter<IpAddr>>,
    standard_shared: Arc<ConcurrencyLimiter<()>>,
}

/// Permit of a call whose caller is not authenticated; released on drop.
#[derive(Debug)]
pub struct AddressPermit {
    _address: Option<Permit<IpAddr>>,
    _shared: Option<Permit<()>>,
}

/// An exceeded limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Too many calls of one address.
    #[error("Too many calls come from your address")]
    Calls(Duration),
    /// Too many rejected credentials of one address.
    #[error("Too many credentials from your address were wrong")]
    Failures(Duration),
    /// Too many concurrent calls of one address.
    #[error("Too many calls from your address are under way")]
    AddressAtOnce,
    /// Too many concurrent calls.
    #[error("Too many calls are under way")]
    AtOnce,
}

impl Exceeded {
    /// Time until a retry can succeed; 1 s for concurrency limits.
    pub fn wait(self) -> Duration {
        match self {
            Self::Calls(wait) | Self::Failures(wait) => wait,
            Self::AddressAtOnce | Self::AtOnce => Duration::from_secs(1),
        }
    }
}

impl AddressLimits {
    /// Limits with this configuration.
    pub fn new(config: &LimitsConfig) -> Self {
        let (calls, failures) = (
            config.calls_per_second_per_address,
            config.failures_per_minute_per_address,
        );
        Self {
            calls: RateLimiter::new(calls, Duration::from_secs(1), calls.saturating_mul(2)),
            failures: RateLimiter::new(failures, Duration::from_secs(60), failures),
            at_once: ConcurrencyLimiter::new(config.calls_at_once_per_address),
            standard: ConcurrencyLimiter::new(MAX_STANDARD_CALLS_PER_ADDRESS),
            standard_shared: ConcurrencyLimiter::new(MAX_STANDARD_CALLS_OF_SHARED_ADDRESSES),
            config: config.clone(),
        }
    }

    /// The client IP of a call, which its limits apply to.
    pub fn client_ip(&self, call: &http::request::Parts) -> Option<SocketAddr> {
        crate::client_ip::of(call, &self.config.trusted_proxies)
    }

    /// Admits a call whose caller is not authenticated yet. The permit is held
    /// until authentication, or to the end of a call without authentication.
    ///
    /// # Errors
    /// [`Exceeded`], before any work for the call.
    pub fn enter(&self, peer: Option<SocketAddr>, now: Instant) -> Result<AddressPermit, Exceeded> {
        let address = self.within_rates(peer, now)?;
        let permit = |address| self.at_once.enter(address).ok_or(Exceeded::AddressAtOnce);
        Ok(AddressPermit {
            _address: address.map(permit).transpose()?,
            _shared: None,
        })
    }

    /// Admits a call of a standard service (health, reflection), which has no
    /// caller. The permit is held to the end of the call.
    ///
    /// # Errors
    /// [`Exceeded`], before any work for the call.
    pub fn enter_standard(&self, peer: Option<SocketAddr>, now: Instant) -> Result<AddressPermit, Exceeded> {
        Ok(match self.within_rates(peer, now)? {
            Some(address) => AddressPermit {
                _address: Some(self.standard.enter(address).ok_or(Exceeded::AddressAtOnce)?),
                _shared: None,
            },
            None => AddressPermit {
                _address: None,
                _shared: Some(self.standard_shared.enter(()).ok_or(Exceeded::AtOnce)?),
            },
        })
    }

    /// Records a rejected credential of this peer.
    pub fn failed(&self, peer: Option<SocketAddr>, now: Instant) {
        if let Some(address) = self.key(peer) {
            let _ = self.failures.take(&address, now);
        }
    }

    /// Applies the rates and returns the peer's key, if limits per address apply.
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
        self.config.limits_address(address).then(|| address_key(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rejected_credentials_limit_their_address_alone() {
        let limits = AddressLimits::new(&LimitsConfig {
            failures_per_minute_per_address: 3,
            shared_addresses: vec!["10.0.0.1/32".parse().unwrap()],
            ..LimitsConfig::default()
        });
        let peer = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        let (bad, good, shared) = (peer("192.0.2.1:1"), peer("192.0.2.2:1"), peer("10.0.0.1:1"));
        let now = Instant::now();
        for _ in 0..3 {
            assert!(limits.enter(bad, now).is_ok());
            limits.failed(bad, now);
            limits.failed(shared, now);
        }
        let Err(Exceeded::Failures(wait)) = limits.enter(peer("192.0.2.1:2"), now) else {
            panic!("the address is not limited");
        };
        assert_eq!(wait, 20 * SECOND);
        assert!(limits.enter(good, now).is_ok() && limits.enter(shared, now).is_ok());
        assert!(limits.enter(None, now).is_ok());
        assert!(limits.enter(bad, now + wait).is_ok());
    }

    #[test]
    fn open_calls_without_a_caller_count_for_their_address_alone() {
        let limits = AddressLimits::new(&LimitsConfig {
            calls_at_once_per_address: 5,
            calls_at_once: 6,
            shared_addresses: vec!["10.0.0.1/32".parse().unwrap()],
            ..LimitsConfig::default()
        });
        let peer = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        let (one, other, shared) = (peer("192.0.2.1:1"), peer("192.0.2.2:1"), peer("10.0.0.1:1"));
        let now = Instant::now();
        let places: Vec<_> = (0..9).filter_map(|_| limits.enter(one, now).ok()).collect();
        assert_eq!(places.len(), 5);
        assert!(matches!(limits.enter(one, now), Err(Exceeded::AddressAtOnce)));
        let standard = |peer| {
            let enter = |_| limits.enter_standard(peer, now).ok();
            (0..5000).map_while(enter).collect::<Vec<_>>()
        };
        let health = standard(one);
        assert_eq!(health.len(), 32, "beside the calls that have a caller");
        let checks = standard(shared);
        assert_eq!(checks.len(), 1024);
        for peer in [other, shared, None] {
            let held: Vec<_> = (0..5).map(|_| limits.enter(peer, now)).collect();
            assert!(held.iter().all(Result::is_ok), "{peer:?}");
        }
        drop(places);
        assert!(limits.enter(one, now).is_ok());
    }

    #[test]
    fn shared_addresses_are_exempt_in_either_spelling() {
        let config = LimitsConfig {
            shared_addresses: vec!["10.0.0.0/8".parse().unwrap()],
            ..LimitsConfig::default()
        };
        assert!(!config.limits_address("::ffff:10.1.2.3".parse().unwrap()));
        assert!(config.limits_address("192.0.2.1".parse().unwrap()));
    }
}
