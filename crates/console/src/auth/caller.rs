//! Who a credential is, as session-manager sees it.

use crate::credential::Credential;
use crate::problem::Problem;
use crate::rest::caller::{self, required};
use crate::state::AppState;
use http::request::Parts;
use serde_json::{Value, json};
use session_core::PrincipalId;
use session_proto::v1::{Caller, DescribeCallerRequest};

/// Asks session-manager who the credential is.
///
/// # Errors
/// If the credential is not accepted, or session-manager cannot be reached.
pub(super) async fn describe(
    app: &AppState,
    parts: &Parts,
    credential: Credential,
) -> Result<Caller, Problem> {
    let caller = caller::Caller::new(app, parts, credential)?;
    let mut orgs = caller.orgs();
    let answer = caller.answer(orgs.describe_caller(DescribeCallerRequest {}));
    required(answer.await?.caller)
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
