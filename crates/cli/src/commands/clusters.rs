//! Cluster commands: list for all users, define for platform admins.

use crate::args::ClusterCommand;
use crate::client::{self, explain};
use crate::settings::Target;
use crate::{Output, definition, output};
use anyhow::Result;
use serde_json::json;
use session_proto::{json, v1};
use std::path::Path;

pub(super) async fn run(target: &Target, output: Output, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::List => list(target, output).await,
        ClusterCommand::Describe { name } => {
            let cluster = describe(target, name).await?;
            show_cluster(output, &cluster);
            Ok(())
        }
        ClusterCommand::Create { file, pending } => create(target, output, &file, pending).await,
        ClusterCommand::Update { file } => update(target, output, &file).await,
        ClusterCommand::Activate { name } => {
            let cluster = v1::Cluster {
                status: v1::ClusterStatus::Active.into(),
                ..describe(target, name).await?
            };
            replace(target, output, cluster).await
        }
        ClusterCommand::Drain { name } => drain(target, output, name).await,
        ClusterCommand::Delete { name, force } => {
            let request = v1::DeleteClusterRequest {
                name: name.clone(),
                force,
            };
            client::clusters(target)
                .await?
                .delete_cluster(request)
                .await
                .map_err(explain)?;
            output::fields(output, &[("deleted", name.clone())], &json!({"deleted": name}));
            Ok(())
        }
    }
}

async fn describe(target: &Target, name: String) -> Result<v1::Cluster> {
    let described = client::clusters(target)
        .await?
        .describe_cluster(v1::DescribeClusterRequest { name })
        .await
        .map_err(explain)?
        .into_inner();
    Ok(described.cluster.unwrap_or_default())
}

async fn create(target: &Target, output: Output, file: &Path, pending: bool) -> Result<()> {
    let mut cluster = definition::cluster(file)?;
    if pending {
        cluster.set_status(v1::ClusterStatus::Pending);
    }
    let request = v1::CreateClusterRequest {
        cluster: Some(cluster),
    };
    let created = client::clusters(target)
        .await?
        .create_cluster(request)
        .await
        .map_err(explain)?
        .into_inner();
    show_cluster(output, &created.cluster.unwrap_or_default());
    Ok(())
}

/// A concurrent change between read and write wins; then this update fails.
async fn update(target: &Target, output: Output, file: &Path) -> Result<()> {
    let cluster = definition::cluster(file)?;
    let stored = describe(target, cluster.name.clone()).await?;
    let cluster = v1::Cluster {
        version: stored.version,
        ..cluster
    };
    replace(target, output, cluster).await
}

async fn replace(target: &Target, output: Output, cluster: v1::Cluster) -> Result<()> {
    let request = v1::UpdateClusterRequest {
        cluster: Some(cluster),
    };
    let updated = client::clusters(target)
        .await?
        .update_cluster(request)
        .await
        .map_err(explain)?
        .into_inner();
    show_cluster(output, &updated.cluster.unwrap_or_default());
    Ok(())
}

async fn drain(target: &Target, output: Output, name: String) -> Result<()> {
    let drained = client::clusters(target)
        .await?
        .drain_cluster(v1::DrainClusterRequest { name })
        .await
        .map_err(explain)?
        .into_inner();
    show_cluster(output, &drained.cluster.unwrap_or_default());
    Ok(())
}

fn status(cluster: &v1::Cluster) -> String {
    let name = cluster.status().as_str_name();
    name.trim_start_matches("CLUSTER_STATUS_").to_lowercase()
}

/// The names of the profiles with their sizes, the default marked.
fn profiles(cluster: &v1::Cluster) -> String {
    let profile = |profile: &v1::ClusterProfile| {
        let default = if profile.default { ", default" } else { "" };
        format!(
            "{} ({} CPU, {}{default})",
            profile.name, profile.cpu, profile.memory
        )
    };
    cluster
        .profiles
        .iter()
        .map(profile)
        .collect::<Vec<_>>()
        .join(", ")
}

fn show_cluster(output: Output, cluster: &v1::Cluster) {
    // Only platform admins receive the provider.
    let made = cluster.provider.as_ref().map(|by| json::value(by).to_string());
    let fields = [
        ("cluster", cluster.name.clone()),
        ("status", status(cluster)),
        (
            "engine",
            format!("{} {}", output::engine(cluster.engine()), cluster.engine_version)
                .trim()
                .to_owned(),
        ),
        ("clients", cluster.client_versions.join(", ")),
        ("profiles", profiles(cluster)),
        ("organizations", cluster.granted_orgs.join(", ")),
        ("idle policy", cluster.idle_policy.clone()),
        ("wake", cluster.wake.clone()),
        ("made by", made.unwrap_or_default()),
        ("declared", output::declared(cluster.managed_by_config)),
    ];
    output::fields(output, &fields, cluster);
}

pub(super) async fn list(target: &Target, output: Output) -> Result<()> {
    let clusters = client::clusters(target)
        .await?
        .list_clusters(v1::ListClustersRequest {})
        .await
        .map_err(explain)?
        .into_inner()
        .clusters;
    let rows = clusters
        .iter()
        .map(|cluster| {
            vec![
                cluster.name.clone(),
                status(cluster),
                output::engine(cluster.engine()),
                cluster.engine_version.clone(),
                cluster.client_versions.join(", "),
                profiles(cluster),
            ]
        })
        .collect();
    output::rows(
        output,
        &["CLUSTER", "STATUS", "ENGINE", "VERSION", "CLIENTS", "PROFILES"],
        rows,
        &clusters,
    );
    Ok(())
}
