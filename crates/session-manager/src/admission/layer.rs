//! The doors of both ports. Nothing reaches a handler that the table of
//! [`session_core::access`] does not let through as far as the caller alone
//! can tell; handlers get the caller from here.
//!
//! In this order, cheapest first: is there a row for the call; how much comes
//! from this address; who calls; how much do they, and their organization, call;
//! may they at all. Calls take a place that all callers share only after that.

use super::Admission;
use crate::caller::AuthenticatedCaller;
use crate::config::InternalConfig;
use crate::metrics::Door;
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
/// How long to wait when too much is asked at once.
const CROWDED: Duration = Duration::from_secs(1);
/// Has rows, because token-issuer asks for them, and is served there.
const TOKEN_SERVICE: &str = "/berth.v1.TokenService/";
/// What is served beside our own services: standard ones.
const STANDARD: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// What is counted of each principal, at both ports together.
#[derive(Debug)]
pub(crate) struct Counts {
    calls: RateLimiter<PrincipalId>,
    at_once: Arc<ConcurrencyLimiter<PrincipalId>>,
    orgs: Arc<ConcurrencyLimiter<OrgId>>,
}

/// What a call holds of its principal's and its organization's share.
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

/// The door of the public port.
#[derive(Debug)]
pub(crate) struct Public {
    pub(crate) admission: Arc<Admission>,
    pub(crate) addresses: AddressLimits,
    pub(crate) counts: Arc<Counts>,
    /// Calls at once in all, of callers that are known.
    pub(crate) at_once: Arc<ConcurrencyLimiter<()>>,
}

/// The door of the internal port.
#[derive(Debug)]
pub(crate) struct Internal {
    pub(crate) admission: Arc<Admission>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) allow: InternalConfig,
    /// Where services show tokens in place of certificates.
    pub(crate) tokens: Option<Arc<ServiceTokens>>,
}

impl Internal {
    /// May a service with such a certificate, or such a token, call this?
    async fn check_service(
        &self,
        rpc: Rpc,
        names: &BTreeSet<String>,
        call: &mut Parts,
    ) -> Result<(), Status> {
        let peer = call.extensions.get::<PeerInfo>();
        let remote = peer.map(|peer| tracing::field::display(peer.remote));
        let (may, shown) = match &self.tokens {
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
                    tracing::warn!(method = rpc.path(), %problem, remote, "a service's token was refused");
                    self.admission.metrics.door(Door::Refused);
                    // Without a reason of ours: it is about the service, not about its caller.
                    Status::unauthenticated("This service's token is not accepted. See internal.tokens.")
                })?;
                (names.contains(&subject), vec![subject])
            }
        };
        if !may {
            tracing::warn!(method = rpc.path(), ?shown, remote, "a service was refused");
            self.admission.metrics.door(Door::Refused);
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
        // Nobody behind the door needs it.
        call.headers.remove(SERVICE_TOKEN);
        Ok(())
    }
}

/// Does the call do something and then put it down, or follow it up? These go on
/// when their caller leaves, so that no deed is without its record. Of a session,
/// the store writes a change and its record in one step; a trial changes nothing.
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
        // Held until the caller is known, who has shares of their own.
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
            self.admission.metrics.door(Door::Unknown);
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
        // The peer is the token-issuer, who counts its own callers' addresses
        // and says which it was.
        let address = told_address(call);
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
            self.admission.metrics.door(Door::Unknown);
        }
    }

    fn sends(&self, headers: &HeaderMap) {
        check(Port::Internal, headers);
    }
}

/// The caller's address as a service tells it, once and in one spelling.
fn told_address(call: &Parts) -> Option<IpAddr> {
    let mut told = call.headers.get_all(CALLER_ADDRESS).iter();
    let address = told.next()?.to_str().ok()?.parse().ok()?;
    told.next().is_none().then_some(address)
}

/// The row of a call of ours; none for standard services (health, reflection).
/// What has no row, or belongs to another port, is not served.
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

/// In debug builds: is the error that is sent one that this port may send?
fn check(here: Port, headers: &HeaderMap) {
    if let Some(reason) = headers.get(REASON_TRAILER) {
        check_sent(here, reason.as_bytes());
    }
}

impl Admission {
    /// Authenticates the caller, takes their share of the limits, and consults the
    /// access table.
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
        let permit = permit.ok_or_else(|| self.limited("You have too many calls under way", CROWDED))?;
        let org = counts.orgs.enter(who.org.clone());
        let org =
            org.ok_or_else(|| self.limited("Your organization has too many calls under way", CROWDED))?;
        self.authorize_enabled(&who).await?;
        if !rpc.rule().may_be(&who) {
            self.metrics.door(Door::Refused);
            return Err(Refused::not_authorized());
        }
        self.metrics.door(Door::Open);
        call.extensions.insert(AuthenticatedCaller { who, address });
        Ok((permit, org))
    }

    fn limited(&self, what: &str, wait: Duration) -> Refused {
        self.metrics.door(Door::Limited);
        Refused::new(
            Reason::RateLimited,
            format!("{what}. Wait a moment, and call less often."),
        )
        .retry_after(wait.max(Duration::from_millis(10)))
    }
}
