//! The admission layers of both ports. A call reaches its handler only if the
//! access table ([`session_core::access`]) permits it as far as that depends on
//! the caller alone; the layer attaches the authenticated caller.
//!
//! The checks run cheapest first: a row for the method, limits of the address,
//! authentication, limits of the principal and its organization, authorization.
//! Only then does a call take a permit that all callers share.

use super::Admission;
use crate::caller::AuthenticatedCaller;
use crate::config::InternalConfig;
use crate::metrics::AdmissionOutcome;
use http::HeaderMap;
use http::request::Parts;
use service_kit::admission::{Admit, CallPermits, CallerKnown, HeadTooLarge};
use service_kit::connection::PeerInfo;
use service_kit::grpc::MAX_HEAD_BYTES;
use service_kit::limiter::{ConcurrencyLimiter, Permit, RateLimiter};
use service_kit::limits::{AddressLimits, Exceeded, LimitsConfig};
use service_kit::service_account_token::{SERVICE_TOKEN, ServiceTokens};
use session_core::access::Rpc;
use session_core::{AuditAction, OrgId, PrincipalId, Reason};
use session_proto::CALLER_ADDRESS;
use session_proto::error::{REASON_TRAILER, Refused};
use session_proto::ports::{Port, check_sent, misdirected};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

const SECOND: Duration = Duration::from_secs(1);
/// Retry delay of a caller above its concurrency limit.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Has rows in the access table for token-issuer, which serves it.
const TOKEN_SERVICE: &str = "/berth.v1.TokenService/";
/// Standard services that both ports serve.
const STANDARD: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// Limits of each principal and organization, for both ports together.
#[derive(Debug)]
pub(crate) struct Counts {
    calls: RateLimiter<PrincipalId>,
    at_once: Arc<ConcurrencyLimiter<PrincipalId>>,
    orgs: Arc<ConcurrencyLimiter<OrgId>>,
}

/// The permits of a call, of its principal and its organization.
type Share = (Permit<PrincipalId>, Permit<OrgId>);

impl Counts {
    pub(crate) fn new(config: &LimitsConfig) -> Self {
        let calls = config.calls_per_second_per_principal;
        Self {
            calls: RateLimiter::new(calls, SECOND, calls.saturating_mul(2)),
            at_once: ConcurrencyLimiter::new(config.calls_at_once_per_principal),
            orgs: ConcurrencyLimiter::new(config.calls_at_once_per_org),
        }
    }
}

/// The admission layer of the public port.
#[derive(Debug)]
pub(crate) struct Public {
    pub(crate) admission: Arc<Admission>,
    pub(crate) addresses: AddressLimits,
    pub(crate) counts: Arc<Counts>,
    /// Concurrent calls of all authenticated callers.
    pub(crate) at_once: Arc<ConcurrencyLimiter<()>>,
}

/// The admission layer of the internal port.
#[derive(Debug)]
pub(crate) struct Internal {
    pub(crate) admission: Arc<Admission>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) allow: InternalConfig,
    /// Verifies services' tokens, if these replace certificates.
    pub(crate) tokens: Option<Arc<ServiceTokens>>,
}

impl Internal {
    /// Checks that a service with this certificate or token may call the method.
    async fn check_service(
        &self,
        rpc: Rpc,
        names: &BTreeSet<String>,
        call: &mut Parts,
    ) -> Result<(), Status> {
        let peer = call.extensions.get::<PeerInfo>();
        let remote = peer.map(|peer| tracing::field::display(peer.remote));
        let (may, shown) =
            match &self.tokens {
                None => {
                    let may = peer.is_some_and(|peer| {
                        let shown = !peer.certificates.is_empty();
                        shown && names.iter().any(|name| name == "*" || peer.is_named(name))
                    });
                    (may, peer.map(PeerInfo::names).unwrap_or_default())
                }
                Some(tokens) => {
                    let subject = tokens.subject(&call.headers, self.admission.now()).await;
                    let subject = subject.map_err(|problem| {
                    tracing::warn!(method = rpc.path(), %problem, remote, "service rejected: invalid token");
                    self.admission.metrics.admission(AdmissionOutcome::PermissionDenied);
                    // Without a reason trailer: the error concerns the service, not its caller.
                    Status::unauthenticated("This service's token is not accepted. See internal.tokens.")
                })?;
                    (names.contains(&subject), vec![subject])
                }
            };
        if !may {
            tracing::warn!(
                method = rpc.path(),
                ?shown,
                remote,
                "service rejected: not in internal.allow"
            );
            self.admission
                .metrics
                .admission(AdmissionOutcome::PermissionDenied);
            let what = if self.tokens.is_some() {
                "token"
            } else {
                "certificate"
            };
            return Err(Refused::new(
                Reason::NotAuthorized,
                format!("This {what} may not call this method. See internal.allow."),
            )
            .into());
        }
        // Handlers do not need it.
        call.headers.remove(SERVICE_TOKEN);
        Ok(())
    }
}

/// Whether the method writes an audit record after its change. Such calls continue
/// when their client disconnects, so that no change lacks its record. Changes of
/// sessions are excluded because the store writes change and record atomically;
/// the test of a catalog changes nothing.
fn has_a_record(call: &Parts) -> bool {
    Rpc::of_path(call.uri.path()).is_some_and(|rpc| {
        matches!(
            rpc,
            Rpc::CreateCluster
                | Rpc::UpdateCluster
                | Rpc::DrainCluster
                | Rpc::DeleteCluster
                | Rpc::CreateCatalog
                | Rpc::UpdateCatalog
                | Rpc::DeleteCatalog
                | Rpc::CreateOrg
                | Rpc::SetLimits
                | Rpc::EnableOrg
                | Rpc::DisableOrg
                | Rpc::DisablePrincipal
                | Rpc::InterruptOperations
                | Rpc::RecordToken
                | Rpc::Revoke
                | Rpc::RevokeAll
        )
    })
}

impl Admit for Public {
    async fn admit(&self, call: &mut Parts) -> Result<CallPermits, Status> {
        let rpc = known(call, Port::Public)?;
        let origin = self.client_ip(call);
        let limited = |much: Exceeded| self.admission.limited(&much.to_string(), much.wait());
        let Some(rpc) = rpc else {
            let place = self.addresses.enter_standard(origin, Instant::now());
            return Ok(Box::new(place.map_err(limited)?));
        };
        // Held until the caller is authenticated; then limits of the caller apply.
        let _place = self.addresses.enter(origin, Instant::now()).map_err(limited)?;
        let address = origin.map(|origin| origin.ip());
        let share = self
            .admission
            .authorize_call(&self.counts, rpc, call, address)
            .await?;
        let permit = self.at_once.enter(()).ok_or(Exceeded::AtOnce).map_err(limited)?;
        Ok(Box::new((share, permit)))
    }

    fn caller_known(&self, call: &Parts) -> CallerKnown {
        match call.extensions.get::<AuthenticatedCaller>() {
            Some(_) => CallerKnown::Yes,
            None => CallerKnown::No,
        }
    }

    fn outlives_caller(&self, call: &Parts) -> bool {
        has_a_record(call)
    }

    fn too_large(&self, head: HeadTooLarge) -> Status {
        Refused::head_too_large(head.bytes, head.credential, MAX_HEAD_BYTES).into()
    }

    fn client_ip(&self, call: &Parts) -> Option<SocketAddr> {
        self.addresses.client_ip(call)
    }

    fn answered(&self, peer: Option<SocketAddr>, code: Code) {
        if code == Code::Unauthenticated {
            self.admission
                .metrics
                .admission(AdmissionOutcome::Unauthenticated);
            self.addresses.failed(peer, Instant::now());
        }
    }

    fn sends(&self, headers: &HeaderMap) {
        check(Port::Public, headers);
    }
}

impl Admit for Internal {
    async fn admit(&self, call: &mut Parts) -> Result<CallPermits, Status> {
        let Some(rpc) = known(call, Port::Internal)? else {
            return Ok(Box::new(()));
        };
        if let Some(names) = self.allow.names_for(rpc) {
            self.check_service(rpc, names, call).await?;
        }
        if !rpc.rule().needs_caller() {
            return Ok(Box::new(()));
        }
        // The peer is the token-issuer, which limits its callers by address itself
        // and forwards the address.
        let address = forwarded_address(call);
        let permit = self
            .admission
            .authorize_call(&self.counts, rpc, call, address)
            .await?;
        Ok(Box::new(permit))
    }

    fn caller_known(&self, _: &Parts) -> CallerKnown {
        CallerKnown::Yes
    }

    fn outlives_caller(&self, call: &Parts) -> bool {
        has_a_record(call)
    }

    fn too_large(&self, head: HeadTooLarge) -> Status {
        Refused::head_too_large(head.bytes, head.credential, MAX_HEAD_BYTES).into()
    }

    fn answered(&self, _: Option<SocketAddr>, code: Code) {
        if code == Code::Unauthenticated {
            self.admission
                .metrics
                .admission(AdmissionOutcome::Unauthenticated);
        }
    }

    fn sends(&self, headers: &HeaderMap) {
        check(Port::Internal, headers);
    }
}

/// The client IP that a service forwards; none if the header is repeated or
/// invalid.
fn forwarded_address(call: &Parts) -> Option<IpAddr> {
    let mut values = call.headers.get_all(CALLER_ADDRESS).iter();
    let address = values.next()?.to_str().ok()?.parse().ok()?;
    values.next().is_none().then_some(address)
}

/// The method of the access table; none for standard services (health, reflection).
///
/// # Errors
/// If the method is unknown or belongs to the other port.
fn known(call: &Parts, here: Port) -> Result<Option<Rpc>, Refused> {
    let path = call.uri.path();
    if STANDARD.iter().any(|service| path.starts_with(service)) {
        return Ok(None);
    }
    let here_served =
        |rpc: &Rpc| rpc.rule().is_internal() == (here == Port::Internal) && !path.starts_with(TOKEN_SERVICE);
    match Rpc::of_path(path).filter(here_served) {
        Some(rpc) => Ok(Some(rpc)),
        None => Err(misdirected(path, here)),
    }
}

/// In debug builds: checks that this port may send the error.
fn check(here: Port, headers: &HeaderMap) {
    if let Some(reason) = headers.get(REASON_TRAILER) {
        check_sent(here, reason.as_bytes());
    }
}

impl Admission {
    /// Authenticates the caller, takes its permits, and checks the access table.
    async fn authorize_call(
        &self,
        counts: &Counts,
        rpc: Rpc,
        call: &mut Parts,
        address: Option<IpAddr>,
    ) -> Result<Share, Refused> {
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let who = self.authenticator.authenticate(&call.headers).await;
        let who = who.inspect_err(|refused| {
            self.trail.refused(AuditAction::CallerRefused, refused, |record| {
                record.from_address(&address)
            });
        })?;
        let within = counts.calls.take(&who.id, Instant::now());
        within.map_err(|wait| self.limited("You call too often", wait))?;
        let permit = counts.at_once.enter(who.id.clone());
        let permit = permit.ok_or_else(|| self.limited("You have too many calls under way", RETRY_DELAY))?;
        let org = counts.orgs.enter(who.org.clone());
        let org =
            org.ok_or_else(|| self.limited("Your organization has too many calls under way", RETRY_DELAY))?;
        self.authorize_enabled(&who).await?;
        if !rpc.rule().may_be(&who) {
            self.metrics.admission(AdmissionOutcome::PermissionDenied);
            return Err(Refused::not_authorized());
        }
        self.metrics.admission(AdmissionOutcome::Admitted);
        call.extensions.insert(AuthenticatedCaller { who, address });
        Ok((permit, org))
    }

    fn limited(&self, what: &str, wait: Duration) -> Refused {
        self.metrics.admission(AdmissionOutcome::LimitExceeded);
        Refused::new(
            Reason::RateLimited,
            format!("{what}. Wait a moment, and call less often."),
        )
        .retry_after(wait.max(Duration::from_millis(10)))
    }
}
