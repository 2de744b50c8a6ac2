//! AuditService: the audit trail, and the use of an organization's sessions.

use super::{Api, audit_page, usage};
use crate::admission::concurrency::{ConcurrencyLimit, ConcurrencyPermit, Full};
use crate::caller::AuthenticatedCaller;
use session_core::{OrgId, Reason, access};
use session_proto::convert::{non_empty, parse};
use session_proto::error::Refused;
use session_proto::v1::{self, audit_service_server::AuditService};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Concurrent calls of one organization; each reads thousands of records.
const MAX_OF_ORG: usize = 2;
/// Concurrent calls of this manager.
const MAX_CALLS: usize = 8;
/// Retry delay of a caller above the limit.
const RETRY_DELAY: Duration = Duration::from_secs(1);

pub(crate) type AuditReads = Arc<ConcurrencyLimit<OrgId>>;

pub(crate) fn audit_reads() -> AuditReads {
    ConcurrencyLimit::new(MAX_OF_ORG, MAX_CALLS)
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
        let _permit = self.permit(&who)?;
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
        let _permit = self.permit(&who)?;
        let page = usage::read(self.api.store.as_ref(), query).await?;
        Ok(Response::new(page))
    }
}

impl Audit {
    fn permit(&self, who: &AuthenticatedCaller) -> Result<ConcurrencyPermit<OrgId>, Refused> {
        self.api.audit_reads.take(&who.org).map_err(too_many)
    }
}

fn too_many(full: Full) -> Refused {
    let text = match full {
        Full::Each => format!(
            "{MAX_OF_ORG} calls of your organization read the audit trail or usage, the most at one time."
        ),
        Full::All => format!("{MAX_CALLS} calls read the audit trail or usage, the most at one time."),
    };
    Refused::new(
        Reason::RateLimited,
        format!("{text} Wait until one has ended, then try again."),
    )
    .retry_after(RETRY_DELAY)
}
