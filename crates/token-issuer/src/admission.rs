//! Admission of the token API: limits on calls and on failed authentications
//! per address. session-manager authenticates the caller.

use crate::metrics::{AdmissionOutcome, Metrics};
use http::HeaderMap;
use service_kit::admission::{Admit, CallPermits, CallerKnown, HeadTooLarge};
use service_kit::grpc::MAX_HEAD_BYTES;
use service_kit::limiter::ConcurrencyLimiter;
use service_kit::limits::{AddressLimits, Exceeded, LimitsConfig};
use session_core::Reason;
use session_proto::error::{REASON_TRAILER, Refused};
use session_proto::ports::{Port, check_sent, misdirected};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// The service of this port.
const TOKEN_SERVICE: &str = "/berth.v1.TokenService/";
/// Standard services on the same port, which have no caller.
const STANDARD: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// Client IP of a call, for handlers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientIp(pub(crate) Option<IpAddr>);

/// The admission layer of this port.
#[derive(Debug)]
pub(crate) struct Admission {
    addresses: AddressLimits,
    at_once: Arc<ConcurrencyLimiter<()>>,
    metrics: Arc<Metrics>,
}

impl Admission {
    pub(crate) fn new(limits: &LimitsConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            addresses: AddressLimits::new(limits),
            at_once: ConcurrencyLimiter::new(limits.calls_at_once),
            metrics,
        }
    }

    /// The caller is not authenticated here, so a call counts against its
    /// address until its end. Standard services have limits of their own.
    fn enter(&self, standard: bool, origin: Option<SocketAddr>) -> Result<CallPermits, Exceeded> {
        let now = Instant::now();
        if standard {
            return Ok(Box::new(self.addresses.enter_standard(origin, now)?));
        }
        let place = self.addresses.enter(origin, now)?;
        let permit = self.at_once.enter(()).ok_or(Exceeded::AtOnce)?;
        Ok(Box::new((place, permit)))
    }
}

impl Admit for Admission {
    async fn admit(&self, call: &mut http::request::Parts) -> Result<CallPermits, Status> {
        let path = call.uri.path();
        let standard = STANDARD.iter().any(|service| path.starts_with(service));
        if !standard && !path.starts_with(TOKEN_SERVICE) {
            return Err(misdirected(path, Port::Issuer).into());
        }
        let origin = self.client_ip(call);
        let pass = self.enter(standard, origin).map_err(|exceeded| {
            self.metrics.admission(match exceeded {
                Exceeded::Calls(_) => AdmissionOutcome::RateLimited,
                Exceeded::Failures(_) => AdmissionOutcome::FailureLimited,
                Exceeded::AddressAtOnce | Exceeded::AtOnce => AdmissionOutcome::ConcurrencyLimited,
            });
            Refused::new(
                Reason::RateLimited,
                format!("{exceeded}. Wait a moment, and call less often."),
            )
            .retry_after(exceeded.wait().max(Duration::from_millis(10)))
        })?;
        self.metrics.admission(AdmissionOutcome::Admitted);
        call.extensions.insert(ClientIp(origin.map(|origin| origin.ip())));
        Ok(pass)
    }

    fn caller_known(&self, call: &http::request::Parts) -> CallerKnown {
        match call.uri.path().starts_with(TOKEN_SERVICE) {
            true => CallerKnown::IfAnswered,
            false => CallerKnown::No,
        }
    }

    fn too_large(&self, head: HeadTooLarge) -> Status {
        Refused::head_too_large(head.bytes, head.credential, MAX_HEAD_BYTES).into()
    }

    fn client_ip(&self, call: &http::request::Parts) -> Option<SocketAddr> {
        self.addresses.client_ip(call)
    }

    fn answered(&self, peer: Option<SocketAddr>, code: Code) {
        if code == Code::Unauthenticated {
            self.metrics.admission(AdmissionOutcome::Unauthenticated);
            self.addresses.failed(peer, Instant::now());
        }
    }

    fn sends(&self, headers: &HeaderMap) {
        if let Some(reason) = headers.get(REASON_TRAILER) {
            check_sent(Port::Issuer, reason.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_kit::connection::PeerInfo;
    use service_kit::metrics::Registry;

    fn admission(limits: LimitsConfig) -> (Admission, Registry) {
        let registry = Registry::new();
        let admission = Admission::new(&limits, Arc::new(Metrics::new(&registry)));
        (admission, registry)
    }

    fn call(address: &str) -> http::request::Parts {
        call_of("/berth.v1.TokenService/IssueSessionToken", address)
    }

    fn call_of(path: &str, address: &str) -> http::request::Parts {
        let (mut parts, ()) = http::Request::get(path).body(()).unwrap().into_parts();
        parts.extensions.insert(PeerInfo {
            usage: Default::default(),
            remote: address.parse().unwrap(),
            tls: true,
            certificates: [].into(),
        });
        parts
    }

    fn counted(registry: &Registry, outcome: &str) -> f64 {
        let series = format!("token_issuer_calls_total{{outcome=\"{outcome}\"}} ");
        let text = registry.render();
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap_or_else(|| panic!("no {series}in {text}"))
            .parse()
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn each_limit_has_an_outcome_of_its_own() {
        let (admission, registry) = admission(LimitsConfig {
            calls_per_second_per_address: 2,
            failures_per_minute_per_address: 3,
            calls_at_once: 5,
            ..LimitsConfig::default()
        });
        for outcome in [
            "admitted",
            "rate_limited",
            "failure_limited",
            "concurrency_limited",
            "unauthenticated",
        ] {
            assert_eq!(counted(&registry, outcome), 0.0, "{outcome}");
        }
        for _ in 0..6 {
            let _ = admission.admit(&mut call("192.0.2.1:5")).await;
        }
        assert_eq!(
            (counted(&registry, "admitted"), counted(&registry, "rate_limited")),
            (4.0, 2.0)
        );
        let wrong = Some("192.0.2.2:5".parse().unwrap());
        for _ in 0..3 {
            admission.answered(wrong, Code::Unauthenticated);
            admission.answered(wrong, Code::PermissionDenied);
        }
        assert!(admission.admit(&mut call("192.0.2.2:6")).await.is_err());
        assert_eq!(
            (
                counted(&registry, "unauthenticated"),
                counted(&registry, "failure_limited")
            ),
            (3.0, 1.0)
        );
        let mut held = Vec::new();
        for n in 0..7 {
            held.extend(admission.admit(&mut call(&format!("192.0.2.1{n}:5"))).await.ok());
        }
        assert_eq!((held.len(), counted(&registry, "concurrency_limited")), (5, 2.0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_cannot_exhaust_the_limits_of_others() {
        let (admission, registry) = admission(LimitsConfig::default());
        let mut held = Vec::new();
        for path in [
            "/berth.v1.TokenService/IssueSessionToken",
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            for _ in 0..5000 {
                held.extend(admission.admit(&mut call_of(path, "192.0.2.1:5")).await.ok());
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(held.len(), 100 + 32, "open calls of one address");
        assert!(counted(&registry, "concurrency_limited") > 0.0);
        for n in 0..100 {
            let other = admission.admit(&mut call("192.0.2.2:5")).await;
            assert!(other.is_ok(), "call {n} of another address");
        }
    }

    #[test]
    fn the_error_for_a_too_large_token_names_the_limit() {
        let (admission, _) = admission(LimitsConfig::default());
        let status = admission.too_large(HeadTooLarge {
            bytes: 70_000,
            credential: 69_000,
        });
        assert_eq!(
            session_proto::error::reason_of(&status),
            Some(Reason::CallerUnknown)
        );
        assert!(status.message().contains("69000") && status.message().contains("65536"));
    }
}
