//! OrgService: definitions of organizations and their limits by platform admins,
//! disabling of organizations and principals by admins.

use super::Api;
use crate::caller::AuthenticatedCaller;
use crate::definitions::Versioned;
use session_core::access;
use session_core::{AuditAction, Disabled, Limits, Org, OrgId, PrincipalId, Reason};
use session_proto::convert::{self, non_empty, parse};
use session_proto::error::Refused;
use session_proto::v1::{self, org_service_server::OrgService};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Attempts of a write before it fails with a conflict.
const MAX_ATTEMPTS: usize = 8;

/// Serves `berth.v1.OrgService`.
#[derive(Debug, Clone)]
pub(crate) struct Orgs {
    /// The shared parts.
    pub(crate) api: Arc<Api>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl OrgService for Orgs {
    async fn describe_org(
        &self,
        request: Request<v1::DescribeOrgRequest>,
    ) -> Answer<v1::DescribeOrgResponse> {
        let who = self.api.caller(&request)?;
        let id: OrgId = parse("name", &request.into_inner().name)?;
        if id != who.org && !access::write_platform(&who) {
            return Err(Refused::not_authorized().into());
        }
        let mut org = self.shown(&id).await?;
        if access::disable_principals(&who, &id) {
            org.disabled_principals = self.disabled_in(&id).await?;
        }
        Ok(Response::new(v1::DescribeOrgResponse { org: Some(org) }))
    }

    async fn list_orgs(&self, request: Request<v1::ListOrgsRequest>) -> Answer<v1::ListOrgsResponse> {
        let who = self.api.caller(&request)?;
        let orgs = if access::write_platform(&who) {
            self.all().await?
        } else {
            vec![self.shown(&who.org).await?]
        };
        Ok(Response::new(v1::ListOrgsResponse { orgs }))
    }

    async fn describe_caller(
        &self,
        request: Request<v1::DescribeCallerRequest>,
    ) -> Answer<v1::DescribeCallerResponse> {
        let who = self.api.caller(&request)?;
        Ok(Response::new(v1::DescribeCallerResponse {
            caller: Some(convert::caller(&who)),
        }))
    }

    async fn create_org(&self, request: Request<v1::CreateOrgRequest>) -> Answer<v1::CreateOrgResponse> {
        let who = self.api.caller(&request)?;
        let wire = request.into_inner().org;
        let wire = wire.ok_or_else(|| Refused::field("org", "is missing"))?;
        if wire.disabled {
            return Err(
                Refused::field("org.disabled", "cannot be set here: create it, then disable it").into(),
            );
        }
        let org = Org {
            id: parse("org.name", &wire.name)?,
            limits: match &wire.limits {
                None => Limits::default(),
                Some(limits) => convert::from_limits(limits)?,
            },
            managed_by_config: false,
            version: 0,
        };
        let org = self.api.definitions.create(org).await?;
        tracing::info!(org = %org.id, actor = %who.id, "organization created");
        self.api
            .audit(&who, AuditAction::OrgCreated, |record| {
                record.of_org(&org.id).on(org.id.as_str())
            })
            .await;
        Ok(Response::new(v1::CreateOrgResponse {
            org: Some(self.shown(&org.id).await?),
        }))
    }

    async fn set_limits(&self, request: Request<v1::SetLimitsRequest>) -> Answer<v1::SetLimitsResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let id: OrgId = parse("name", &request.name)?;
        let limits = request
            .limits
            .ok_or_else(|| Refused::field("limits", "is missing"))?;
        let limits = convert::from_limits(&limits)?;
        self.write_limits(&id, &limits).await?;
        tracing::info!(org = %id, actor = %who.id, ?limits, "limits set");
        self.api
            .audit(&who, AuditAction::OrgUpdated, |record| {
                record.of_org(&id).on(id.as_str())
            })
            .await;
        Ok(Response::new(v1::SetLimitsResponse {
            org: Some(self.shown(&id).await?),
        }))
    }

    async fn enable_org(&self, request: Request<v1::EnableOrgRequest>) -> Answer<v1::EnableOrgResponse> {
        let who = self.api.caller(&request)?;
        let id: OrgId = parse("name", &request.into_inner().name)?;
        self.api.disabling.enable(&id, None, |_| true).await?;
        tracing::info!(org = %id, actor = %who.id, "organization enabled");
        self.api
            .audit(&who, AuditAction::OrgEnabled, |record| {
                record.of_org(&id).on(id.as_str())
            })
            .await;
        Ok(Response::new(v1::EnableOrgResponse {
            org: Some(self.shown(&id).await?),
        }))
    }

    async fn disable_org(&self, request: Request<v1::DisableOrgRequest>) -> Answer<v1::DisableOrgResponse> {
        let who = self.api.caller(&request)?;
        let id: OrgId = parse("name", &request.into_inner().name)?;
        let closed_sessions = self.disable(&who, &id, None).await?;
        tracing::info!(org = %id, actor = %who.id, closed_sessions, "organization disabled");
        Ok(Response::new(v1::DisableOrgResponse {
            org: Some(self.shown(&id).await?),
            closed_sessions,
        }))
    }

    async fn disable_principal(
        &self,
        request: Request<v1::DisablePrincipalRequest>,
    ) -> Answer<v1::DisablePrincipalResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let org = match non_empty(request.org) {
            None => who.org.clone(),
            Some(org) => parse("org", &org)?,
        };
        if !access::disable_principals(&who, &org) {
            return Err(Refused::not_authorized().into());
        }
        let principal: PrincipalId = parse("principal", &request.principal)?;
        let closed_sessions = if !request.disabled {
            let may = |stored: &Disabled| !stored.by_platform || access::write_platform(&who);
            self.api.disabling.enable(&org, Some(&principal), may).await?;
            self.api
                .audit(&who, AuditAction::PrincipalEnabled, |record| {
                    record.of_org(&org).on(principal.as_str())
                })
                .await;
            0
        } else if principal == who.id && org == who.org {
            return Err(Refused::field("principal", "is yourself: ask another administrator").into());
        } else {
            self.disable(&who, &org, Some(principal.clone())).await?
        };
        tracing::info!(
            %org, %principal, actor = %who.id, closed_sessions, disabled = request.disabled, "principal changed"
        );
        Ok(Response::new(v1::DisablePrincipalResponse { closed_sessions }))
    }
}

impl Orgs {
    async fn shown(&self, id: &OrgId) -> Result<v1::Org, Refused> {
        let definitions = &self.api.definitions;
        let (org, disabled) = tokio::try_join!(definitions.org(id), definitions.is_disabled(id))
            .map_err(crate::error::store)?;
        Ok(convert::org(&org, disabled))
    }

    /// The organizations with a definition, and the disabled ones.
    async fn all(&self) -> Result<Vec<v1::Org>, Refused> {
        let definitions = &self.api.definitions;
        let (defined, disabled) =
            tokio::try_join!(definitions.all::<Org>(), definitions.all_of_org::<Disabled>(None))
                .map_err(crate::error::store)?;
        let mut all: BTreeMap<OrgId, v1::Org> = defined
            .iter()
            .map(|org| (org.id.clone(), convert::org(org, false)))
            .collect();
        for disabled in disabled.into_iter().filter(|one| one.principal.is_none()) {
            let undefined = || convert::org(&Org::undefined(disabled.org.clone()), true);
            all.entry(disabled.org.clone()).or_insert_with(undefined).disabled = true;
        }
        Ok(all.into_values().collect())
    }

    async fn disabled_in(&self, id: &OrgId) -> Result<Vec<String>, Refused> {
        let here = self.api.definitions.all_of_org::<Disabled>(Some(id)).await;
        let here = here.map_err(crate::error::store)?;
        Ok(here
            .into_iter()
            .filter_map(|disabled| disabled.principal)
            .map(|principal| principal.to_string())
            .collect())
    }

    async fn write_limits(&self, id: &OrgId, limits: &Limits) -> Result<(), Refused> {
        for _ in 0..MAX_ATTEMPTS {
            let org = self.api.definitions.org(id).await.map_err(crate::error::store)?;
            if org.managed_by_config {
                return Err(super::managed_by_config("organization", id.as_str()));
            }
            let wanted = Org {
                limits: limits.clone(),
                ..org
            };
            let written = if wanted.version() == 0 {
                self.api.definitions.create(wanted).await
            } else {
                self.api.definitions.replace(wanted).await
            };
            match written {
                Ok(_) => return Ok(()),
                Err(refused) if matches!(refused.reason, Reason::Conflict | Reason::AlreadyExists) => {}
                Err(refused) => return Err(refused),
            }
        }
        Err(Refused::new(
            Reason::Conflict,
            "The organization keeps changing. Try again.",
        ))
    }

    async fn disable(
        &self,
        who: &AuthenticatedCaller,
        org: &OrgId,
        principal: Option<PrincipalId>,
    ) -> Result<u32, Refused> {
        let (action, object) = match &principal {
            None => (AuditAction::OrgDisabled, org.to_string()),
            Some(principal) => (AuditAction::PrincipalDisabled, principal.to_string()),
        };
        let at = self.api.store.now().await.map_err(crate::error::store)?;
        let disabled = Disabled {
            org: org.clone(),
            principal,
            by: who.id.clone(),
            by_platform: access::write_platform(who),
            at,
            settled: false,
            version: 0,
        };
        let disabled = self.api.disabling.write(disabled).await?;
        // It is in force from now on, even if closing the live sessions fails.
        self.api
            .audit(who, action, |record| record.of_org(org).on(&object))
            .await;
        self.api.disabling.close(disabled).await
    }
}
