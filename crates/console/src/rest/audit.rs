//! The audit trail, and sums of use.

use super::body::Reply;
use super::caller::Caller;
use super::query::Query;
use super::schema;
use super::sessions::PAGE_SIZES;
use crate::problem::Problem;
use session_proto::v1;

/// Lists records of the audit trail, newest first. For org admins, and for platform
/// admins, who see all organizations without `org`. A page may be short or empty and
/// still have a next page.
#[utoipa::path(get, path = "/audit", tag = "audit",
    params(
        ("org" = Option<String>, Query, description = "Only records of this organization."),
        ("principal" = Option<String>, Query, description = "Only actions of this actor: `issuer-alias|subject`, or `system`."),
        ("actions" = Option<Vec<String>>, Query, description = "Only these actions, like `token.issued`; repeated, or separated by commas."),
        ("session_id" = Option<String>, Query, description = "Only records of this session."),
        ("since" = Option<schema::Moment>, Query, description = "Only records from this time on."),
        ("until" = Option<schema::Moment>, Query, description = "Only records before this time."),
        ("page_size" = Option<i32>, Query, minimum = 1, maximum = 1000, description = "Most records of a page; 100 by default."),
        ("page_token" = Option<String>, Query, description = "`next_page_token` of the page before.")),
    responses((status = 200, description = "A page of records.", body = schema::ListAuditRecordsResponse)))]
pub(super) async fn list_audit_records(caller: Caller, query: Query) -> Result<Reply, Problem> {
    let query = query.only(&[
        "org",
        "principal",
        "actions",
        "session_id",
        "since",
        "until",
        "page_size",
        "page_token",
    ])?;
    let request = v1::ListAuditRecordsRequest {
        org: query.text("org")?,
        principal: query.text("principal")?,
        actions: query.texts("actions"),
        session_id: query.text("session_id")?,
        since: query.time("since")?,
        until: query.time("until")?,
        page_size: query.number("page_size", PAGE_SIZES)?,
        page_token: query.text("page_token")?,
    };
    let page = caller.answer(caller.audit().list_audit_records(request)).await?;
    Ok(Reply::ok(&page))
}

/// Sums what sessions used, by owner and cluster. With a next page, add the rows of
/// all pages that have the same owner and cluster. Only sessions that are still kept
/// count.
#[utoipa::path(get, path = "/usage", tag = "audit",
    params(
        ("org" = Option<String>, Query, description = "The organization; the caller's own by default. Others for platform admins."),
        ("owner" = Option<String>, Query, description = "Only sessions of this principal: `issuer-alias|subject`."),
        ("cluster" = Option<String>, Query, description = "Only sessions on this cluster."),
        ("page_token" = Option<String>, Query, description = "`next_page_token` of the page before.")),
    responses((status = 200, description = "The sums.", body = schema::ListUsageResponse)))]
pub(super) async fn list_usage(caller: Caller, query: Query) -> Result<Reply, Problem> {
    let query = query.only(&["org", "owner", "cluster", "page_token"])?;
    let request = v1::ListUsageRequest {
        org: query.text("org")?,
        owner: query.text("owner")?,
        cluster: query.text("cluster")?,
        page_token: query.text("page_token")?,
    };
    let page = caller.answer(caller.audit().list_usage(request)).await?;
    Ok(Reply::ok(&page))
}
