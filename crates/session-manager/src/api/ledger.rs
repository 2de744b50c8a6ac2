//! TokenLedger: authorizes, records and revokes session tokens.

use super::Api;
use crate::caller::AuthenticatedCaller;
use session_core::access::Rpc;
use session_core::machine::Event;
use session_core::{Actor, AuditAction, Principal, Reason, Session, Timestamp, TokenId};
use session_proto::convert::{from_timestamp, parse, timestamp};
use session_proto::error::Refused;
use session_proto::internal as wire;
use session_proto::internal::token_ledger_server::TokenLedger;
use session_store::TokenRecord;
use session_store::signing_keys::MAX_SIGNING_KEYS;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `berth.internal.v1.TokenLedger`.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    /// The shared parts.
    pub(crate) api: Arc<Api>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl TokenLedger for Ledger {
    async fn record_token(
        &self,
        request: Request<wire::RecordTokenRequest>,
    ) -> Answer<wire::RecordTokenResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let read = async {
            let org = self.api.definitions.org(&who.org).await;
            Ok(org.map_err(crate::error::store)?.limits)
        };
        let session = self.connectable(&who, &request.session_id, Rpc::RecordToken);
        let (session, limits) = tokio::try_join!(session, read)
            .inspect_err(|refused| self.denied(&who, &request.session_id, refused))?;
        let key = session.key();
        let record = self
            .to_record(&who, &session, request)
            .inspect_err(|refused| self.denied(&who, key.id.as_str(), refused))?;
        let id = record.id.clone();
        let until = record.expires_at.after(self.api.verifier.config().afterlife());
        let answer = wire::RecordTokenResponse {
            org: key.org.to_string(),
            subject: record.subject.to_string(),
            token_epoch: record.epoch,
            expires_at: Some(timestamp(record.expires_at)),
        };
        self.api
            .store
            .record_token(&key, record, limits.tokens_per_session)
            .await
            .map_err(crate::error::store)
            .inspect_err(|refused| self.denied(&who, key.id.as_str(), refused))?;
        // Disabled in the meantime: the revocation of the caller's tokens may have missed
        // this one.
        if let Err(refused) = self.api.admission.authorize_enabled(&who).await {
            let revoke = Event::RevokeToken {
                id: id.clone(),
                until,
            };
            self.api
                .reconciler
                .apply(&key, &revoke, &Actor::System, |_| Ok(()))
                .await?;
            self.denied(&who, key.id.as_str(), &refused);
            return Err(refused.into());
        }
        tracing::info!(session = %key.id, org = %key.org, token = %id, actor = %who.id, "token recorded");
        Ok(Response::new(answer))
    }

    async fn list_tokens(
        &self,
        request: Request<wire::ListTokensRequest>,
    ) -> Answer<wire::ListTokensResponse> {
        let who = self.api.caller(&request)?;
        let id = request.into_inner().session_id;
        let (session, _) = self.api.session_for(&who, &id, Rpc::ListTokens).await?;
        let tokens = self
            .api
            .store
            .live_tokens(&session.key())
            .await
            .map_err(crate::error::store)?;
        let uses = self
            .api
            .store
            .token_uses(&session.key())
            .await
            .map_err(crate::error::store)?;
        let tokens = tokens
            .into_iter()
            .map(|token| wire::LedgerToken {
                first_used_at: uses.get(&token.id).map(|used| timestamp(used.first)),
                last_used_at: uses.get(&token.id).map(|used| timestamp(used.last)),
                revoked: token.epoch < session.token_epoch || session.revoked_tokens.contains_key(&token.id),
                token_id: token.id.to_string(),
                key_id: token.key_id,
                subject: token.subject.to_string(),
                token_epoch: token.epoch,
                issued_at: Some(timestamp(token.issued_at)),
                expires_at: Some(timestamp(token.expires_at)),
            })
            .collect();
        Ok(Response::new(wire::ListTokensResponse { tokens }))
    }

    async fn revoke(&self, request: Request<wire::RevokeRequest>) -> Answer<wire::RevokeResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let id: TokenId = parse("token_id", &request.token_id)?;
        let (session, _) = self
            .api
            .session_for(&who, &request.session_id, Rpc::Revoke)
            .await?;
        let tokens = self
            .api
            .store
            .live_tokens(&session.key())
            .await
            .map_err(crate::error::store)?;
        // A token that is not listed has expired, but may still reattach during its grace.
        let now = self.api.store.now().await.map_err(crate::error::store)?;
        let listed = tokens.iter().find(|token| token.id == id);
        let expires_at = listed.map_or(now, |token| token.expires_at);
        let until = expires_at.after(self.api.verifier.config().afterlife());
        let revoke = Event::RevokeToken {
            id: id.clone(),
            until,
        };
        self.api
            .change(&who, &session.key(), Rpc::Revoke, &revoke)
            .await?;
        self.api
            .audit(&who, AuditAction::TokenRevoked, |record| {
                record.on_session(&session.key()).on_token(&id)
            })
            .await;
        Ok(Response::new(wire::RevokeResponse {}))
    }

    async fn revoke_all(&self, request: Request<wire::RevokeAllRequest>) -> Answer<wire::RevokeAllResponse> {
        let who = self.api.caller(&request)?;
        let id = request.into_inner().session_id;
        let (session, _) = self.api.session_for(&who, &id, Rpc::RevokeAll).await?;
        let (session, _) = self
            .api
            .change(&who, &session.key(), Rpc::RevokeAll, &Event::RevokeTokens)
            .await?;
        self.api
            .audit(&who, AuditAction::TokensRevoked, |record| {
                record.on_session(&session.key())
            })
            .await;
        Ok(Response::new(wire::RevokeAllResponse {
            token_epoch: session.token_epoch,
        }))
    }

    async fn report_keys(
        &self,
        request: Request<wire::ReportKeysRequest>,
    ) -> Answer<wire::ReportKeysResponse> {
        let wire::ReportKeysRequest { published, signing } = request.into_inner();
        if published.len() > MAX_SIGNING_KEYS || !published.iter().all(|id| is_key_id(id)) {
            return Err(Refused::field("published", "must be at most 64 key ids").into());
        }
        let signing = (!signing.is_empty()).then_some(signing);
        if signing
            .as_ref()
            .is_some_and(|signing| !published.contains(signing))
        {
            return Err(Refused::field("signing", "must be one of those that are published").into());
        }
        let known = self
            .api
            .store
            .report_signing_keys(&published, signing.as_deref())
            .await
            .map_err(crate::error::store)?;
        let keys = known.keys.into_iter().map(|key| wire::KnownKey {
            key_id: key.id,
            published_since: Some(timestamp(key.published_since)),
            signed_at: key.signed_at.map(timestamp),
        });
        Ok(Response::new(wire::ReportKeysResponse {
            now: Some(timestamp(known.now)),
            keys: keys.collect(),
        }))
    }
}

/// Whether the text has the form of an RFC 7638 thumbprint (SHA-256).
fn is_key_id(text: &str) -> bool {
    text.len() == 43
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl Ledger {
    /// Records a rejected request for a token.
    fn denied(&self, who: &AuthenticatedCaller, id: &str, refused: &Refused) {
        self.api
            .trail
            .refused(AuditAction::TokenIssued, refused, |record| {
                let record = record
                    .by(Actor::Principal(who.id.clone()))
                    .from_address(&who.address)
                    .of_org(&who.org);
                match self.api.key(who, id) {
                    Ok(key) => record.on_session(&key),
                    Err(_) => record,
                }
            });
    }

    /// The record of the requested token, with the lifetime limited by the session.
    fn to_record(
        &self,
        who: &AuthenticatedCaller,
        session: &Session,
        request: wire::RecordTokenRequest,
    ) -> Result<TokenRecord, Refused> {
        if !is_key_id(&request.key_id) {
            return Err(Refused::field("key_id", "must be a key's thumbprint"));
        }
        let moment = |field, at: Option<prost_types::Timestamp>| {
            at.as_ref()
                .map(from_timestamp)
                .ok_or_else(|| Refused::field(field, "is missing"))
        };
        let issued_at = moment("issued_at", request.issued_at)?;
        let asked = moment("expires_at", request.expires_at)?;
        let most = issued_at.after(self.api.verifier.config().max_ttl);
        if asked <= issued_at || asked > most {
            return Err(Refused::field(
                "expires_at",
                format!("must be after it was issued, and not after {most}"),
            ));
        }
        let expires_at = Timestamp::from_secs(asked.min(session.expires_at).as_secs());
        if expires_at <= issued_at {
            return Err(Refused::new(
                Reason::SessionClosed,
                format!("Session {} is at the end of its life.", session.id),
            ));
        }
        Ok(TokenRecord {
            id: parse("token_id", &request.token_id)?,
            key_id: request.key_id,
            subject: who.id.clone(),
            epoch: session.token_epoch,
            issued_at,
            expires_at,
            address: who.address.clone(),
        })
    }

    /// A live session to which the caller may connect.
    async fn connectable(&self, who: &Principal, id: &str, rpc: Rpc) -> Result<Session, Refused> {
        let (session, _) = self.api.session_for(who, id, rpc).await?;
        if session.status().is_terminal() {
            return Err(crate::error::ended(&session));
        }
        Ok(session)
    }
}
