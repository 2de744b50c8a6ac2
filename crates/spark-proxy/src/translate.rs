//! What Sail says, in the words that clients understand.
//!
//! PySpark re-sends a query, or gives a session up, only for certain error
//! classes of Apache Spark. Sail says the same things in texts of its own
//! (measured with Sail 0.7.2), so a lost connection would fail the query for
//! good. Texts are compared whole and with this call's own ids, never by
//! parts: user data may stand in any error.
//!
//! Reattaching in the middle is answered here: Sail would lose rows silently,
//! and a loud error is better than a short result.

use crate::identity::SparkSessionId;
use http::HeaderMap;
use prost::Message as _;
use session_proto::spark::ReattachExecuteRequest;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What is known of one call to Sail.
#[derive(Debug)]
pub(crate) struct Sail {
    session: String,
    /// The operation that is being reattached to.
    reattaching: Option<String>,
}

impl Sail {
    /// A call about this Spark session.
    pub(crate) fn new(session: SparkSessionId) -> Self {
        Self {
            session: String::from_utf8_lossy(session.as_bytes()).into_owned(),
            reattaching: None,
        }
    }

    /// A `ReattachExecute`, whose one message is `request`, flag and length
    /// included.
    ///
    /// # Errors
    /// The answer, if it must not go on to Sail.
    pub(crate) fn reattach(&mut self, request: &[u8]) -> Result<(), Box<Status>> {
        let Ok(request) = ReattachExecuteRequest::decode(request.get(5..).unwrap_or_default()) else {
            // The identity scanner took it; what it means is Sail's to say.
            return Ok(());
        };
        if request.last_response_id.is_some_and(|id| !id.is_empty()) {
            return Err(Box::new(operation_not_found(&request.operation_id)));
        }
        self.reattaching = Some(request.operation_id);
        Ok(())
    }

    /// The status to say in place of Sail's, if Sail's is one that clients do
    /// not understand.
    pub(crate) fn translate(&self, trailers: &HeaderMap) -> Option<Box<Status>> {
        let status = Status::from_header_map(trailers)?;
        if status.code() != Code::Internal {
            return None;
        }
        if let Some(operation) = &self.reattaching
            && status.message() == format!("invalid argument: operation not found: {operation}")
        {
            return Some(Box::new(operation_not_found(operation)));
        }
        let ended = format!("invalid argument: session {} is not running", self.session);
        (status.message() == ended).then(|| Box::new(session_changed(&self.session)))
    }
}

fn operation_not_found(operation: &str) -> Status {
    rich(
        "INVALID_HANDLE.OPERATION_NOT_FOUND",
        &format!(
            "The operation {operation} is not there. If rows of it were read already, run the query again."
        ),
    )
}

fn session_changed(session: &str) -> Status {
    rich(
        "INVALID_HANDLE.SESSION_CHANGED",
        &format!(
            "The Spark session {session} has ended on the server. Build a new one: \
             stop this one, then SparkSession.builder.remote(…).getOrCreate()."
        ),
    )
}

/// As Apache Spark would say it. Without an `errorId`, so that clients do not
/// ask for more of it.
fn rich(class: &str, text: &str) -> Status {
    let metadata = HashMap::from([
        ("errorClass".to_owned(), class.to_owned()),
        ("sqlState".to_owned(), "HY000".to_owned()),
        (
            "classes".to_owned(),
            r#"["org.apache.spark.SparkException","java.lang.Exception"]"#.to_owned(),
        ),
    ]);
    let details =
        ErrorDetails::with_error_info("org.apache.spark.SparkException", "org.apache.spark", metadata);
    Status::with_error_details(
        Code::Internal,
        format!("[{class}] {text} SQLSTATE: HY000"),
        details,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &[u8] = b"11111111-2222-3333-4444-555555555555";

    fn sail() -> Sail {
        Sail {
            session: String::from_utf8_lossy(SESSION).into_owned(),
            reattaching: None,
        }
    }

    fn framed(last_response_id: Option<&str>) -> Vec<u8> {
        let request = ReattachExecuteRequest {
            operation_id: "op-1".to_owned(),
            last_response_id: last_response_id.map(str::to_owned),
            ..ReattachExecuteRequest::default()
        };
        [vec![0; 5], request.encode_to_vec()].concat()
    }

    fn trailers(code: Code, text: &str) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        Status::new(code, text).add_header(&mut trailers).unwrap();
        trailers
    }

    fn class(status: &Status) -> String {
        status.get_details_error_info().unwrap().metadata["errorClass"].clone()
    }

    #[test]
    fn an_unknown_operation_is_said_as_spark_says_it() {
        let mut call = sail();
        call.reattach(&framed(None)).unwrap();
        let said = trailers(Code::Internal, "invalid argument: operation not found: op-1");
        let translated = call.translate(&said).unwrap();
        assert_eq!(class(&translated), "INVALID_HANDLE.OPERATION_NOT_FOUND");
        assert!(
            translated
                .message()
                .contains("INVALID_HANDLE.OPERATION_NOT_FOUND")
        );
    }

    #[test]
    fn reattaching_in_the_middle_is_refused_loudly() {
        let refused = sail().reattach(&framed(Some("r-7"))).unwrap_err();
        assert_eq!(class(&refused), "INVALID_HANDLE.OPERATION_NOT_FOUND");
        assert!(sail().reattach(&framed(Some(""))).is_ok());
    }

    #[test]
    fn an_ended_session_is_said_as_spark_says_it() {
        let said = "invalid argument: session 11111111-2222-3333-4444-555555555555 is not running";
        let translated = sail().translate(&trailers(Code::Internal, said)).unwrap();
        assert_eq!(class(&translated), "INVALID_HANDLE.SESSION_CHANGED");
    }

    #[test]
    fn all_else_passes_as_it_is() {
        let mut call = sail();
        call.reattach(&framed(None)).unwrap();
        for (code, text) in [
            (Code::Internal, "invalid argument: operation not found: op-2"),
            (Code::Internal, "x: invalid argument: operation not found: op-1"),
            (
                Code::Internal,
                "invalid argument: operation not found: op-1 and more",
            ),
            (Code::NotFound, "invalid argument: operation not found: op-1"),
            (Code::Internal, "invalid argument: session other is not running"),
            (Code::Ok, ""),
        ] {
            assert!(call.translate(&trailers(code, text)).is_none(), "{code:?} {text}");
        }
        let said = trailers(Code::Internal, "invalid argument: operation not found: op-1");
        assert!(sail().translate(&said).is_none(), "only a reattach is translated");
    }
}
