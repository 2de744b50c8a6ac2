//! Requests of tests that call Berth's APIs by gRPC.

use std::time::Duration;
use tonic::{Request, Status};

/// A request with this `authorization` and this time limit.
///
/// # Errors
/// `authorization` is no value of a header.
pub fn authorized<T>(authorization: &str, message: T, timeout: Duration) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = authorization
        .parse()
        .map_err(|_| Status::internal("the credential"))?;
    request.metadata_mut().insert("authorization", value);
    request.set_timeout(timeout);
    Ok(request)
}
