//! Headers of requests to compute.

use crate::grpc::headers::{HOP_BY_HOP, SESSION_ID, remove_all};
use crate::grpc::method::Method;
use crate::routes::Backend;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Scheme, Uri};

/// Headers for Berth that few clients send, and parameters of the connection string that some
/// clients send as metadata.
static RARE: [HeaderName; 4] = [
    HeaderName::from_static("authentication"),
    header::CONTENT_LENGTH,
    HeaderName::from_static("use_ssl"),
    HeaderName::from_static("session_id"),
];
static GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Prepares the client's request for `backend`.
pub(crate) fn toward_backend(request: &mut http::request::Parts, backend: &Backend, method: Method) {
    let headers = &mut request.headers;
    headers.remove(header::AUTHORIZATION);
    headers.remove(&SESSION_ID);
    remove_all(headers, &RARE);
    remove_all(headers, &HOP_BY_HOP);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
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
