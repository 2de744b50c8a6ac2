//! The REST API: one call of the gRPC APIs for each request.
//!
//! [`caller`] has the credential and the clients, [`body`], [`query`] and
//! [`headers`] read requests, one file a resource answers them, [`openapi`] and [`schema`] describe all of it.

mod audit;
mod body;
pub(crate) mod caller;
mod catalogs;
mod clusters;
mod docs;
mod headers;
pub(crate) mod openapi;
mod orgs;
mod patch;
mod query;
pub(crate) mod schema;
mod sessions;
mod tokens;
mod verbs;
mod watch;

use crate::problem::{Problem, RestReason};
use crate::state::AppState;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower::ServiceExt as _;
use utoipa::openapi::path::Paths;
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

/// The routes below `/api/v1`.
pub(crate) fn router(app: &AppState) -> Router {
    let (api, paths) = routes();
    let api = api
        .merge(docs::router(openapi::of(paths, &app.prefix), &app.prefix))
        .fallback(async || Problem::of_http(RestReason::NotFound, "There is no such path in the API."))
        .method_not_allowed_fallback(async || {
            Problem::of_http(
                RestReason::MethodNotAllowed,
                "The path has no such method; see the header Allow.",
            )
        })
        .layer(middleware::from_fn(check_preconditions))
        .with_state(app.clone());
    Router::new().nest_service(openapi::BASE, api.map_request(verbs::rewrite))
}

async fn check_preconditions(request: Request, next: Next) -> Response {
    match headers::reject_unchecked(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// All routes of resources, and their description.
pub(super) fn routes() -> (Router<AppState>, Paths) {
    let all: Vec<UtoipaMethodRouter<AppState>> = vec![
        routes!(sessions::create_session, sessions::list_sessions),
        routes!(watch::watch_sessions),
        routes!(sessions::describe_session, sessions::update_session),
        routes!(sessions::extend_session),
        routes!(sessions::keep_session_alive),
        routes!(sessions::warm_session),
        routes!(sessions::close_session),
        routes!(sessions::list_session_events),
        routes!(sessions::list_operations),
        routes!(sessions::interrupt_operations),
        routes!(tokens::issue_session_token, tokens::list_session_tokens),
        routes!(tokens::revoke_session_token),
        routes!(tokens::revoke_all_session_tokens),
        routes!(clusters::list_clusters, clusters::create_cluster),
        routes!(
            clusters::describe_cluster,
            clusters::update_cluster,
            clusters::delete_cluster
        ),
        routes!(clusters::drain_cluster),
        routes!(catalogs::list_catalogs, catalogs::create_catalog),
        routes!(
            catalogs::describe_catalog,
            catalogs::update_catalog,
            catalogs::delete_catalog
        ),
        routes!(catalogs::test_catalog),
        routes!(orgs::list_orgs, orgs::create_org),
        routes!(orgs::describe_org),
        routes!(orgs::set_limits),
        routes!(orgs::enable_org),
        routes!(orgs::disable_org),
        routes!(orgs::disable_principal),
        routes!(audit::list_audit_records),
        routes!(audit::list_usage),
    ];
    let mut described = Paths::new();
    let router = all
        .into_iter()
        .fold(Router::new(), |router, (_, paths, methods)| {
            let path = paths.paths.keys().next().cloned().unwrap_or_default();
            described.paths.extend(paths.paths);
            router.route(&verbs::routed(&path), methods)
        });
    (router, described)
}
