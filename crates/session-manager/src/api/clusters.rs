//! ClusterService: definitions of clusters by platform admins; other callers see
//! the clusters that they may use.

use super::Api;
use crate::caller::AuthenticatedCaller;
use compute::{DefinitionError, WarmPools};
use session_core::access;
use session_core::machine::Event;
use session_core::{
    Actor, AuditAction, ChangeReason, Cluster, ClusterName, ClusterStatus, Principal, Reason,
};
use session_proto::convert::{self, parse};
use session_proto::error::Refused;
use session_proto::v1::{self, cluster_service_server::ClusterService};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Sessions that one read returns when all of a cluster are closed.
const CLOSE_PAGE: usize = 256;
/// Time after which a definition that could not be tried may be sent again.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Serves `berth.v1.ClusterService`.
#[derive(Debug, Clone)]
pub(crate) struct Clusters {
    /// The shared parts.
    pub(crate) api: Arc<Api>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ClusterService for Clusters {
    async fn create_cluster(
        &self,
        request: Request<v1::CreateClusterRequest>,
    ) -> Answer<v1::CreateClusterResponse> {
        let who = self.api.caller(&request)?;
        let (cluster, wanted) = self.checked(request.into_inner().cluster)?;
        let status = match wanted {
            Some(v1::ClusterStatus::Active) | None => ClusterStatus::Active,
            Some(v1::ClusterStatus::Pending) => ClusterStatus::Pending,
            Some(
                v1::ClusterStatus::Draining | v1::ClusterStatus::Destroyed | v1::ClusterStatus::Unspecified,
            ) => {
                return Err(
                    Refused::field("cluster.status", "must be PENDING, ACTIVE or unspecified").into(),
                );
            }
        };
        let cluster = Cluster { status, ..cluster };
        self.try_cluster(&cluster).await?;
        let cluster = match self
            .api
            .definitions
            .cluster(&cluster.name)
            .await
            .map_err(crate::error::store)?
        {
            // The name of a destroyed cluster may be reused.
            Some(old) if old.status == ClusterStatus::Destroyed => {
                self.api
                    .definitions
                    .replace(Cluster {
                        version: old.version,
                        ..cluster
                    })
                    .await?
            }
            Some(_) | None => self.api.definitions.create(cluster).await?,
        };
        tracing::info!(cluster = %cluster.name, actor = %who.id, "cluster created");
        self.api
            .audit(&who, AuditAction::ClusterCreated, |record| {
                record.on(cluster.name.as_str())
            })
            .await;
        Ok(Response::new(v1::CreateClusterResponse {
            cluster: Some(convert::cluster(&cluster, true)),
        }))
    }

    async fn describe_cluster(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Answer<v1::DescribeClusterResponse> {
        let who = self.api.caller(&request)?;
        let cluster = self.find(&who, &request.into_inner().name).await?;
        let mut shown = convert::cluster(&cluster, access::write_platform(&who));
        self.show_pools(&cluster, &mut shown);
        Ok(Response::new(v1::DescribeClusterResponse {
            cluster: Some(shown),
        }))
    }

    async fn list_clusters(
        &self,
        request: Request<v1::ListClustersRequest>,
    ) -> Answer<v1::ListClustersResponse> {
        let who = self.api.caller(&request)?;
        let all = self
            .api
            .definitions
            .all::<Cluster>()
            .await
            .map_err(crate::error::store)?;
        let clusters = all
            .iter()
            .filter(|cluster| access::use_cluster(&who, cluster))
            .map(|cluster| convert::cluster(cluster, access::write_platform(&who)))
            .collect();
        Ok(Response::new(v1::ListClustersResponse { clusters }))
    }

    async fn update_cluster(
        &self,
        request: Request<v1::UpdateClusterRequest>,
    ) -> Answer<v1::UpdateClusterResponse> {
        let who = self.api.caller(&request)?;
        let (cluster, wanted) = self.checked(request.into_inner().cluster)?;
        let old = self.find_writable(&who, cluster.name.as_str()).await?;
        let provider_kind = |cluster: &Cluster| std::mem::discriminant(&cluster.provider);
        if (old.engine, provider_kind(&old)) != (cluster.engine, provider_kind(&cluster)) {
            return Err(Refused::field(
                "cluster",
                "engine and provider cannot change: create another cluster",
            )
            .into());
        }
        let status = match (old.status, wanted) {
            (ClusterStatus::Pending | ClusterStatus::Draining, Some(v1::ClusterStatus::Active)) => {
                ClusterStatus::Active
            }
            (old, _) => old,
        };
        if cluster.provider != old.provider || status != old.status {
            self.try_cluster(&cluster).await?;
        }
        let cluster = self
            .api
            .definitions
            .replace(Cluster { status, ..cluster })
            .await?;
        tracing::info!(cluster = %cluster.name, actor = %who.id, "cluster updated");
        self.api
            .audit(&who, AuditAction::ClusterUpdated, |record| {
                record.on(cluster.name.as_str())
            })
            .await;
        Ok(Response::new(v1::UpdateClusterResponse {
            cluster: Some(convert::cluster(&cluster, true)),
        }))
    }

    async fn drain_cluster(
        &self,
        request: Request<v1::DrainClusterRequest>,
    ) -> Answer<v1::DrainClusterResponse> {
        let who = self.api.caller(&request)?;
        let cluster = self.find_writable(&who, &request.into_inner().name).await?;
        let cluster = self.set_status(cluster, ClusterStatus::Draining).await?;
        tracing::info!(cluster = %cluster.name, actor = %who.id, "cluster draining");
        self.api
            .audit(&who, AuditAction::ClusterDrained, |record| {
                record.on(cluster.name.as_str())
            })
            .await;
        Ok(Response::new(v1::DrainClusterResponse {
            cluster: Some(convert::cluster(&cluster, true)),
        }))
    }

    async fn delete_cluster(
        &self,
        request: Request<v1::DeleteClusterRequest>,
    ) -> Answer<v1::DeleteClusterResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let cluster = match self.find_writable(&who, &request.name).await {
            Ok(cluster) => cluster,
            // Deletion is idempotent.
            Err(refused) if refused.reason == Reason::NotAuthorized => {
                self.find(&who, &request.name).await?;
                return Ok(Response::new(v1::DeleteClusterResponse {}));
            }
            Err(refused) => return Err(refused.into()),
        };
        // Draining first, so that no session is created between the check and the end.
        let was = cluster.status;
        let cluster = self.set_status(cluster, ClusterStatus::Draining).await?;
        if was != cluster.status {
            // Recorded now, because the deletion may fail after this.
            self.api
                .audit(&who, AuditAction::ClusterDrained, |record| {
                    record.on(cluster.name.as_str())
                })
                .await;
        }
        if request.force {
            self.close_all(&who, &cluster).await?;
        } else if self.api.reconciler.has_sessions(&cluster).await? {
            return Err(Refused::new(
                Reason::ClusterNotActive,
                format!(
                    "Sessions still run on {}. It takes no new ones now; wait, or repeat with force.",
                    cluster.name
                ),
            )
            .into());
        }
        // The definition stays, as destroyed, so that remaining compute can be released.
        let cluster = self.set_status(cluster, ClusterStatus::Destroyed).await?;
        tracing::info!(cluster = %cluster.name, actor = %who.id, force = request.force, "cluster destroyed");
        self.api
            .audit(&who, AuditAction::ClusterDeleted, |record| {
                record.on(cluster.name.as_str())
            })
            .await;
        Ok(Response::new(v1::DeleteClusterResponse {}))
    }
}

impl Clusters {
    /// Validates a definition; returns it with the requested status.
    fn checked(&self, wire: Option<v1::Cluster>) -> Result<(Cluster, Option<v1::ClusterStatus>), Refused> {
        let wire = wire.ok_or_else(|| Refused::field("cluster", "is missing"))?;
        let wanted = Some(wire.status()).filter(|status| *status != v1::ClusterStatus::Unspecified);
        let cluster = convert::from_cluster(wire)?;
        self.api
            .compute_config
            .check_cluster(&cluster)
            .map_err(|invalid| crate::error::invalid("cluster", &invalid))?;
        Ok((cluster, wanted))
    }

    /// Asks the platform of a valid definition whether it would create its compute.
    async fn try_cluster(&self, cluster: &Cluster) -> Result<(), Refused> {
        let tried = self.api.computes.try_cluster(cluster).await;
        tried.map_err(|error| match error {
            DefinitionError::Rejected(words) => Refused::field("cluster", words),
            DefinitionError::Unavailable(why) => Refused::new(
                Reason::BackendUnavailable,
                format!("The cluster was not stored, because its definition cannot be tried: {why}."),
            )
            .retry_after(RETRY_DELAY),
        })
    }

    /// Adds the state of the warm pools, if the caller may see the provider.
    fn show_pools(&self, cluster: &Cluster, shown: &mut v1::Cluster) {
        let Some(v1::cluster::Provider::Kubernetes(pods)) = &mut shown.provider else {
            return;
        };
        let all = self.api.computes.warm_pools().flat_map(WarmPools::status);
        let own = all.filter(|pool| pool.cluster == cluster.name);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        pods.warm_pools = own
            .map(|pool| v1::WarmPool {
                profile: pool.profile,
                catalog: pool.catalog,
                available: number(pool.available),
                starting: number(pool.starting),
                stopped: pool.stopped.unwrap_or_default(),
            })
            .collect();
    }

    async fn find(&self, who: &Principal, name: &str) -> Result<Cluster, Refused> {
        let name: ClusterName = parse("name", name)?;
        let cluster = self
            .api
            .definitions
            .cluster(&name)
            .await
            .map_err(crate::error::store)?;
        cluster
            .filter(|cluster| access::use_cluster(who, cluster))
            .ok_or_else(Refused::not_authorized)
    }

    async fn find_writable(&self, who: &Principal, name: &str) -> Result<Cluster, Refused> {
        let cluster = self.find(who, name).await?;
        // A destroyed cluster exists only for the release of its compute.
        if cluster.status == ClusterStatus::Destroyed {
            return Err(Refused::not_authorized());
        }
        if cluster.managed_by_config {
            return Err(super::managed_by_config("cluster", name));
        }
        Ok(cluster)
    }

    async fn set_status(&self, cluster: Cluster, status: ClusterStatus) -> Result<Cluster, Refused> {
        if cluster.status == status {
            return Ok(cluster);
        }
        self.api.definitions.replace(Cluster { status, ..cluster }).await
    }

    async fn close_all(&self, who: &AuthenticatedCaller, cluster: &Cluster) -> Result<(), Refused> {
        let close = Event::Close {
            reason: ChangeReason::ClusterDestroyed,
        };
        let actor = Actor::Principal(who.id.clone());
        let mut after = None;
        loop {
            let keys = self
                .api
                .store
                .list_live_on_cluster(&cluster.name, after.as_ref(), CLOSE_PAGE)
                .await
                .map_err(crate::error::store)?;
            let Some(last) = keys.last().cloned() else {
                return Ok(());
            };
            after = Some(last);
            for key in keys {
                self.api
                    .reconciler
                    .apply_from(&who.address, &key, &close, &actor, |_| Ok(()))
                    .await?;
                self.api.reconciler.enqueue(key);
            }
        }
    }
}
