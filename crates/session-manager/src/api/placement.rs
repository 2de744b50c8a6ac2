//! Placement: the cluster and the catalog of a request, checked for the caller and
//! for each other.

use super::Api;
use session_core::access;
use session_core::{
    Catalog, CatalogName, Cluster, ClusterName, ClusterStatus, Principal, ProfileName, Reason,
};
use session_proto::convert::parse;
use session_proto::error::Refused;

impl Api {
    /// The cluster of this name, if it accepts new sessions of the caller.
    pub(super) async fn cluster_for(&self, who: &Principal, name: &str) -> Result<Cluster, Refused> {
        let name = cluster_name(name)?;
        let cluster = self.definitions.cluster(&name).await;
        self.authorize_cluster(who, &name, cluster.map_err(crate::error::store)?)
    }

    /// The same for a cluster that was read already, if it exists.
    pub(super) fn authorize_cluster(
        &self,
        who: &Principal,
        name: &ClusterName,
        cluster: Option<Cluster>,
    ) -> Result<Cluster, Refused> {
        let Some(cluster) = cluster.filter(|cluster| access::use_cluster(who, cluster)) else {
            return Err(Refused::not_authorized());
        };
        if cluster.status != ClusterStatus::Active {
            return Err(Refused::new(
                Reason::ClusterNotActive,
                format!("The cluster {name} takes no new sessions. `berth clusters` lists those that do."),
            ));
        }
        if !self.computes.supports(&cluster) {
            return Err(Refused::new(
                Reason::ClusterNotActive,
                format!(
                    "The cluster {name} needs the {} provider, which is off here.",
                    cluster.provider.as_str()
                ),
            ));
        }
        Ok(cluster)
    }

    /// The catalog of this name, if the caller may use it on the cluster; none for
    /// an empty name.
    pub(super) async fn catalog_for(
        &self,
        who: &Principal,
        name: &str,
        cluster: &Cluster,
    ) -> Result<Option<Catalog>, Refused> {
        if name.is_empty() {
            return Ok(None);
        }
        let name: CatalogName = parse("catalog", name)?;
        let catalog = self
            .definitions
            .catalog(&who.org, &name)
            .await
            .map_err(crate::error::store)?;
        let Some(catalog) = catalog.filter(|catalog| access::use_catalog(who, catalog)) else {
            return Err(Refused::not_authorized());
        };
        fits(cluster, &catalog)?;
        Ok(Some(catalog))
    }
}

/// The cluster name in a request.
pub(super) fn cluster_name(text: &str) -> Result<ClusterName, Refused> {
    if text.is_empty() {
        return Err(Refused::field(
            "cluster",
            "is missing: `berth clusters` lists those you may use",
        ));
    }
    parse("cluster", text)
}

/// The profile of a new session on the cluster; the cluster's default for an empty
/// name.
pub(super) fn profile_for(cluster: &Cluster, name: &str) -> Result<Option<ProfileName>, Refused> {
    let name = Some(name).filter(|name| !name.is_empty());
    cluster
        .choose_profile(name)
        .map_err(|unknown| Refused::field("profile", unknown))
}

/// Checks that the cluster can use the catalog, by their definitions.
pub(super) fn fits(cluster: &Cluster, catalog: &Catalog) -> Result<(), Refused> {
    compute::validate_use(cluster, catalog).map_err(|problem| {
        Refused::field(
            "catalog",
            format!("{} cannot be used on {}: {problem}", catalog.name, cluster.name),
        )
    })
}
