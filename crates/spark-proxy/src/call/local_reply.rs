//! Local replies: responses without compute.
//!
//! Clients send calls that are not work: they release results, read settings, or clean up when
//! Python exits. While a session has no compute in use, such a call must not start compute, fail
//! the client's program or create anything.
//!
//! A local reply lacks the engine's own id of the Spark session (`server_side_session_id`). PySpark
//! 4 stores the id of the first reply, even an empty one, and fails on every later reply with
//! another id (measured with 4.1.3 and 4.3.0). So the id is copied from the request. A client that
//! has no id yet gets no local reply where it would store the id: what may be its first work counts
//! as work ([`exit_or_error_reply`]), and other calls end with an error.

use crate::call::client_version::Client;
use crate::call::engine_errors::{operation_lost, operation_not_found};
use crate::call_error::CallError;
use crate::grpc::method::Method;
use crate::grpc::{framed, payload};
use crate::metrics::ClientLanguage;
use bytes::Bytes;
use prost::Message;
use session_core::Reason;
use session_proto::error::Refused;
use session_proto::spark::command::CommandType;
use session_proto::spark::config_request::Operation;
use session_proto::spark::config_request::operation::OpType;
use session_proto::spark::execute_plan_response::{ResponseType, ResultComplete};
use session_proto::spark::ml_command::Command as MlCommand;
use session_proto::spark::plan::OpType as PlanType;
use session_proto::spark::{
    ConfigRequest, ConfigResponse, ExecutePlanRequest, ExecutePlanResponse, FetchErrorDetailsRequest,
    FetchErrorDetailsResponse, GetStatusRequest, GetStatusResponse, InterruptRequest, InterruptResponse,
    KeyValue, ReattachExecuteRequest, ReleaseExecuteRequest, ReleaseExecuteResponse, ReleaseSessionRequest,
    ReleaseSessionResponse,
};
use tonic::Status;

/// Maximum length of a request that gets a local reply.
pub(crate) const MAX_LOCAL_REQUEST: usize = 1024;

/// Settings that PySpark 4.1 and later read before a plan, including the last one.
const COMPRESSION: [&str; 2] = [
    "spark.connect.session.planCompression.threshold",
    "spark.connect.session.planCompression.defaultAlgorithm",
];
/// Settings that PySpark 4 reads before it shows an error.
const STACK_TRACE: [&str; 2] = [
    "spark.sql.connect.serverStacktrace.enabled",
    "spark.sql.pyspark.jvmStacktrace.enabled",
];

/// Local reply to requests that PySpark sends when Python exits or when it shows an error; `None`
/// for real work. `request` is the only message, with flag and length.
///
/// A new client's first query begins with the same requests, but without an observed server-side
/// session id.
pub(crate) fn exit_or_error_reply(method: Method, request: &[u8]) -> Option<Result<Bytes, CallError>> {
    let message = payload(request)?;
    match method {
        Method::ExecutePlan => clean_cache(&ExecutePlanRequest::decode(message).ok()?).map(Ok),
        Method::Config => config_get(ConfigRequest::decode(message).ok()?),
        _ => None,
    }
}

/// PySpark clears the server's cache when Python exits without `stop()`.
fn clean_cache(request: &ExecutePlanRequest) -> Option<Bytes> {
    let PlanType::Command(command) = request.plan.as_ref()?.op_type.as_ref()? else {
        return None;
    };
    let CommandType::MlCommand(command) = command.command_type.as_ref()? else {
        return None;
    };
    let Some(MlCommand::CleanCache(_)) = command.command else {
        return None;
    };
    let server_side_session_id = observed_server_id(request.client_observed_server_side_session_id.as_ref())?;
    Some(framed(&ExecutePlanResponse {
        session_id: request.session_id.clone(),
        server_side_session_id,
        operation_id: request.operation_id.clone().unwrap_or_default(),
        response_id: uuid::Uuid::new_v4().to_string(),
        response_type: Some(ResponseType::ResultComplete(ResultComplete {})),
    }))
}

fn config_get(request: ConfigRequest) -> Option<Result<Bytes, CallError>> {
    let Operation { op_type } = request.operation?;
    let OpType::Get(get) = op_type? else { return None };
    let all_of = |known: &[&str]| get.keys.iter().all(|key| known.contains(&key.as_str()));
    let observed = observed_server_id(request.client_observed_server_side_session_id.as_ref());
    let (server_side_session_id, pairs) = if get.keys.is_empty() {
        return None;
    } else if all_of(&COMPRESSION) {
        // Without values, PySpark sends its plan uncompressed and reads the settings again before
        // the next plan.
        (observed?, Vec::new())
    } else if all_of(&STACK_TRACE) {
        let Some(observed) = observed.or_else(|| empty_server_id(request.client_type.as_deref())) else {
            return Some(Err(stack_trace_unknown()));
        };
        let pairs = get.keys.into_iter().map(|key| KeyValue {
            key,
            value: Some("false".to_owned()),
        });
        (observed, pairs.collect())
    } else {
        return None;
    };
    Some(Ok(framed(&ConfigResponse {
        session_id: request.session_id,
        server_side_session_id,
        pairs,
        ..ConfigResponse::default()
    })))
}

/// PySpark then shows the error with the stack trace that it has. The status is plain: after
/// ErrorInfo PySpark would read the settings again.
fn stack_trace_unknown() -> CallError {
    CallError::Engine(Box::new(Status::failed_precondition(
        "The session has no compute at the moment, so its settings cannot be read.",
    )))
}

/// Whether a `Config` request only reads named settings. `request` is the only message, with flag
/// and length.
pub(crate) fn only_reads(request: &[u8]) -> bool {
    let decoded = ConfigRequest::decode(payload(request).unwrap_or_default());
    let Ok(Some(Operation { op_type: Some(what) })) = decoded.map(|request| request.operation) else {
        return false;
    };
    match what {
        OpType::Get(_) | OpType::GetWithDefault(_) | OpType::GetOption(_) => true,
        OpType::Set(_) | OpType::GetAll(_) | OpType::Unset(_) | OpType::IsModifiable(_) => false,
    }
}

/// Local reply to a call that is not work, without compute. `request` is the only message, with
/// flag and length.
pub(crate) fn without_compute(method: Method, request: &[u8], lost: bool) -> Result<Bytes, CallError> {
    let message = payload(request).unwrap_or_default();
    match method {
        Method::ReattachExecute => Err(reattach_error(&decode(message)?, lost)),
        Method::ReleaseExecute => Ok(released(decode(message)?)),
        Method::Interrupt => interrupted(decode(message)?),
        Method::ReleaseSession => Ok(session_released(decode(message)?)),
        Method::GetStatus => status(decode(message)?),
        Method::FetchErrorDetails => Ok(no_error_details(decode(message)?)),
        Method::ExecutePlan
        | Method::AnalyzePlan
        | Method::Config
        | Method::AddArtifacts
        | Method::ArtifactStatus
        | Method::CloneSession
        | Method::ListSqlExecutions
        | Method::GetSqlExecution
        | Method::Unknown => Err(compute_released().into()),
    }
}

fn reattach_error(request: &ReattachExecuteRequest, lost: bool) -> CallError {
    if lost {
        return operation_lost().into();
    }
    // PySpark re-sends its ExecutePlan, unless it has already received results.
    CallError::Engine(Box::new(operation_not_found(&request.operation_id)))
}

fn released(request: ReleaseExecuteRequest) -> Bytes {
    framed(&ReleaseExecuteResponse {
        session_id: request.session_id,
        operation_id: Some(request.operation_id),
        // No client stores the id of this reply.
        server_side_session_id: observed_server_id(request.client_observed_server_side_session_id.as_ref())
            .unwrap_or_default(),
    })
}

fn interrupted(request: InterruptRequest) -> Result<Bytes, CallError> {
    let server_side_session_id = stored_server_id(
        request.client_observed_server_side_session_id.as_ref(),
        request.client_type.as_deref(),
    )?;
    Ok(framed(&InterruptResponse {
        session_id: request.session_id,
        interrupted_ids: Vec::new(),
        server_side_session_id,
    }))
}

fn session_released(request: ReleaseSessionRequest) -> Bytes {
    framed(&ReleaseSessionResponse {
        session_id: request.session_id,
        // The request has no such field, and the client ends here.
        server_side_session_id: String::new(),
    })
}

fn status(request: GetStatusRequest) -> Result<Bytes, CallError> {
    let server_side_session_id = stored_server_id(
        request.client_observed_server_side_session_id.as_ref(),
        request.client_type.as_deref(),
    )?;
    Ok(framed(&GetStatusResponse {
        session_id: request.session_id,
        server_side_session_id,
    }))
}

fn no_error_details(request: FetchErrorDetailsRequest) -> Bytes {
    framed(&FetchErrorDetailsResponse {
        session_id: request.session_id,
        // No client stores the id of this reply.
        server_side_session_id: observed_server_id(request.client_observed_server_side_session_id.as_ref())
            .unwrap_or_default(),
    })
}

fn compute_released() -> Refused {
    Refused::new(
        Reason::ComputeReleased,
        "The session has no compute at the moment, so nothing runs on it. The next query brings it up.",
    )
}

fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Refused> {
    M::decode(message).map_err(|_| {
        Refused::new(
            Reason::MalformedMessage,
            "The request is not a Spark Connect message: it cannot be decoded.",
        )
    })
}

/// The server-side session id in the request.
fn observed_server_id(id: Option<&String>) -> Option<String> {
    id.filter(|id| !id.is_empty()).cloned()
}

/// The server-side session id for a client that may store it.
fn stored_server_id(observed: Option<&String>, client_type: Option<&str>) -> Result<String, Refused> {
    observed_server_id(observed)
        .or_else(|| empty_server_id(client_type))
        .ok_or_else(compute_released)
}

/// An empty server-side session id, for a client that does not store the first one. PySpark's
/// `client_type` is `… spark/4.1.3 … python/3.11.7`.
fn empty_server_id(client_type: Option<&str>) -> Option<String> {
    let client = Client::parse(client_type.unwrap_or_default());
    let major = client
        .spark
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let keeps = client.language == ClientLanguage::Python && major.is_none_or(|major| major >= 4);
    (!keeps).then(String::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_proto::spark::{Command, MlCommand as Ml, Plan, config_request::Get, ml_command::CleanCache};

    const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    const PYSPARK_4: &str = "_SPARK_CONNECT_PYTHON spark/4.1.3 os/linux python/3.11.7";
    const PYSPARK_3: &str = "_SPARK_CONNECT_PYTHON spark/3.5.9 os/linux python/3.11.7";
    const SCALA: &str = "_SPARK_CONNECT_SCALA spark/4.1.3 scala/2.13.17 jvm/17.0.15 os/linux";

    fn config_of(keys: &[&str], client: &str, observed: Option<&str>) -> Bytes {
        framed(&ConfigRequest {
            session_id: ID.to_owned(),
            client_type: Some(client.to_owned()),
            client_observed_server_side_session_id: observed.map(str::to_owned),
            operation: Some(Operation {
                op_type: Some(OpType::Get(Get {
                    keys: keys.iter().map(|&key| key.to_owned()).collect(),
                })),
            }),
            ..ConfigRequest::default()
        })
    }

    fn config(keys: &[&str]) -> Bytes {
        config_of(keys, PYSPARK_4, Some("server"))
    }

    fn execute_of(command: Option<MlCommand>, observed: Option<&str>) -> Bytes {
        framed(&ExecutePlanRequest {
            session_id: ID.to_owned(),
            operation_id: Some("op".to_owned()),
            client_observed_server_side_session_id: observed.map(str::to_owned),
            plan: Some(Plan {
                op_type: Some(PlanType::Command(Command {
                    command_type: Some(CommandType::MlCommand(Ml { command })),
                })),
            }),
            ..ExecutePlanRequest::default()
        })
    }

    fn execute(command: Option<MlCommand>) -> Bytes {
        execute_of(command, Some("server"))
    }

    fn clean_cache() -> Option<MlCommand> {
        Some(MlCommand::CleanCache(CleanCache {}))
    }

    /// The local reply to a request.
    fn reply<M: Message + Default>(method: Method, request: &[u8]) -> M {
        match exit_or_error_reply(method, request) {
            Some(Ok(reply)) => M::decode(&reply[5..]).unwrap(),
            Some(Err(_)) => panic!("an error"),
            None => panic!("work"),
        }
    }

    #[test]
    fn exit_requests_of_pyspark_get_local_replies() {
        let reply1: ConfigResponse = reply(Method::Config, &config(&COMPRESSION));
        assert_eq!(
            (reply1.session_id.as_str(), reply1.server_side_session_id.as_str()),
            (ID, "server")
        );
        let reply2: ExecutePlanResponse = reply(Method::ExecutePlan, &execute(clean_cache()));
        assert_eq!(
            (
                reply2.session_id.as_str(),
                reply2.server_side_session_id.as_str(),
                reply2.operation_id.as_str()
            ),
            (ID, "server", "op")
        );
        assert!(matches!(
            reply2.response_type,
            Some(ResponseType::ResultComplete(_))
        ));
    }

    #[test]
    fn requests_without_an_observed_server_id_are_work() {
        for observed in [None, Some("")] {
            let question = config_of(&COMPRESSION, PYSPARK_4, observed);
            assert!(exit_or_error_reply(Method::Config, &question).is_none());
            let exit = execute_of(clean_cache(), observed);
            assert!(exit_or_error_reply(Method::ExecutePlan, &exit).is_none());
        }
    }

    #[test]
    fn a_new_pyspark_never_gets_an_empty_server_id() {
        for (client, observed, stored) in [
            (PYSPARK_4, None, None),
            ("mine/1 spark/5.0.0 os/linux python/3.14.0", None, None),
            ("_SPARK_CONNECT_PYTHON spark/dev python/3.14.0", None, None),
            (PYSPARK_4, Some("server"), Some("server")),
            // These have no such field, or ignore an empty one.
            (PYSPARK_3, None, Some("")),
            (SCALA, None, Some("")),
            ("", None, Some("")),
        ] {
            let question = config_of(&STACK_TRACE[..1], client, observed);
            let reply = exit_or_error_reply(Method::Config, &question).unwrap();
            let id = reply.as_ref().ok().map(|reply| {
                ConfigResponse::decode(&reply[5..])
                    .unwrap()
                    .server_side_session_id
            });
            assert_eq!(id.as_deref(), stored, "Config, {client}");
            if let Err(stop) = reply {
                // After ErrorInfo PySpark would repeat the request.
                assert!(matches!(stop, CallError::Engine(status) if status.details().is_empty()));
            }

            let interrupt = framed(&InterruptRequest {
                session_id: ID.to_owned(),
                client_type: Some(client.to_owned()),
                client_observed_server_side_session_id: observed.map(str::to_owned),
                ..InterruptRequest::default()
            });
            let reply = without_compute(Method::Interrupt, &interrupt, false).ok();
            let id = reply.map(|reply| {
                InterruptResponse::decode(&reply[5..])
                    .unwrap()
                    .server_side_session_id
            });
            assert_eq!(id.as_deref(), stored, "Interrupt, {client}");

            let status = framed(&GetStatusRequest {
                session_id: ID.to_owned(),
                client_type: Some(client.to_owned()),
                client_observed_server_side_session_id: observed.map(str::to_owned),
                ..GetStatusRequest::default()
            });
            let reply = without_compute(Method::GetStatus, &status, false).ok();
            let id = reply.map(|reply| {
                GetStatusResponse::decode(&reply[5..])
                    .unwrap()
                    .server_side_session_id
            });
            assert_eq!(id.as_deref(), stored, "GetStatus, {client}");
        }
    }

    #[test]
    fn stack_trace_settings_get_a_value() {
        let reply: ConfigResponse = reply(Method::Config, &config(&STACK_TRACE[..1]));
        assert_eq!(reply.pairs[0].key, STACK_TRACE[0]);
        assert_eq!(reply.pairs[0].value.as_deref(), Some("false"));
    }

    #[test]
    fn other_requests_are_work() {
        for keys in [
            &["spark.sql.ansi.enabled"][..],
            &[],
            &[COMPRESSION[0], "spark.app.name"],
        ] {
            assert!(
                exit_or_error_reply(Method::Config, &config(keys)).is_none(),
                "{keys:?}"
            );
        }
        assert!(exit_or_error_reply(Method::ExecutePlan, &execute(None)).is_none());
        assert!(exit_or_error_reply(Method::AnalyzePlan, &config(&COMPRESSION)).is_none());
        assert!(exit_or_error_reply(Method::ExecutePlan, b"").is_none());
    }

    #[test]
    fn read_only_config_requests_are_recognized() {
        assert!(only_reads(&config(&["spark.sql.session.timeZone"])));
        let other = |op_type| {
            framed(&ConfigRequest {
                session_id: ID.to_owned(),
                operation: Some(Operation { op_type }),
                ..ConfigRequest::default()
            })
        };
        for what in [
            Some(OpType::Set(session_proto::spark::config_request::Set::default())),
            Some(OpType::Unset(
                session_proto::spark::config_request::Unset::default(),
            )),
            Some(OpType::GetAll(
                session_proto::spark::config_request::GetAll::default(),
            )),
            None,
        ] {
            assert!(!only_reads(&other(what)));
        }
        assert!(!only_reads(b"no message"));
    }

    #[test]
    fn an_operation_on_lost_compute_is_lost() {
        let request = framed(&ReattachExecuteRequest {
            session_id: ID.to_owned(),
            operation_id: "op".to_owned(),
            ..ReattachExecuteRequest::default()
        });
        let Err(CallError::Refused(refused)) = without_compute(Method::ReattachExecute, &request, true)
        else {
            panic!("not a Berth error");
        };
        assert_eq!(refused.reason, Reason::OperationLost);
        let Err(CallError::Engine(status)) = without_compute(Method::ReattachExecute, &request, false) else {
            panic!("not an engine error");
        };
        assert!(status.message().contains("INVALID_HANDLE.OPERATION_NOT_FOUND"));
    }
}
