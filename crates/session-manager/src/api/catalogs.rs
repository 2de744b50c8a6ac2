//! CatalogService: definitions of catalogs by org admins.

use super::{Api, test_catalog};
use session_core::access;
use session_core::{AuditAction, Catalog, CatalogName, Principal, Reason, SessionId};
use session_proto::convert::{self, non_empty, parse};
use session_proto::error::Refused;
use session_proto::v1::{self, catalog_service_server::CatalogService};
use session_store::ListQuery;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `berth.v1.CatalogService`.
#[derive(Debug, Clone)]
pub(crate) struct Catalogs {
    /// The shared parts.
    pub(crate) api: Arc<Api>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl CatalogService for Catalogs {
    async fn create_catalog(
        &self,
        request: Request<v1::CreateCatalogRequest>,
    ) -> Answer<v1::CreateCatalogResponse> {
        let who = self.api.caller(&request)?;
        let catalog = checked(&who, request.into_inner().catalog)?;
        let catalog = self.api.definitions.create(catalog).await?;
        tracing::info!(catalog = %catalog.name, org = %catalog.org, actor = %who.id, "catalog created");
        self.api
            .audit(&who, AuditAction::CatalogCreated, |record| {
                record.on(catalog.name.as_str())
            })
            .await;
        Ok(Response::new(v1::CreateCatalogResponse {
            catalog: Some(convert::catalog(&catalog)),
        }))
    }

    async fn describe_catalog(
        &self,
        request: Request<v1::DescribeCatalogRequest>,
    ) -> Answer<v1::DescribeCatalogResponse> {
        let who = self.api.caller(&request)?;
        let catalog = self.find(&who, &request.into_inner().name).await?;
        Ok(Response::new(v1::DescribeCatalogResponse {
            catalog: Some(convert::catalog(&catalog)),
        }))
    }

    async fn list_catalogs(
        &self,
        request: Request<v1::ListCatalogsRequest>,
    ) -> Answer<v1::ListCatalogsResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let limit = super::session_page::size(request.page_size)?;
        let after = non_empty(request.page_token).map(|token| {
            let name = token.parse::<CatalogName>();
            name.map_err(|_| Refused::field("page_token", "is not one that this API returned"))
        });
        let after = after.transpose()?;
        let page = self
            .api
            .definitions
            .catalogs_after(&who.org, after.as_ref(), limit);
        let (page, more) = page.await.map_err(crate::error::store)?;
        let last = page.last().filter(|_| more).map(|last| last.name.to_string());
        let catalogs = page
            .iter()
            .filter(|catalog| access::use_catalog(&who, catalog))
            .map(convert::catalog)
            .collect();
        Ok(Response::new(v1::ListCatalogsResponse {
            catalogs,
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn update_catalog(
        &self,
        request: Request<v1::UpdateCatalogRequest>,
    ) -> Answer<v1::UpdateCatalogResponse> {
        let who = self.api.caller(&request)?;
        let catalog = checked(&who, request.into_inner().catalog)?;
        self.find_writable(&who, catalog.name.as_str()).await?;
        let catalog = self.api.definitions.replace(catalog).await?;
        tracing::info!(catalog = %catalog.name, org = %catalog.org, actor = %who.id, "catalog updated");
        self.api
            .audit(&who, AuditAction::CatalogUpdated, |record| {
                record.on(catalog.name.as_str())
            })
            .await;
        Ok(Response::new(v1::UpdateCatalogResponse {
            catalog: Some(convert::catalog(&catalog)),
        }))
    }

    async fn delete_catalog(
        &self,
        request: Request<v1::DeleteCatalogRequest>,
    ) -> Answer<v1::DeleteCatalogResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let catalog = self.find_writable(&who, &request.name).await?;
        if !request.force
            && let Some(session) = self.session_using(&catalog).await?
        {
            return Err(in_use(&catalog, &session).into());
        }
        self.api.definitions.delete(&catalog).await?;
        tracing::info!(catalog = %catalog.name, org = %catalog.org, actor = %who.id, "catalog deleted");
        self.api
            .audit(&who, AuditAction::CatalogDeleted, |record| {
                record.on(catalog.name.as_str())
            })
            .await;
        Ok(Response::new(v1::DeleteCatalogResponse {}))
    }

    async fn test_catalog(
        &self,
        request: Request<v1::TestCatalogRequest>,
    ) -> Answer<v1::TestCatalogResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let catalog = self.find(&who, &request.name).await?;
        if !access::write_catalogs(&who, &catalog.org) {
            return Err(Refused::not_authorized().into());
        }
        let name = catalog.name.clone();
        let tested = test_catalog::run(&self.api, &who, catalog, &request.cluster).await?;
        self.api
            .audit(&who, AuditAction::CatalogTested, |record| {
                record.on(name.as_str())
            })
            .await;
        Ok(Response::new(tested))
    }
}

impl Catalogs {
    async fn find(&self, who: &Principal, name: &str) -> Result<Catalog, Refused> {
        let name: CatalogName = parse("name", name)?;
        let catalog = self
            .api
            .definitions
            .catalog(&who.org, &name)
            .await
            .map_err(crate::error::store)?;
        catalog
            .filter(|catalog| access::use_catalog(who, catalog))
            .ok_or_else(Refused::not_authorized)
    }

    async fn find_writable(&self, who: &Principal, name: &str) -> Result<Catalog, Refused> {
        let catalog = self.find(who, name).await?;
        if !access::write_catalogs(who, &catalog.org) {
            return Err(Refused::not_authorized());
        }
        if catalog.managed_by_config {
            return Err(super::managed_by_config("catalog", name));
        }
        Ok(catalog)
    }

    /// A live session with this default catalog, if there is one.
    async fn session_using(&self, catalog: &Catalog) -> Result<Option<SessionId>, Refused> {
        let mut query = ListQuery::live_of_org(catalog.org.clone(), session_store::PAGE_READ_LIMIT);
        loop {
            let page = self.api.store.list(&query).await.map_err(crate::error::store)?;
            let mut sessions = page.sessions.into_iter();
            if let Some(user) = sessions.find(|session| session.catalog.as_ref() == Some(&catalog.name)) {
                return Ok(Some(user.id));
            }
            if page.next.is_none() {
                return Ok(None);
            }
            query.page_token = page.next;
        }
    }
}

fn in_use(catalog: &Catalog, session: &SessionId) -> Refused {
    Refused::new(
        Reason::InUse,
        format!(
            "Live sessions use the catalog {}, {session} for one. Close them first, or repeat with force: \
             then they go on, and fail when they need new compute.",
            catalog.name
        ),
    )
}

fn checked(who: &Principal, wire: Option<v1::Catalog>) -> Result<Catalog, Refused> {
    let mut wire = wire.ok_or_else(|| Refused::field("catalog", "is missing"))?;
    if wire.org.is_empty() {
        wire.org = who.org.to_string();
    }
    let catalog = convert::from_catalog(wire)?;
    if !access::write_catalogs(who, &catalog.org) {
        return Err(Refused::not_authorized());
    }
    compute::validate_catalog(&catalog).map_err(|invalid| crate::error::invalid("properties", &invalid))?;
    Ok(catalog)
}
