//! `/readyz`: whether queries can be sent now. Needs no secret, and shows nothing of the session.

use super::server::Shared;
use super::tokens::Readiness;
use http::{Method, StatusCode};
use std::time::Duration;
use tokio::time::Instant;

/// Time for a connection to spark-proxy.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The answer to a request that is no gRPC call. The texts are fixed, because every user of the
/// machine can read them.
pub(super) async fn answer(shared: &Shared, method: &Method, path: &str) -> (StatusCode, &'static str) {
    if path != "/readyz" {
        return (
            StatusCode::NOT_FOUND,
            "This is `berth connect`, for Spark Connect clients (gRPC over HTTP/2) and GET /readyz.\n",
        );
    }
    if method != Method::GET && method != Method::HEAD {
        return (StatusCode::METHOD_NOT_ALLOWED, "Use GET.\n");
    }
    match shared.tokens.readiness() {
        Readiness::Ready => {}
        Readiness::Renewing => return not_ready("not ready: the session token is being renewed\n"),
        Readiness::Failing => return not_ready("not ready: the session token cannot be renewed\n"),
        Readiness::Over => return not_ready("not ready: the session is over\n"),
    }
    match shared.upstream.lease(Instant::now() + CHECK_TIMEOUT).await {
        Ok(_) => (StatusCode::OK, "ready\n"),
        Err(_) => not_ready("not ready: spark-proxy cannot be reached\n"),
    }
}

fn not_ready(text: &'static str) -> (StatusCode, &'static str) {
    (StatusCode::SERVICE_UNAVAILABLE, text)
}
