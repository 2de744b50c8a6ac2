//! A gRPC status as the end of a response: trailers after the headers, or a response of trailers
//! only. Both are cut to the size that gRPC clients accept.

use crate::trailers::fit;
use http::{HeaderMap, HeaderValue, Response, header};
use tonic::Status;

/// The trailers of a status.
pub fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(5);
    if status.add_header(&mut trailers).is_err() {
        // Some part is not a valid header value; the code alone always is.
        trailers.clear();
        trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
    }
    fit(&mut trailers);
    trailers
}

/// The whole response of a call that ends with `status` before any message.
pub fn trailers_only(status: &Status) -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    *headers = trailers(status);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fit(headers);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Refused, reason_of};
    use session_core::Reason;

    #[test]
    fn an_error_is_a_complete_trailers_only_response() {
        let status = Refused::new(Reason::SessionClosed, "Geschlossen: ä\n100 %").into_status();
        let response = trailers_only(&status);
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers["grpc-status"], "9");
        assert_eq!(headers["grpc-message"], "Geschlossen:%20%C3%A4%0A100%20%25");
        assert_eq!(headers["berth-reason"], "SESSION_CLOSED");
        assert!(
            !headers["grpc-status-details-bin"]
                .to_str()
                .unwrap()
                .ends_with('=')
        );
        let back = Status::from_header_map(headers).unwrap();
        assert_eq!(reason_of(&back), Some(Reason::SessionClosed));
    }
}
