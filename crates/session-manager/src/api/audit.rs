//! AuditService: the audit trail, and the use of an organization's sessions.

use super::{Api, audit_page, usage};
use crate::admission::concurrency::{ConcurrencyLimit, ConcurrencyPermit, Full};
use session_core::{OrgId, Principal, PrincipalId, Reason, Role, access};
use session_proto::convert::{non_empty, parse};
use session_proto::error::Refused;
use session_proto::v1::{self, audit_service_server::AuditService};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Concurrent calls of one organization; each reads thousands of records.
const MAX_OF_ORG: usize = 2;
/// Concurrent calls of all organizations at this manager.
const MAX_CALLS: usize = 8;
/// Concurrent calls of one platform admin, and of all of them, beside those.
const MAX_OF_ADMIN: usize = 2;
const MAX_OF_ADMINS: usize = 4;
/// Retry delay of a caller above the limit.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Limits of the calls that read much. Reads of usage, which every member may make, take no place of
/// those of the trail, and tenants take none of platform admins.
#[derive(Debug)]
pub(crate) struct ReadLimits {
    trail: Arc<ConcurrencyLimit<OrgId>>,
    usage: Arc<ConcurrencyLimit<OrgId>>,
    /// One for each principal.
    usage_of_principal: Arc<ConcurrencyLimit<PrincipalId>>,
    platform_admins: Arc<ConcurrencyLimit<PrincipalId>>,
}

/// A place of a call, returned when dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held until the call ends")]
enum ReadPermit {
    Trail(ConcurrencyPermit<OrgId>),
    Usage(ConcurrencyPermit<OrgId>, ConcurrencyPermit<PrincipalId>),
    PlatformAdmin(ConcurrencyPermit<PrincipalId>),
}

impl ReadLimits {
    pub(crate) fn new() -> Self {
        Self {
            trail: ConcurrencyLimit::new(MAX_OF_ORG, MAX_CALLS),
            usage: ConcurrencyLimit::new(MAX_OF_ORG, MAX_CALLS),
            usage_of_principal: ConcurrencyLimit::new(1, MAX_CALLS),
            platform_admins: ConcurrencyLimit::new(MAX_OF_ADMIN, MAX_OF_ADMINS),
        }
    }

    fn enter_trail(&self, who: &Principal) -> Result<ReadPermit, Refused> {
        if who.has(Role::PlatformAdmin) {
            return self.enter_as_platform_admin(who);
        }
        let permit = self.trail.take(&who.org).map_err(too_many)?;
        Ok(ReadPermit::Trail(permit))
    }

    fn enter_usage(&self, who: &Principal) -> Result<ReadPermit, Refused> {
        if who.has(Role::PlatformAdmin) {
            return self.enter_as_platform_admin(who);
        }
        let own = self.usage_of_principal.take(&who.id).map_err(|full| match full {
            Full::Each => limited("One of your calls reads usage, the most at one time."),
            Full::All => too_many(full),
        })?;
        let permit = self.usage.take(&who.org).map_err(too_many)?;
        Ok(ReadPermit::Usage(permit, own))
    }

    fn enter_as_platform_admin(&self, who: &Principal) -> Result<ReadPermit, Refused> {
        let permit = self.platform_admins.take(&who.id).map_err(|full| match full {
            Full::Each => limited(&format!(
                "{MAX_OF_ADMIN} of your calls read the audit trail or usage, the most at one time."
            )),
            Full::All => limited(&format!(
                "{MAX_OF_ADMINS} calls of platform admins read the audit trail or usage, the most at one time."
            )),
        })?;
        Ok(ReadPermit::PlatformAdmin(permit))
    }
}

/// Serves `berth.v1.AuditService`.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    /// The shared parts.
    pub(crate) api: Arc<Api>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit_records(
        &self,
        request: Request<v1::ListAuditRecordsRequest>,
    ) -> Answer<v1::ListAuditRecordsResponse> {
        let who = self.api.caller(&request)?;
        let query = audit_page::query(&who, request.into_inner())?;
        let _permit = self.api.read_limits.enter_trail(&who)?;
        let page = audit_page::read(self.api.store.as_ref(), query).await?;
        Ok(Response::new(page))
    }

    async fn list_usage(&self, request: Request<v1::ListUsageRequest>) -> Answer<v1::ListUsageResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let org = match non_empty(request.org.clone()) {
            None => who.org.clone(),
            Some(org) => parse("org", &org)?,
        };
        if !access::read_usage(&who, &org) {
            return Err(Refused::not_authorized().into());
        }
        let query = usage::query(&who, org, request)?;
        let _permit = self.api.read_limits.enter_usage(&who)?;
        let page = usage::read(self.api.store.as_ref(), query).await?;
        Ok(Response::new(page))
    }
}

fn too_many(full: Full) -> Refused {
    limited(&match full {
        Full::Each => format!("{MAX_OF_ORG} calls of your organization read this, the most at one time."),
        Full::All => format!("{MAX_CALLS} calls read this, the most at one time."),
    })
}

fn limited(text: &str) -> Refused {
    Refused::new(
        Reason::RateLimited,
        format!("{text} Wait until one has ended, then try again."),
    )
    .retry_after(RETRY_DELAY)
}
