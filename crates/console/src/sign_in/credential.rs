//! The credential of a request: its `Authorization` header.

use crate::credential::Credential;
use crate::problem::Problem;
use crate::state::AppState;
use axum::extract::FromRequestParts;
use http::request::Parts;
use service_kit::grpc;

impl FromRequestParts<AppState> for Credential {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        grpc::bearer(&parts.headers)
            .map(Self::new)
            .map_err(Problem::no_credential)
    }
}
