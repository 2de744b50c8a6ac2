//! The APIs of session-manager and token-issuer, as any caller.

use anyhow::{Context as _, Result, bail};
use e2e::Stack;
use session_proto::v1;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);
const CALL: Duration = Duration::from_secs(20);

/// The APIs.
#[derive(Debug, Clone)]
pub(super) struct Api {
    sessions: SessionServiceClient<Channel>,
    orgs: OrgServiceClient<Channel>,
    tokens: TokenServiceClient<Channel>,
}

/// Repeats a call until it succeeds.
pub(super) async fn until_done<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(done) => return Ok(done),
            Err(status) if begun.elapsed() > PATIENCE => bail!("{what}: {status}"),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn by<T>(bearer: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = format!("Bearer {bearer}").parse();
    let value = value.map_err(|_| Status::internal("the credential"))?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

/// As [`by`], with a deadline.
fn soon<T>(bearer: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = by(bearer, message)?;
    request.set_timeout(CALL);
    Ok(request)
}

/// Whether the caller, not the service, is at fault.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
}

impl Api {
    pub(super) fn new(stack: &Stack) -> Result<Self> {
        let channel = |uri: &str| -> Result<Channel> {
            Ok(Endpoint::from_shared(uri.to_owned())?
                .tcp_nodelay(true)
                .connect_lazy())
        };
        let manager = channel(&stack.manager_uri)?;
        Ok(Self {
            sessions: SessionServiceClient::new(manager.clone()),
            orgs: OrgServiceClient::new(manager),
            tokens: TokenServiceClient::new(channel(stack.issuer_uri())?),
        })
    }

    /// A new session on the shared server, active.
    pub(super) async fn create(&self, bearer: &str) -> Result<String> {
        let created = until_done("create", async || {
            let request = v1::CreateSessionRequest {
                cluster: "shared".to_owned(),
                ..Default::default()
            };
            self.sessions.clone().create_session(soon(bearer, request)?).await
        });
        let id = created.await?.into_inner().session.context("a session")?.id;
        let begun = Instant::now();
        loop {
            let session = self.describe(bearer, &id).await?;
            if session.status() == v1::SessionStatus::Active {
                return Ok(id);
            }
            anyhow::ensure!(begun.elapsed() < PATIENCE, "not active: {session:?}");
            tokio::time::sleep(AGAIN).await;
        }
    }

    pub(super) async fn describe(&self, bearer: &str, id: &str) -> Result<v1::Session, Status> {
        let request = v1::DescribeSessionRequest {
            session_id: id.to_owned(),
            wait_ready: None,
        };
        let described = self
            .sessions
            .clone()
            .describe_session(soon(bearer, request)?)
            .await?;
        let session = described.into_inner().session;
        session.ok_or_else(|| Status::internal("no session"))
    }

    pub(super) async fn watch(
        &self,
        bearer: &str,
        id: &str,
    ) -> Result<Streaming<v1::WatchSessionsResponse>, Status> {
        let request = v1::WatchSessionsRequest {
            session_id: id.to_owned(),
        };
        let watch = self.sessions.clone().watch_sessions(by(bearer, request)?).await?;
        Ok(watch.into_inner())
    }

    pub(super) async fn issue(
        &self,
        bearer: &str,
        id: &str,
    ) -> Result<v1::IssueSessionTokenResponse, Status> {
        let request = v1::IssueSessionTokenRequest {
            session_id: id.to_owned(),
            ttl: None,
        };
        let issued = self
            .tokens
            .clone()
            .issue_session_token(soon(bearer, request)?)
            .await?;
        Ok(issued.into_inner())
    }

    pub(super) async fn revoke(&self, bearer: &str, id: &str, token_id: &str) -> Result<()> {
        let request = v1::RevokeSessionTokenRequest {
            session_id: id.to_owned(),
            token_id: token_id.to_owned(),
        };
        self.tokens
            .clone()
            .revoke_session_token(soon(bearer, request)?)
            .await?;
        Ok(())
    }

    pub(super) async fn revoke_all(&self, bearer: &str, id: &str) -> Result<()> {
        let request = v1::RevokeAllSessionTokensRequest {
            session_id: id.to_owned(),
        };
        let mut tokens = self.tokens.clone();
        tokens.revoke_all_session_tokens(soon(bearer, request)?).await?;
        Ok(())
    }

    pub(super) async fn close(&self, bearer: &str, id: &str) -> Result<()> {
        let request = v1::CloseSessionRequest {
            session_id: id.to_owned(),
        };
        self.sessions
            .clone()
            .close_session(soon(bearer, request)?)
            .await?;
        Ok(())
    }

    pub(super) async fn set_principal_disabled(
        &self,
        bearer: &str,
        principal: &str,
        disabled: bool,
    ) -> Result<()> {
        let request = v1::DisablePrincipalRequest {
            principal: principal.to_owned(),
            disabled,
            org: "acme".to_owned(),
        };
        self.orgs
            .clone()
            .disable_principal(soon(bearer, request)?)
            .await?;
        Ok(())
    }

    pub(super) async fn set_org_disabled(&self, bearer: &str, org: &str, disabled: bool) -> Result<()> {
        let (mut orgs, name) = (self.orgs.clone(), org.to_owned());
        if disabled {
            orgs.disable_org(soon(bearer, v1::DisableOrgRequest { name })?)
                .await?;
        } else {
            orgs.enable_org(soon(bearer, v1::EnableOrgRequest { name })?)
                .await?;
        }
        Ok(())
    }
}
