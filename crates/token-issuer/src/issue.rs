//! TokenService: records a token in the ledger, and only then signs it.

use crate::admission::ClientIp;
use crate::config::{MAX_TTL, MIN_TTL};
use crate::keys::{Keys, NoPlan};
use crate::public::PublicAddress;
use service_kit::grpc;
use service_kit::service_account_token::ServiceChannel;
use session_core::{Clock, OrgId, PrincipalId, Reason, SessionId, Timestamp, TokenId};
use session_proto::CALLER_ADDRESS;
use session_proto::convert::{from_timestamp, maybe_duration, parse, timestamp};
use session_proto::error::{REASON_TRAILER, Refused};
use session_proto::internal as ledger;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use session_proto::v1::{self, token_service_server::TokenService};
use session_token::Claims;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Response, Status};

/// The common content of all tokens and replies.
#[derive(Debug, Clone)]
pub struct Issuance {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// Default lifetime.
    pub default_ttl: Duration,
    /// Public address of spark-proxy.
    pub public: PublicAddress,
}

/// Implementation of `berth.v1.TokenService`.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) ledger: TokenLedgerClient<ServiceChannel>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) issuance: Issuance,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<crate::metrics::Metrics>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl TokenService for Tokens {
    async fn issue_session_token(
        &self,
        request: Request<v1::IssueSessionTokenRequest>,
    ) -> Answer<v1::IssueSessionTokenResponse> {
        let outcome = self.issue(request).await;
        self.metrics.count_issue(outcome.is_ok());
        outcome.map(Response::new)
    }

    async fn list_session_tokens(
        &self,
        request: Request<v1::ListSessionTokensRequest>,
    ) -> Answer<v1::ListSessionTokensResponse> {
        let caller = Caller::of(&request)?;
        let session_id = request.into_inner().session_id;
        let request = caller.request(ledger::ListTokensRequest { session_id });
        let listed = self
            .ledger
            .clone()
            .list_tokens(request)
            .await
            .map_err(relayed)?
            .into_inner();
        let tokens = listed
            .tokens
            .into_iter()
            .map(|token| v1::SessionToken {
                token_id: token.token_id,
                key_id: token.key_id,
                subject: token.subject,
                issued_at: token.issued_at,
                expires_at: token.expires_at,
                first_used_at: token.first_used_at,
                last_used_at: token.last_used_at,
                revoked: token.revoked,
            })
            .collect();
        Ok(Response::new(v1::ListSessionTokensResponse { tokens }))
    }

    async fn revoke_session_token(
        &self,
        request: Request<v1::RevokeSessionTokenRequest>,
    ) -> Answer<v1::RevokeSessionTokenResponse> {
        let caller = Caller::of(&request)?;
        let v1::RevokeSessionTokenRequest { session_id, token_id } = request.into_inner();
        let request = caller.request(ledger::RevokeRequest { session_id, token_id });
        self.ledger.clone().revoke(request).await.map_err(relayed)?;
        Ok(Response::new(v1::RevokeSessionTokenResponse {}))
    }

    async fn revoke_all_session_tokens(
        &self,
        request: Request<v1::RevokeAllSessionTokensRequest>,
    ) -> Answer<v1::RevokeAllSessionTokensResponse> {
        let caller = Caller::of(&request)?;
        let session_id = request.into_inner().session_id;
        let request = caller.request(ledger::RevokeAllRequest { session_id });
        let revoked = self
            .ledger
            .clone()
            .revoke_all(request)
            .await
            .map_err(relayed)?
            .into_inner();
        Ok(Response::new(v1::RevokeAllSessionTokensResponse {
            token_epoch: revoked.token_epoch,
        }))
    }
}

impl Tokens {
    async fn issue(
        &self,
        request: Request<v1::IssueSessionTokenRequest>,
    ) -> Result<v1::IssueSessionTokenResponse, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let sid: SessionId = parse("session_id", &request.session_id)?;
        let ttl = maybe_duration("ttl", request.ttl.as_ref())?.unwrap_or(self.issuance.default_ttl);
        if ttl < MIN_TTL || ttl > MAX_TTL {
            return Err(Refused::field("ttl", "must be between 60 s and 12 h").into());
        }
        let signer = self.keys.signer().await.map_err(|NoPlan| unreachable_manager())?;
        let now = self.clock.now();
        let requested = RequestedToken {
            sid,
            iat: now.as_secs(),
            exp: now.after(ttl).as_secs(),
            jti: TokenId::generate(now, rand::random()),
        };
        let record = ledger::RecordTokenRequest {
            session_id: requested.sid.to_string(),
            token_id: requested.jti.to_string(),
            key_id: signer.kid().to_owned(),
            issued_at: Some(timestamp(Timestamp::from_secs(requested.iat))),
            expires_at: Some(timestamp(Timestamp::from_secs(requested.exp))),
        };
        let recorded = self.ledger.clone().record_token(caller.request(record)).await;
        let claims = self.claims(requested, recorded.map_err(relayed)?.get_ref())?;
        let token = signer.sign(&claims).map_err(|error| {
            tracing::error!(%error, "token signing failed");
            Refused::new(
                Reason::Internal,
                "The token could not be signed. Tell your platform team.",
            )
        })?;
        tracing::info!(session = %claims.sid, org = %claims.org, token = %claims.jti, actor = %claims.sub, "token issued");
        Ok(v1::IssueSessionTokenResponse {
            connection_url: self.issuance.public.connection_url(&token, &claims.sid),
            token,
            token_id: claims.jti.to_string(),
            token_type: "Bearer".to_owned(),
            issued_at: Some(timestamp(Timestamp::from_secs(claims.iat))),
            expires_at: Some(timestamp(claims.expires_at())),
            grpc_endpoint: self.issuance.public.endpoint().to_owned(),
        })
    }

    /// The claims of a token, from the record in the ledger.
    fn claims(
        &self,
        requested: RequestedToken,
        recorded: &ledger::RecordTokenResponse,
    ) -> Result<Claims, Refused> {
        let invalid = |what: &str| {
            tracing::error!(what, "ledger reply invalid");
            Refused::new(
                Reason::Internal,
                "The session-manager sent an invalid reply. Tell your platform team.",
            )
        };
        let exp = recorded.expires_at.as_ref().map(from_timestamp);
        let exp = exp.map(Timestamp::as_secs).unwrap_or_default();
        if exp <= requested.iat || exp > requested.exp {
            return Err(invalid("expires_at"));
        }
        Ok(Claims {
            iss: self.issuance.issuer.clone(),
            aud: self.issuance.audience.clone(),
            sub: recorded
                .subject
                .parse::<PrincipalId>()
                .map_err(|_| invalid("subject"))?,
            org: recorded.org.parse::<OrgId>().map_err(|_| invalid("org"))?,
            sid: requested.sid,
            epoch: recorded.token_epoch,
            iat: requested.iat,
            nbf: requested.iat,
            exp,
            jti: requested.jti,
        })
    }
}

/// A validated token request.
struct RequestedToken {
    sid: SessionId,
    iat: u64,
    exp: u64,
    jti: TokenId,
}

/// Metadata for the ledger: the caller's credential, which session-manager
/// authenticates, and the client IP for the audit trail.
struct Caller {
    credential: MetadataValue<Ascii>,
    address: Option<MetadataValue<Ascii>>,
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Result<Self, Refused> {
        let bearer = grpc::bearer(request.metadata().as_ref()).map_err(Refused::no_key)?;
        let mut credential: MetadataValue<Ascii> = format!("Bearer {bearer}")
            .parse()
            .map_err(|_| Refused::no_key("the credential is not plain text"))?;
        credential.set_sensitive(true);
        let origin = request.extensions().get::<ClientIp>();
        let address = origin.and_then(|ClientIp(address)| address.as_ref());
        Ok(Self {
            credential,
            address: address.and_then(|address| address.to_string().parse().ok()),
        })
    }

    /// A request to the ledger with this metadata.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.credential.clone());
        if let Some(address) = &self.address {
            metadata.insert(CALLER_ADDRESS, address.clone());
        }
        request
    }
}

/// Passes rejections by the ledger to the caller; its unavailability becomes an
/// error of its own.
fn relayed(status: Status) -> Status {
    if session_proto::error::reason_of(&status).is_some() {
        let mut relayed =
            Status::with_details(status.code(), status.message(), status.details().to_vec().into());
        if let Some(reason) = status.metadata().get(REASON_TRAILER) {
            relayed.metadata_mut().insert(REASON_TRAILER, reason.clone());
        }
        return relayed;
    }
    if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
        tracing::error!(code = ?status.code(), message = status.message(), "session-manager rejected the token-issuer");
    }
    unreachable_manager().into()
}

fn unreachable_manager() -> Refused {
    Refused::new(
        Reason::ControlPlaneUnavailable,
        "The session-manager cannot be reached at the moment. Try again shortly.",
    )
}
