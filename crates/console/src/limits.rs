//! Limits of requests: per address and per credential, with separate room for
//! streams, so that neither watchers nor slow clients take the places of
//! others.

use crate::config::LimitsConfig;
use crate::credential::CredentialId;
use crate::metrics::{Metrics, StreamKind};
use crate::problem::Problem;
use http::request::Parts;
use service_kit::client_ip;
use service_kit::limiter::{ConcurrencyLimiter, Permit, RateLimiter, address_key};
use service_kit::metrics::GaugeGuard;
use session_core::Reason;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Retry delay after a limit of concurrency.
const RETRY: Duration = Duration::from_secs(1);

/// Limits of requests.
#[derive(Debug)]
pub(crate) struct Limits {
    config: LimitsConfig,
    address_rate: RateLimiter<IpAddr>,
    credential_rate: RateLimiter<CredentialId>,
    failures: RateLimiter<IpAddr>,
    requests: Room,
    streams: Room,
    metrics: Arc<Metrics>,
}

/// Places of concurrent requests.
#[derive(Debug)]
struct Room {
    all: Arc<ConcurrencyLimiter<()>>,
    per_address: Arc<ConcurrencyLimiter<IpAddr>>,
    per_credential: Arc<ConcurrencyLimiter<CredentialId>>,
}

/// A place of an open request; released on drop.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    _all: Permit<()>,
    _address: Option<Permit<IpAddr>>,
}

/// A place of an open request among those of its credential; released on drop.
#[derive(Debug)]
pub(crate) struct CredentialPermit(#[expect(dead_code, reason = "held for its drop")] Permit<CredentialId>);

/// A place of an open stream; released on drop.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    _all: Permit<()>,
    _address: Option<Permit<IpAddr>>,
    _credential: Permit<CredentialId>,
    _gauge: GaugeGuard,
}

impl Room {
    fn new(all: u32, per_address: u32, per_credential: u32) -> Self {
        Self {
            all: ConcurrencyLimiter::new(all),
            per_address: ConcurrencyLimiter::new(per_address),
            per_credential: ConcurrencyLimiter::new(per_credential),
        }
    }

    fn enter(&self, address: Option<IpAddr>) -> Result<(Permit<()>, Option<Permit<IpAddr>>), Problem> {
        let full = || limited("Too many requests are open; try again in a moment.", RETRY);
        let of_address = || {
            limited(
                "Too many requests of your address are open; end some of them.",
                RETRY,
            )
        };
        let per_address = address.map(|address| self.per_address.enter(address).ok_or_else(of_address));
        let per_address = per_address.transpose()?;
        Ok((self.all.enter(()).ok_or_else(full)?, per_address))
    }

    fn enter_credential(&self, id: CredentialId) -> Result<Permit<CredentialId>, Problem> {
        self.per_credential.enter(id).ok_or_else(|| {
            limited(
                "Too many requests with your credential are open; end some of them.",
                RETRY,
            )
        })
    }
}

fn limited(text: &str, wait: Duration) -> Problem {
    Problem::of_reason(Reason::RateLimited, text).retry_after(wait)
}

impl Limits {
    pub(crate) fn new(config: &LimitsConfig, metrics: Arc<Metrics>) -> Self {
        let second = Duration::from_secs(1);
        let rate = |count: u32| (count, second, count.saturating_mul(2));
        let (count, period, burst) = rate(config.requests_per_second_per_address);
        let address_rate = RateLimiter::new(count, period, burst);
        let (count, period, burst) = rate(config.requests_per_second_per_credential);
        let credential_rate = RateLimiter::new(count, period, burst);
        let failures = config.failures_per_minute_per_address;
        Self {
            address_rate,
            credential_rate,
            failures: RateLimiter::new(failures, Duration::from_secs(60), failures),
            requests: Room::new(
                config.requests_at_once,
                config.requests_at_once_per_address,
                config.requests_at_once_per_credential,
            ),
            streams: Room::new(
                config.streams,
                config.streams_per_address,
                config.streams_per_credential,
            ),
            metrics,
            config: config.clone(),
        }
    }

    /// The client's address; see [`client_ip::of`].
    pub(crate) fn client_ip(&self, parts: &Parts) -> Option<SocketAddr> {
        client_ip::of(parts, &self.config.trusted_proxies)
    }

    /// Admits a request, before its credential is read.
    ///
    /// # Errors
    /// The exceeded limit.
    pub(crate) fn enter(&self, client: Option<SocketAddr>) -> Result<RequestPermit, Problem> {
        let now = Instant::now();
        let address = self.key(client);
        if let Some(address) = &address {
            self.address_rate
                .take(address, now)
                .map_err(|wait| limited("Too many requests come from your address.", wait))?;
            self.failures
                .peek(address, now)
                .map_err(|wait| limited("Too many credentials from your address were wrong.", wait))?;
        }
        let (all, address) = self.requests.enter(address)?;
        Ok(RequestPermit {
            _all: all,
            _address: address,
        })
    }

    /// Admits a request among those of its credential.
    ///
    /// # Errors
    /// The exceeded limit.
    pub(crate) fn enter_credential(&self, id: CredentialId) -> Result<CredentialPermit, Problem> {
        self.credential_rate
            .take(&id, Instant::now())
            .map_err(|wait| limited("Too many requests come with your credential.", wait))?;
        self.requests.enter_credential(id).map(CredentialPermit)
    }

    /// Admits a stream, which then needs no [`RequestPermit`].
    ///
    /// # Errors
    /// The exceeded limit.
    pub(crate) fn enter_stream(
        &self,
        client: Option<SocketAddr>,
        id: CredentialId,
        kind: StreamKind,
    ) -> Result<StreamPermit, Problem> {
        let credential = self.streams.enter_credential(id)?;
        let (all, address) = self.streams.enter(self.key(client))?;
        Ok(StreamPermit {
            _all: all,
            _address: address,
            _credential: credential,
            _gauge: self.metrics.streams.at(kind).guard(),
        })
    }

    /// Records a rejected credential of this address.
    pub(crate) fn failed(&self, client: Option<SocketAddr>) {
        if let Some(address) = self.key(client) {
            let _ = self.failures.take(&address, Instant::now());
        }
    }

    fn key(&self, client: Option<SocketAddr>) -> Option<IpAddr> {
        let address = client?.ip().to_canonical();
        let is_shared = self
            .config
            .shared_addresses
            .iter()
            .any(|net| net.contains(&address));
        (!is_shared).then(|| address_key(address))
    }
}
