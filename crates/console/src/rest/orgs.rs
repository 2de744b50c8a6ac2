//! Organizations and principals.

use super::body::{Json, NoBody, Object, Reply, RequestBody, message};
use super::caller::{Caller, required};
use super::query::Query;
use super::schema;
use crate::problem::Problem;
use axum::extract::Path;
use serde_json::Value;
use session_proto::v1;

const SET_BY_BERTH: &str = "it is set by Berth";

impl RequestBody for v1::Org {
    const ELSEWHERE: &'static [(&'static str, &'static str)] = &[
        ("disabled", "see :disable and :enable"),
        ("managed_by_config", SET_BY_BERTH),
        ("version", SET_BY_BERTH),
        ("disabled_principals", SET_BY_BERTH),
    ];
}
impl RequestBody for v1::Limits {}
impl RequestBody for v1::DisablePrincipalRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] =
        &[("principal", "the principal is named in the path")];
}

fn reply(org: Option<v1::Org>) -> Result<Reply, Problem> {
    let org = required(org)?;
    Ok(Reply::ok(&org).version(org.version))
}

/// Lists the caller's organization; all organizations for platform admins.
#[utoipa::path(get, path = "/orgs", tag = "organizations",
    responses((status = 200, description = "The organizations.", body = schema::ListOrgsResponse)))]
pub(super) async fn list_orgs(caller: Caller, query: Query) -> Result<Reply, Problem> {
    query.only(&[])?;
    let orgs = caller
        .answer(caller.orgs().list_orgs(v1::ListOrgsRequest {}))
        .await?;
    Ok(Reply::ok(&orgs))
}

/// Creates an organization. For platform admins.
#[utoipa::path(post, path = "/orgs", tag = "organizations", request_body = schema::OrgBody,
    responses((status = 201, description = "The new organization.", body = schema::Org,
        headers(("Location" = String, description = "Path of the organization.")))))]
pub(super) async fn create_org(
    caller: Caller,
    query: Query,
    Json(org): Json<v1::Org>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::CreateOrgRequest { org: Some(org) };
    let org = required(caller.answer(caller.orgs().create_org(request)).await?.org)?;
    let location = format!("{}/api/v1/orgs/{}", caller.app().prefix, org.name);
    Ok(Reply::ok(&org).version(org.version).created(&location))
}

/// Reads an organization.
#[utoipa::path(get, path = "/orgs/{name}", tag = "organizations",
    params(("name" = String, Path, description = "Name of the organization.")),
    responses((status = 200, description = "The organization.", body = schema::Org,
        headers(("ETag" = String, description = "Version of the organization.")))))]
pub(super) async fn describe_org(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::DescribeOrgRequest { name };
    reply(caller.answer(caller.orgs().describe_org(request)).await?.org)
}

/// Replaces all limits of an organization. For platform admins.
#[utoipa::path(put, path = "/orgs/{name}/limits", tag = "organizations",
    params(("name" = String, Path, description = "Name of the organization.")),
    request_body = schema::LimitsBody,
    responses((status = 200, description = "The organization.", body = schema::Org)))]
pub(super) async fn set_limits(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
    Json(limits): Json<v1::Limits>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::SetLimitsRequest {
        name,
        limits: Some(limits),
    };
    reply(caller.answer(caller.orgs().set_limits(request)).await?.org)
}

/// Enables a disabled organization. For platform admins.
#[utoipa::path(post, path = "/orgs/{name}:enable", tag = "organizations",
    params(("name" = String, Path, description = "Name of the organization.")),
    responses((status = 200, description = "The organization.", body = schema::Org)))]
pub(super) async fn enable_org(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
    _: NoBody,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::EnableOrgRequest { name };
    reply(caller.answer(caller.orgs().enable_org(request)).await?.org)
}

/// Closes every session of an organization and rejects the calls of its
/// principals. For platform admins.
#[utoipa::path(post, path = "/orgs/{name}:disable", tag = "organizations",
    params(("name" = String, Path, description = "Name of the organization.")),
    responses((status = 200, description = "The organization, and how many sessions were closed.",
        body = schema::DisableOrgResponse)))]
pub(super) async fn disable_org(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
    _: NoBody,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::DisableOrgRequest { name };
    let disabled = caller.answer(caller.orgs().disable_org(request)).await?;
    Ok(Reply::ok(&disabled))
}

/// Disables a principal, or enables it again with `"disabled": false`. Without
/// `disabled` it is disabled.
#[utoipa::path(post, path = "/principals/{principal}:disable", tag = "organizations",
    params(("principal" = String, Path, description = "`issuer-alias|subject`, percent-encoded.")),
    request_body = schema::DisablePrincipalBody,
    responses((status = 200, description = "How many sessions were closed.", body = schema::DisablePrincipalResponse)))]
pub(super) async fn disable_principal(
    caller: Caller,
    Path(principal): Path<String>,
    query: Query,
    Object(mut body): Object,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    body.entry("disabled").or_insert(Value::Bool(true));
    let mut request: v1::DisablePrincipalRequest = message(body)?;
    request.principal = principal;
    let disabled = caller.answer(caller.orgs().disable_principal(request)).await?;
    Ok(Reply::ok(&disabled))
}
