//! Headers of requests to compute.

use crate::grpc::encoding::{GRPC_ACCEPT_ENCODING, GRPC_ENCODING, limit_accepted};
use crate::grpc::headers::{GRPC_TIMEOUT, SESSION_ID};
use crate::grpc::method::Method;
use crate::routes::Backend;
use http::header::{self, HeaderValue};
use http::uri::{Scheme, Uri};
use service_kit::http2::{is_hop_by_hop, remove_matching};
use session_core::Engine;

/// Whether a header is for Berth, or is a parameter of the connection string that some clients send
/// as metadata. The length of the body may change.
fn is_for_berth(name: &str) -> bool {
    matches!(
        name,
        "authentication" | "content-length" | "use_ssl" | "session_id"
    )
}

/// Prepares the client's request for `backend`.
pub(crate) fn toward_backend(request: &mut http::request::Parts, backend: &Backend, method: Method) {
    let headers = &mut request.headers;
    headers.remove(header::AUTHORIZATION);
    headers.remove(&SESSION_ID);
    // Messages are forwarded uncompressed.
    headers.remove(&GRPC_ENCODING);
    remove_matching(headers, |name| is_for_berth(name) || is_hop_by_hop(name));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    if backend.engine == Engine::Sail && matches!(method, Method::ExecutePlan | Method::Interrupt) {
        // The response is read here.
        limit_accepted(headers);
    }
    if backend.engine == Engine::Sail && method == Method::ExecutePlan {
        // The query may outlive the stream that has this deadline.
        headers.remove(&GRPC_TIMEOUT);
    }
    if let Some(credential) = &backend.credential {
        headers.insert(header::AUTHORIZATION, credential.clone());
        if method == Method::Config {
            // The reply is redacted, so it must not be compressed.
            headers.insert(&GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
    }
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if backend.tls.is_some() {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    });
    uri.authority = Some(backend.authority.clone());
    uri.path_and_query = request.uri.path_and_query().cloned();
    // Cannot fail, because all three parts are present.
    if let Ok(uri) = Uri::from_parts(uri) {
        request.uri = uri;
    }
}
