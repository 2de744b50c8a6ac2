//! Who a credential is, as session-manager sees it.

use super::credential::Credential;
use crate::service::AppState;
use http::HeaderMap;
use serde_json::{Value, json};
use session_core::PrincipalId;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::{Caller, DescribeCallerRequest};
use std::net::SocketAddr;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// Asks session-manager who the credential is.
///
/// # Errors
/// Its status, if the credential is not accepted or it cannot be reached.
pub(super) async fn describe(
    app: &AppState,
    credential: &Credential,
    client: Option<SocketAddr>,
) -> Result<Caller, Status> {
    let channel = app.upstream.channels(credential).manager;
    let mut request = Request::new(DescribeCallerRequest {});
    *request.metadata_mut() = metadata(credential, client)?;
    let answer = OrgServiceClient::new(channel).describe_caller(request).await?;
    app.upstream.accepted(credential);
    answer
        .into_inner()
        .caller
        .ok_or_else(|| Status::internal("the answer has no caller"))
}

fn metadata(credential: &Credential, client: Option<SocketAddr>) -> Result<MetadataMap, Status> {
    let mut headers = HeaderMap::new();
    let bearer = format!("Bearer {}", credential.expose());
    let mut bearer = http::HeaderValue::from_str(&bearer)
        .map_err(|_| Status::unauthenticated("the credential is not plain text"))?;
    bearer.set_sensitive(true);
    headers.insert(http::header::AUTHORIZATION, bearer);
    if let Some(client) = client.and_then(|client| client.ip().to_string().parse().ok()) {
        headers.insert("x-forwarded-for", client);
    }
    Ok(MetadataMap::from_headers(headers))
}

/// The JSON form of `auth/session`.
pub(super) fn to_json(caller: &Caller) -> Value {
    let (alias, name) = caller
        .principal
        .split_once('|')
        .unwrap_or(("", &caller.principal));
    let kind = if alias == PrincipalId::SERVICE_ACCOUNT {
        "service_account"
    } else {
        "user"
    };
    json!({
        "kind": kind,
        "id": caller.principal,
        "name": name,
        "organization": caller.org,
        "roles": caller.roles,
        "teams": caller.teams,
        "team_admin_of": caller.team_admin_of,
    })
}
