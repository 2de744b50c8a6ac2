//! Session tokens.

use super::body::{Json, NoBody, Reply, RequestBody};
use super::caller::Caller;
use super::query::Query;
use super::schema;
use crate::problem::Problem;
use axum::extract::Path;
use http::StatusCode;
use session_proto::v1;

impl RequestBody for v1::IssueSessionTokenRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] =
        &[("session_id", "the session is named in the path")];
}

/// Issues a token with its connection string. The token is returned only here;
/// older tokens remain valid.
#[utoipa::path(post, path = "/sessions/{session_id}/tokens", tag = "tokens",
    params(("session_id" = String, Path, description = "Id of the session.")),
    request_body = schema::IssueSessionTokenBody,
    responses((status = 201, description = "The token.", body = schema::IssueSessionTokenResponse,
        headers(("Location" = String, description = "Path to revoke the token.")))))]
pub(super) async fn issue_session_token(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
    Json(mut request): Json<v1::IssueSessionTokenRequest>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    session_id.clone_into(&mut request.session_id);
    let issued = caller
        .answer(caller.tokens().issue_session_token(request))
        .await?;
    let prefix = &caller.app().prefix;
    let location = format!("{prefix}/api/v1/sessions/{session_id}/tokens/{}", issued.token_id);
    Ok(Reply::ok(&issued).created(&location))
}

/// Lists the tokens of a session, without the tokens themselves.
#[utoipa::path(get, path = "/sessions/{session_id}/tokens", tag = "tokens",
    params(("session_id" = String, Path, description = "Id of the session.")),
    responses((status = 200, description = "The tokens.", body = schema::ListSessionTokensResponse)))]
pub(super) async fn list_session_tokens(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::ListSessionTokensRequest { session_id };
    let tokens = caller
        .answer(caller.tokens().list_session_tokens(request))
        .await?;
    Ok(Reply::ok(&tokens))
}

/// Revokes a token. Its running streams end within 5 s.
#[utoipa::path(delete, path = "/sessions/{session_id}/tokens/{token_id}", tag = "tokens",
    params(("session_id" = String, Path, description = "Id of the session."),
        ("token_id" = String, Path, description = "Id of the token.")),
    responses((status = 204, description = "The token is revoked.")))]
pub(super) async fn revoke_session_token(
    caller: Caller,
    Path((session_id, token_id)): Path<(String, String)>,
    query: Query,
) -> Result<StatusCode, Problem> {
    query.only(&[])?;
    let request = v1::RevokeSessionTokenRequest { session_id, token_id };
    caller
        .answer(caller.tokens().revoke_session_token(request))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Revokes all tokens of a session.
#[utoipa::path(post, path = "/sessions/{session_id}/tokens:revokeAll", tag = "tokens",
    params(("session_id" = String, Path, description = "Id of the session.")),
    responses((status = 200, description = "Older tokens are revoked.", body = schema::RevokeAllSessionTokensResponse)))]
pub(super) async fn revoke_all_session_tokens(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
    _: NoBody,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::RevokeAllSessionTokensRequest { session_id };
    let revoked = caller
        .answer(caller.tokens().revoke_all_session_tokens(request))
        .await?;
    Ok(Reply::ok(&revoked))
}
