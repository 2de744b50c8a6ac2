//! Catalogs.

use super::body::{Json, Object, Reply, RequestBody};
use super::caller::{Caller, required};
use super::headers::{IfMatch, precondition};
use super::patch::{in_header_or_body, patched};
use super::query::Query;
use super::schema;
use super::sessions::PAGE_SIZES;
use crate::problem::Problem;
use axum::extract::Path;
use http::StatusCode;
use session_proto::v1;

const SET_BY_BERTH: &str = "it is set by Berth";

impl RequestBody for v1::Catalog {
    const ELSEWHERE: &'static [(&'static str, &'static str)] =
        &[("managed_by_config", SET_BY_BERTH), ("version", SET_BY_BERTH)];
}
impl RequestBody for v1::TestCatalogRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] =
        &[("name", "the catalog is named in the path")];
}

fn reply(catalog: Option<v1::Catalog>) -> Result<Reply, Problem> {
    let catalog = required(catalog)?;
    Ok(Reply::ok(&catalog).version(catalog.version))
}

/// Lists the catalogs of the caller's organization by name. A page of large
/// catalogs is short.
#[utoipa::path(get, path = "/catalogs", tag = "catalogs",
    params(("page_size" = Option<i32>, Query, minimum = 1, maximum = 1000, description = "Most catalogs of a page; 100 by default."),
        ("page_token" = Option<String>, Query, description = "`next_page_token` of the page before.")),
    responses((status = 200, description = "A page of catalogs.", body = schema::ListCatalogsResponse)))]
pub(super) async fn list_catalogs(caller: Caller, query: Query) -> Result<Reply, Problem> {
    let query = query.only(&["page_size", "page_token"])?;
    let request = v1::ListCatalogsRequest {
        page_size: query.number("page_size", PAGE_SIZES)?,
        page_token: query.text("page_token")?,
    };
    let page = caller.answer(caller.catalogs().list_catalogs(request)).await?;
    Ok(Reply::ok(&page))
}

/// Creates a catalog. For org admins.
#[utoipa::path(post, path = "/catalogs", tag = "catalogs", request_body = schema::CatalogBody,
    responses((status = 201, description = "The new catalog.", body = schema::Catalog,
        headers(("Location" = String, description = "Path of the catalog."), ("ETag" = String, description = "Version of the catalog.")))))]
pub(super) async fn create_catalog(
    caller: Caller,
    query: Query,
    Json(catalog): Json<v1::Catalog>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::CreateCatalogRequest {
        catalog: Some(catalog),
    };
    let created = caller.answer(caller.catalogs().create_catalog(request)).await?;
    let catalog = required(created.catalog)?;
    let location = format!("{}/api/v1/catalogs/{}", caller.app().prefix, catalog.name);
    Ok(Reply::ok(&catalog).version(catalog.version).created(&location))
}

/// Reads a catalog.
#[utoipa::path(get, path = "/catalogs/{name}", tag = "catalogs",
    params(("name" = String, Path, description = "Name of the catalog.")),
    responses((status = 200, description = "The catalog.", body = schema::Catalog,
        headers(("ETag" = String, description = "Version of the catalog.")))))]
pub(super) async fn describe_catalog(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    reply(Some(described(&caller, name).await?))
}

async fn described(caller: &Caller, name: String) -> Result<v1::Catalog, Problem> {
    let request = v1::DescribeCatalogRequest { name };
    required(
        caller
            .answer(caller.catalogs().describe_catalog(request))
            .await?
            .catalog,
    )
}

/// Changes a catalog by JSON Merge Patch: fields that are absent keep their
/// values, `null` sets the default. For org admins.
#[utoipa::path(patch, path = "/catalogs/{name}", tag = "catalogs",
    params(("name" = String, Path, description = "Name of the catalog."),
        ("If-Match" = Option<String>, Header, description = "ETag of the catalog: the change fails with 412 if it changed since.")),
    request_body = schema::CatalogPatch,
    responses((status = 200, description = "The changed catalog.", body = schema::Catalog,
        headers(("ETag" = String, description = "Version of the catalog.")))))]
pub(super) async fn update_catalog(
    caller: Caller,
    Path(name): Path<String>,
    condition: IfMatch,
    query: Query,
    Object(patch): Object,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let mut present = described(&caller, name.clone()).await?;
    let version = std::mem::take(&mut present.version);
    let condition = in_header_or_body(condition, &patch)?;
    let mut catalog = patched(&present, version, condition, patch)?;
    catalog.version = version;
    if catalog.name != name {
        return Err(Problem::field("name", "cannot change"));
    }
    let request = v1::UpdateCatalogRequest {
        catalog: Some(catalog),
    };
    let updated = caller.answer(caller.catalogs().update_catalog(request)).await;
    reply(
        updated
            .map_err(|problem| precondition(problem, condition))?
            .catalog,
    )
}

/// Removes a catalog; with `force=true` also while live sessions use it. For
/// org admins.
#[utoipa::path(delete, path = "/catalogs/{name}", tag = "catalogs",
    params(("name" = String, Path, description = "Name of the catalog."),
        ("force" = Option<bool>, Query, description = "Also while live sessions use it: they fail when they need new compute.")),
    responses((status = 204, description = "The catalog is removed.")))]
pub(super) async fn delete_catalog(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
) -> Result<StatusCode, Problem> {
    let force = query.only(&["force"])?.flag("force")?;
    let request = v1::DeleteCatalogRequest { name, force };
    caller.answer(caller.catalogs().delete_catalog(request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tests a catalog on a cluster as a new session would use it. Takes up to
/// 75 s. For org admins.
#[utoipa::path(post, path = "/catalogs/{name}:test", tag = "catalogs",
    params(("name" = String, Path, description = "Name of the catalog.")),
    request_body = schema::TestCatalogBody,
    responses((status = 200, description = "Whether it can be used.", body = schema::TestCatalogResponse)))]
pub(super) async fn test_catalog(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
    Json(mut request): Json<v1::TestCatalogRequest>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    request.name = name;
    let tested = caller.answer(caller.catalogs().test_catalog(request)).await?;
    Ok(Reply::ok(&tested))
}
