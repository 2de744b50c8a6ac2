//! `/readyz`: whether queries can be sent now. Needs no secret, and shows nothing of the session.

use super::server::Shared;
use http::{Method, StatusCode};
use std::time::Duration;
use tokio::time::Instant;

/// Time for a connection to spark-proxy.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The answer to a request that is no gRPC call.
pub(super) async fn answer(shared: &Shared, method: &Method, path: &str) -> (StatusCode, String) {
    if path != "/readyz" {
        return (
            StatusCode::NOT_FOUND,
            "This is `berth connect`, for Spark Connect clients (gRPC over HTTP/2) and GET /readyz.\n"
                .to_owned(),
        );
    }
    if method != Method::GET && method != Method::HEAD {
        return (StatusCode::METHOD_NOT_ALLOWED, "Use GET.\n".to_owned());
    }
    match check(shared).await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {problem}\n")),
    }
}

async fn check(shared: &Shared) -> Result<(), String> {
    shared.tokens.check()?;
    match shared.upstream.lease(Instant::now() + CHECK_TIMEOUT).await {
        Ok(_) => Ok(()),
        Err(unreachable) => Err(format!("spark-proxy cannot be reached: {}", unreachable.0)),
    }
}
