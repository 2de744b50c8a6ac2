//! OrgService: organizations come from configuration in this release; the API
//! reads them.

use super::{Api, not_yet};
use session_core::access;
use session_core::{Org, OrgId};
use session_proto::convert::{self, parse};
use session_proto::error::Refused;
use session_proto::v1::{self, org_service_server::OrgService};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `berth.v1.OrgService`.
#[derive(Debug, Clone)]
pub(crate) struct Orgs(pub(crate) Arc<Api>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl OrgService for Orgs {
    async fn describe_org(
        &self,
        request: Request<v1::DescribeOrgRequest>,
    ) -> Answer<v1::DescribeOrgResponse> {
        let who = self.0.caller(request.metadata())?;
        let id: OrgId = parse("name", &request.into_inner().name)?;
        if id != who.org && !access::write_platform(&who) {
            return Err(Refused::not_authorized().into());
        }
        let org = self.0.directory.org(&id).await.map_err(crate::refuse::store)?;
        Ok(Response::new(v1::DescribeOrgResponse {
            org: Some(convert::org(&org)),
        }))
    }

    async fn list_orgs(&self, request: Request<v1::ListOrgsRequest>) -> Answer<v1::ListOrgsResponse> {
        let who = self.0.caller(request.metadata())?;
        let all = self
            .0
            .directory
            .all::<Org>()
            .await
            .map_err(crate::refuse::store)?;
        let orgs = all
            .iter()
            .filter(|org| org.id == who.org || access::write_platform(&who))
            .map(convert::org)
            .collect();
        Ok(Response::new(v1::ListOrgsResponse { orgs }))
    }

    async fn create_org(&self, request: Request<v1::CreateOrgRequest>) -> Answer<v1::CreateOrgResponse> {
        self.0.caller(request.metadata())?;
        not_yet("CreateOrg")
    }

    async fn set_limits(&self, request: Request<v1::SetLimitsRequest>) -> Answer<v1::SetLimitsResponse> {
        self.0.caller(request.metadata())?;
        not_yet("SetLimits")
    }

    async fn enable_org(&self, request: Request<v1::EnableOrgRequest>) -> Answer<v1::EnableOrgResponse> {
        self.0.caller(request.metadata())?;
        not_yet("EnableOrg")
    }

    async fn disable_org(&self, request: Request<v1::DisableOrgRequest>) -> Answer<v1::DisableOrgResponse> {
        self.0.caller(request.metadata())?;
        not_yet("DisableOrg")
    }

    async fn disable_principal(
        &self,
        request: Request<v1::DisablePrincipalRequest>,
    ) -> Answer<v1::DisablePrincipalResponse> {
        self.0.caller(request.metadata())?;
        not_yet("DisablePrincipal")
    }
}
