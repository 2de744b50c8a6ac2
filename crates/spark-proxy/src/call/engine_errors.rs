//! Engine errors, translated to errors that clients understand.
//!
//! PySpark re-sends a query, or gives a session up, only for certain error classes of Apache Spark.
//! Sail reports the same conditions with texts of its own (measured with Sail 0.7.2); untranslated,
//! a lost connection would fail the query. Texts are compared as a whole and with the ids of the
//! call, because errors can contain user data.
//!
//! A reattach to Sail that no stream of this proxy can serve ends with an error here: Sail would lose
//! rows silently.
//! Sail also ends the stream of an interrupted query with OK. After a loss of compute, an engine's
//! "no such operation" would make the client run the operation twice.

use crate::call_error::CallError;
use crate::grpc::identity::SparkSessionId;
use crate::grpc::spark_error::{spark_error, spark_error_with_state};
use crate::routes::Route;
use http::HeaderMap;
use session_core::{Engine, Reason};
use session_proto::error::Refused;
use session_proto::spark::ReattachExecuteRequest;
use session_proto::trailers::{append_text, status_of};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// State of a call that is needed to translate its response.
#[derive(Debug)]
pub(crate) struct Translator {
    engine: Engine,
    session: SparkSessionId,
    /// Id of the operation of a `ReattachExecute`.
    reattaching: Option<String>,
    /// Compute was lost recently, including its operations.
    lost: bool,
}

impl Translator {
    /// Creates a translator for a call in this Spark session; `None` if its response needs no
    /// translation. `reattach` is the message of a `ReattachExecute`.
    pub(crate) fn new(
        engine: Engine,
        session: SparkSessionId,
        reattach: Option<&ReattachExecuteRequest>,
        lost: bool,
    ) -> Option<Self> {
        match (engine, reattach) {
            (Engine::Spark, None) => None,
            (Engine::Spark, Some(_)) | (Engine::Sail, _) => Some(Self {
                engine,
                session,
                reattaching: reattach.map(|request| request.operation_id.clone()),
                lost,
            }),
        }
    }

    /// Returns a replacement for an engine status that the client would misinterpret; `None` if it
    /// needs none.
    pub(crate) fn translate(&self, trailers: &HeaderMap) -> Option<CallError> {
        let status = status_of(trailers)?;
        if status.code() != Code::Internal {
            return None;
        }
        match self.engine {
            Engine::Spark => (self.lost && self.reattaching.is_some() && is_unknown_to_spark(&status))
                .then(|| operation_lost().into()),
            Engine::Sail => self.translate_sail(&status),
        }
    }

    fn translate_sail(&self, status: &Status) -> Option<CallError> {
        if let Some(operation) = &self.reattaching
            && status.message() == format!("invalid argument: operation not found: {operation}")
        {
            return Some(if self.lost {
                operation_lost().into()
            } else {
                CallError::Engine(Box::new(operation_not_found(operation)))
            });
        }
        let session = self.session.as_str();
        let ended = format!("invalid argument: session {session} is not running");
        (status.message() == ended).then(|| CallError::Engine(Box::new(session_changed(session))))
    }
}

/// The error of a reattach to an operation on Sail whose stream this proxy does not have.
/// `was_sent` means that this proxy sent the operation to the compute.
///
/// # Errors
/// None, if nothing is known of the operation and the client received nothing: then Sail reports
/// whether it exists.
pub(crate) fn check_not_held(
    request: &ReattachExecuteRequest,
    was_sent: bool,
    lost: bool,
) -> Result<(), CallError> {
    let has_responses = request.last_response_id.as_ref().is_some_and(|id| !id.is_empty());
    if has_responses && lost {
        Err(operation_lost().into())
    } else if has_responses {
        // PySpark reports it as an error, because it has received results.
        Err(CallError::Engine(Box::new(operation_not_found(
            &request.operation_id,
        ))))
    } else if was_sent {
        // After "not found" PySpark would run the operation again.
        Err(stream_lost().into())
    } else {
        Ok(())
    }
}

/// Spark reports an unknown operation or session.
fn is_unknown_to_spark(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| {
        info.metadata.get("errorClass").is_some_and(|class| {
            class == "INVALID_HANDLE.OPERATION_NOT_FOUND" || class == "INVALID_HANDLE.SESSION_NOT_FOUND"
        })
    })
}

/// The operation was lost with its compute.
pub(crate) fn operation_lost() -> Refused {
    Refused::new(
        Reason::OperationLost,
        "The compute that ran the operation was lost, and the operation with it. Whether it took effect is not known. Check before you run it again.",
    )
}

/// The stream of the operation cannot be continued, and the client has received nothing of it.
pub(crate) fn stream_lost() -> Refused {
    Refused::new(
        Reason::OperationLost,
        "This proxy does not have the results of the operation: its client was away for too long (limits.held_stream_timeout), or another proxy has them. Whether it took effect is not known. Check before you run it again.",
    )
}

pub(crate) fn operation_not_found(operation: &str) -> Status {
    spark_error(
        "INVALID_HANDLE.OPERATION_NOT_FOUND",
        &format!(
            "The operation {operation} is not there. If rows of it were read already, run the query again."
        ),
    )
}

/// Apache Spark's error for an interrupted operation.
pub(crate) fn operation_canceled() -> Status {
    spark_error_with_state(
        "OPERATION_CANCELED",
        "The operation was interrupted, or its Spark session ended on the server while it ran.",
        "HY008",
    )
}

/// A newer connection of the same client receives the results.
pub(crate) fn superseded() -> Status {
    Status::aborted("The client has reattached to this operation on another connection.")
}

/// The Spark session is older than the compute, and `wake` of the cluster is `signal`.
pub(crate) fn session_replaced(session: &SparkSessionId, route: &Route) -> Status {
    spark_error(
        "INVALID_HANDLE.SESSION_CHANGED",
        &format!(
            "The Spark session {} ended with the compute that it ran on, {}. Build a new one: \
             spark.stop(), then SparkSession.builder.remote(…).getOrCreate().",
            session.as_str(),
            replacement(route),
        ),
    )
}

/// Adds the replacement of compute to errors about missing names: objects in the engine's memory
/// were lost.
pub(crate) fn explain_replacement(trailers: &mut HeaderMap, route: &Route) {
    if route.replaced_at.is_some()
        && status_of(trailers).is_some_and(|status| status.code() == Code::Internal && is_missing(&status))
    {
        let note = format!(
            " [Berth: this session's compute was replaced, {}. Temporary views, functions, artifacts and the \
             current catalog or database of Spark sessions from before are gone; create them again.]",
            replacement(route)
        );
        append_text(trailers, &note);
    }
}

/// Time and cause of the last replacement of compute.
fn replacement(route: &Route) -> String {
    let at = route.replaced_at.unwrap_or_default();
    if route.replaced_lost() {
        format!("which was lost at {at}")
    } else {
        format!("which was released while the session was idle and started again at {at}")
    }
}

/// A table, view, function or schema is missing. Spark reports it by error class, Sail in its text
/// (measured with Sail 0.7.2).
fn is_missing(status: &Status) -> bool {
    const CLASSES: [&str; 5] = [
        "TABLE_OR_VIEW_NOT_FOUND",
        "VIEW_NOT_FOUND",
        "UNRESOLVED_ROUTINE",
        "ROUTINE_NOT_FOUND",
        "SCHEMA_NOT_FOUND",
    ];
    let class = status
        .get_details_error_info()
        .and_then(|mut info| info.metadata.remove("errorClass"));
    match class {
        Some(class) => CLASSES.contains(&class.as_str()),
        None => {
            let text = status.message();
            text.starts_with("unknown function: ") || text.contains("[TABLE_OR_VIEW_NOT_FOUND]")
        }
    }
}

fn session_changed(session: &str) -> Status {
    spark_error(
        "INVALID_HANDLE.SESSION_CHANGED",
        &format!(
            "The Spark session {session} has ended on the server. Build a new one: \
             stop this one, then SparkSession.builder.remote(…).getOrCreate()."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "11111111-2222-3333-4444-555555555555";

    fn translator(engine: Engine, reattaching: Option<&str>, lost: bool) -> Translator {
        Translator {
            engine,
            session: SESSION.parse().unwrap(),
            reattaching: reattaching.map(str::to_owned),
            lost,
        }
    }

    fn request(last_response_id: Option<&str>) -> ReattachExecuteRequest {
        ReattachExecuteRequest {
            operation_id: "op-1".to_owned(),
            last_response_id: last_response_id.map(str::to_owned),
            ..ReattachExecuteRequest::default()
        }
    }

    fn trailers(status: &Status) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).unwrap();
        trailers
    }

    fn internal(text: &str) -> HeaderMap {
        trailers(&Status::new(Code::Internal, text))
    }

    fn class(stop: Option<CallError>) -> String {
        match stop {
            Some(CallError::Engine(status)) => {
                status.get_details_error_info().unwrap().metadata["errorClass"].clone()
            }
            Some(CallError::Refused(refused)) => refused.reason.to_string(),
            Some(CallError::Deadline | CallError::ClientGone | CallError::NotProcessed) => {
                "another".to_owned()
            }
            None => "as it is".to_owned(),
        }
    }

    #[test]
    fn an_unknown_operation_is_translated_to_the_error_of_spark() {
        let unknown = internal("invalid argument: operation not found: op-1");
        let sail = translator(Engine::Sail, Some("op-1"), false);
        assert_eq!(
            class(sail.translate(&unknown)),
            "INVALID_HANDLE.OPERATION_NOT_FOUND"
        );
        let lost = translator(Engine::Sail, Some("op-1"), true);
        assert_eq!(class(lost.translate(&unknown)), "OPERATION_LOST");
    }

    #[test]
    fn an_operation_unknown_after_a_loss_of_compute_is_lost() {
        let unknown = trailers(&operation_not_found("op-1"));
        for (lost, expected) in [(true, "OPERATION_LOST"), (false, "as it is")] {
            let spark = translator(Engine::Spark, Some("op-1"), lost);
            assert_eq!(class(spark.translate(&unknown)), expected);
        }
        let changed = trailers(&session_changed(SESSION));
        let spark = translator(Engine::Spark, Some("op-1"), true);
        assert_eq!(class(spark.translate(&changed)), "as it is");
    }

    #[test]
    fn only_a_reattach_without_responses_to_an_unknown_operation_is_forwarded() {
        let of = |last, was_sent, lost| class(check_not_held(&request(last), was_sent, lost).err());
        for was_sent in [true, false] {
            assert_eq!(
                of(Some("r-7"), was_sent, false),
                "INVALID_HANDLE.OPERATION_NOT_FOUND"
            );
            assert_eq!(of(Some("r-7"), was_sent, true), "OPERATION_LOST");
        }
        for last in [None, Some("")] {
            assert_eq!(of(last, true, false), "OPERATION_LOST");
            assert_eq!(of(last, false, false), "as it is");
        }
    }

    #[test]
    fn an_ended_session_is_translated_to_the_error_of_spark() {
        let ended = internal(&format!("invalid argument: session {SESSION} is not running"));
        let sail = translator(Engine::Sail, None, false);
        assert_eq!(class(sail.translate(&ended)), "INVALID_HANDLE.SESSION_CHANGED");
    }

    #[test]
    fn other_errors_are_unchanged() {
        let sail = translator(Engine::Sail, Some("op-1"), false);
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
            let status = trailers(&Status::new(code, text));
            assert!(sail.translate(&status).is_none(), "{code:?} {text}");
        }
        let unknown = internal("invalid argument: operation not found: op-1");
        let other = translator(Engine::Sail, None, false);
        assert!(
            other.translate(&unknown).is_none(),
            "only a reattach is translated"
        );
    }
}
