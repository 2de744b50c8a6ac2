//! Clusters.

use super::body::{Json, NoBody, Object, Reply, RequestBody};
use super::caller::{Caller, required};
use super::headers::{IfMatch, precondition};
use super::patch::{in_header_or_body, patched};
use super::query::Query;
use super::schema;
use crate::problem::Problem;
use axum::extract::Path;
use http::StatusCode;
use session_proto::v1;

const SET_BY_BERTH: &str = "it is set by Berth";

impl RequestBody for v1::Cluster {
    const ELSEWHERE: &'static [(&'static str, &'static str)] = &[
        ("managed_by_config", SET_BY_BERTH),
        ("version", SET_BY_BERTH),
        ("profiles", SET_BY_BERTH),
    ];
}

fn reply(cluster: Option<v1::Cluster>) -> Result<Reply, Problem> {
    let cluster = required(cluster)?;
    Ok(Reply::ok(&cluster).version(cluster.version))
}

/// Lists the clusters that the caller may use.
#[utoipa::path(get, path = "/clusters", tag = "clusters",
    responses((status = 200, description = "The clusters.", body = schema::ListClustersResponse)))]
pub(super) async fn list_clusters(caller: Caller, query: Query) -> Result<Reply, Problem> {
    query.only(&[])?;
    let clusters = caller
        .answer(caller.clusters().list_clusters(v1::ListClustersRequest {}))
        .await?;
    Ok(Reply::ok(&clusters))
}

/// Creates a cluster. For platform admins.
#[utoipa::path(post, path = "/clusters", tag = "clusters", request_body = schema::ClusterBody,
    responses((status = 201, description = "The new cluster.", body = schema::Cluster,
        headers(("Location" = String, description = "Path of the cluster."), ("ETag" = String, description = "Version of the cluster.")))))]
pub(super) async fn create_cluster(
    caller: Caller,
    query: Query,
    Json(cluster): Json<v1::Cluster>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::CreateClusterRequest {
        cluster: Some(cluster),
    };
    let created = caller.answer(caller.clusters().create_cluster(request)).await?;
    let cluster = required(created.cluster)?;
    let location = format!("{}/api/v1/clusters/{}", caller.app().prefix, cluster.name);
    Ok(Reply::ok(&cluster).version(cluster.version).created(&location))
}

/// Reads a cluster. Only platform admins see its provider.
#[utoipa::path(get, path = "/clusters/{name}", tag = "clusters",
    params(("name" = String, Path, description = "Name of the cluster.")),
    responses((status = 200, description = "The cluster.", body = schema::Cluster,
        headers(("ETag" = String, description = "Version of the cluster.")))))]
pub(super) async fn describe_cluster(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    reply(Some(described(&caller, name).await?))
}

async fn described(caller: &Caller, name: String) -> Result<v1::Cluster, Problem> {
    let request = v1::DescribeClusterRequest { name };
    required(
        caller
            .answer(caller.clusters().describe_cluster(request))
            .await?
            .cluster,
    )
}

/// Changes a cluster by JSON Merge Patch: fields that are absent keep their
/// values, `null` sets the default. For platform admins.
#[utoipa::path(patch, path = "/clusters/{name}", tag = "clusters",
    params(("name" = String, Path, description = "Name of the cluster."),
        ("If-Match" = Option<String>, Header, description = "ETag of the cluster: the change fails with 412 if it changed since.")),
    request_body = schema::ClusterPatch,
    responses((status = 200, description = "The changed cluster.", body = schema::Cluster,
        headers(("ETag" = String, description = "Version of the cluster.")))))]
pub(super) async fn update_cluster(
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
    let mut cluster = patched(&present, version, condition, patch)?;
    cluster.version = version;
    if cluster.name != name {
        return Err(Problem::field("name", "cannot change"));
    }
    if let Some(v1::cluster::Provider::Kubernetes(pods)) = &mut cluster.provider {
        pods.warm_pools.clear();
    }
    let request = v1::UpdateClusterRequest {
        cluster: Some(cluster),
    };
    let updated = caller.answer(caller.clusters().update_cluster(request)).await;
    reply(
        updated
            .map_err(|problem| precondition(problem, condition))?
            .cluster,
    )
}

/// Removes a drained cluster; with `force=true` also closes its sessions. For
/// platform admins.
#[utoipa::path(delete, path = "/clusters/{name}", tag = "clusters",
    params(("name" = String, Path, description = "Name of the cluster."),
        ("force" = Option<bool>, Query, description = "Close the live sessions of the cluster.")),
    responses((status = 204, description = "The cluster is removed.")))]
pub(super) async fn delete_cluster(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
) -> Result<StatusCode, Problem> {
    let force = query.only(&["force"])?.flag("force")?;
    let request = v1::DeleteClusterRequest { name, force };
    caller.answer(caller.clusters().delete_cluster(request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stops new sessions on a cluster. For platform admins.
#[utoipa::path(post, path = "/clusters/{name}:drain", tag = "clusters",
    params(("name" = String, Path, description = "Name of the cluster.")),
    responses((status = 200, description = "The cluster.", body = schema::Cluster)))]
pub(super) async fn drain_cluster(
    caller: Caller,
    Path(name): Path<String>,
    query: Query,
    _: NoBody,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::DrainClusterRequest { name };
    reply(
        caller
            .answer(caller.clusters().drain_cluster(request))
            .await?
            .cluster,
    )
}
