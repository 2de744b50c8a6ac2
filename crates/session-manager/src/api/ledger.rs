//! TokenLedger: who may have a token, and which tokens there are.

use super::Api;
use session_core::access::Rpc;
use session_core::machine::Event;
use session_core::{Actor, Principal, Session, TokenId};
use session_proto::convert::{from_timestamp, parse, timestamp};
use session_proto::error::Refused;
use session_proto::internal as wire;
use session_proto::internal::token_ledger_server::TokenLedger;
use session_store::TokenRecord;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `berth.internal.v1.TokenLedger`.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(pub(crate) Arc<Api>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl TokenLedger for Ledger {
    async fn authorize_issue(
        &self,
        request: Request<wire::AuthorizeIssueRequest>,
    ) -> Answer<wire::AuthorizeIssueResponse> {
        let who = self.0.caller(&request)?;
        let session = self
            .connectable(&who, &request.into_inner().session_id, Rpc::AuthorizeIssue)
            .await?;
        Ok(Response::new(wire::AuthorizeIssueResponse {
            org: session.org.to_string(),
            subject: who.id.to_string(),
            token_epoch: session.token_epoch,
            session_expires_at: Some(timestamp(session.expires_at)),
        }))
    }

    async fn record_token(
        &self,
        request: Request<wire::RecordTokenRequest>,
    ) -> Answer<wire::RecordTokenResponse> {
        let who = self.0.caller(&request)?;
        let request = request.into_inner();
        let session = self
            .connectable(&who, &request.session_id, Rpc::RecordToken)
            .await?;
        let token = request
            .token
            .ok_or_else(|| Refused::field("token", "is missing"))?;
        let moment = |field, at: Option<prost_types::Timestamp>| {
            at.as_ref()
                .map(from_timestamp)
                .ok_or_else(|| Refused::field(field, "is missing"))
        };
        let record = TokenRecord {
            id: parse("token.token_id", &token.token_id)?,
            key_id: token.key_id,
            subject: who.id.clone(),
            epoch: token.token_epoch,
            issued_at: moment("token.issued_at", token.issued_at)?,
            expires_at: moment("token.expires_at", token.expires_at)?,
        };
        let limits = self
            .0
            .directory
            .org(&who.org)
            .await
            .map_err(crate::refuse::store)?
            .limits;
        let (id, until) = (
            record.id.clone(),
            record.expires_at.after(self.0.verifier.config().afterlife()),
        );
        self.0
            .store
            .record_token(&session.key(), record, limits.tokens_per_session)
            .await
            .map_err(crate::refuse::store)?;
        // Shut out meanwhile: whoever took back their tokens may not have seen this one.
        if let Err(refused) = self.0.let_in(&who).await {
            let revoke = Event::RevokeToken { id, until };
            let key = session.key();
            self.0
                .driver
                .ask(&key, &revoke, &Actor::System, |_| Ok(()))
                .await?;
            return Err(refused.into());
        }
        tracing::info!(session = %session.id, org = %session.org, token = %id, actor = %who.id, "token recorded");
        Ok(Response::new(wire::RecordTokenResponse {}))
    }

    async fn list_tokens(
        &self,
        request: Request<wire::ListTokensRequest>,
    ) -> Answer<wire::ListTokensResponse> {
        let who = self.0.caller(&request)?;
        let id = request.into_inner().session_id;
        let (session, _) = self.0.session_for(&who, &id, Rpc::ListTokens).await?;
        let tokens = self
            .0
            .store
            .tokens(&session.key())
            .await
            .map_err(crate::refuse::store)?;
        let uses = self
            .0
            .store
            .token_uses(&session.key())
            .await
            .map_err(crate::refuse::store)?;
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
        let who = self.0.caller(&request)?;
        let request = request.into_inner();
        let id: TokenId = parse("token_id", &request.token_id)?;
        let (session, _) = self.0.session_for(&who, &request.session_id, Rpc::Revoke).await?;
        let tokens = self
            .0
            .store
            .tokens(&session.key())
            .await
            .map_err(crate::refuse::store)?;
        // A token that is not listed has expired, or never was of this session.
        if let Some(token) = tokens.iter().find(|token| token.id == id) {
            let until = token.expires_at.after(self.0.verifier.config().afterlife());
            self.0
                .change(
                    &who,
                    &session.key(),
                    Rpc::Revoke,
                    &Event::RevokeToken { id, until },
                )
                .await?;
        }
        Ok(Response::new(wire::RevokeResponse {}))
    }

    async fn revoke_all(&self, request: Request<wire::RevokeAllRequest>) -> Answer<wire::RevokeAllResponse> {
        let who = self.0.caller(&request)?;
        let id = request.into_inner().session_id;
        let (session, _) = self.0.session_for(&who, &id, Rpc::RevokeAll).await?;
        let (session, _) = self
            .0
            .change(&who, &session.key(), Rpc::RevokeAll, &Event::RevokeTokens)
            .await?;
        Ok(Response::new(wire::RevokeAllResponse {
            token_epoch: session.token_epoch,
        }))
    }
}

impl Ledger {
    /// A live session that the caller may act as.
    async fn connectable(&self, who: &Principal, id: &str, rpc: Rpc) -> Result<Session, Refused> {
        let (session, _) = self.0.session_for(who, id, rpc).await?;
        if session.status().is_terminal() {
            return Err(crate::refuse::ended(&session));
        }
        Ok(session)
    }
}
