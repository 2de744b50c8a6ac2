//! Answers that need no compute.
//!
//! Clients send calls that are no work: they release what they read, ask what
//! is left, or say goodbye when Python exits. While a session has no compute
//! in use such a call must not bring it up, must not fail the client's program
//! and must not make anything. A message with the request's own `session_id`
//! satisfies PySpark 3.5 to 4.2 (measured); the session's id at the server is
//! echoed as the client last saw it, because a changed one ends the client.

use crate::call::Stop;
use crate::method::Method;
use crate::translate::operation_not_found;
use bytes::{BufMut as _, Bytes, BytesMut};
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

/// Requests that are no work are at most this long (DESIGN §5.5).
pub(crate) const MOST_TALK: usize = 1024;

/// What PySpark 4.1 and later ask before a plan, also before the last one.
const COMPRESSION: [&str; 2] = [
    "spark.connect.session.planCompression.threshold",
    "spark.connect.session.planCompression.defaultAlgorithm",
];
/// What PySpark 4 asks before it shows an error.
const STACK_TRACE: [&str; 2] = [
    "spark.sql.connect.serverStacktrace.enabled",
    "spark.sql.pyspark.jvmStacktrace.enabled",
];

/// The answer to a request that only looks like work; `None` if it is work.
/// `request` is its one message, flag and length included.
pub(crate) fn idle_talk(method: Method, request: &[u8]) -> Option<Bytes> {
    let message = request.get(5..)?;
    match method {
        Method::ExecutePlan => goodbye(&ExecutePlanRequest::decode(message).ok()?),
        Method::Config => small_question(ConfigRequest::decode(message).ok()?),
        _ => None,
    }
}

/// Python exits, and PySpark has the server clear what only `stop()` would.
fn goodbye(request: &ExecutePlanRequest) -> Option<Bytes> {
    let PlanType::Command(command) = request.plan.as_ref()?.op_type.as_ref()? else {
        return None;
    };
    let CommandType::MlCommand(command) = command.command_type.as_ref()? else {
        return None;
    };
    let Some(MlCommand::CleanCache(_)) = command.command else {
        return None;
    };
    Some(framed(&ExecutePlanResponse {
        session_id: request.session_id.clone(),
        server_side_session_id: observed(request.client_observed_server_side_session_id.as_ref()),
        operation_id: request.operation_id.clone().unwrap_or_default(),
        response_id: uuid::Uuid::new_v4().to_string(),
        response_type: Some(ResponseType::ResultComplete(ResultComplete {})),
    }))
}

fn small_question(request: ConfigRequest) -> Option<Bytes> {
    let Operation { op_type } = request.operation?;
    let OpType::Get(get) = op_type? else { return None };
    let all_of = |known: &[&str]| get.keys.iter().all(|key| known.contains(&key.as_str()));
    let pairs = if get.keys.is_empty() {
        return None;
    } else if all_of(&COMPRESSION) {
        Vec::new()
    } else if all_of(&STACK_TRACE) {
        get.keys
            .into_iter()
            .map(|key| KeyValue {
                key,
                value: Some("false".to_owned()),
            })
            .collect()
    } else {
        return None;
    };
    Some(framed(&ConfigResponse {
        session_id: request.session_id,
        server_side_session_id: observed(request.client_observed_server_side_session_id.as_ref()),
        pairs,
        ..ConfigResponse::default()
    }))
}

/// Does a `Config` request only read settings that it names? `request` is its
/// one message, flag and length included.
pub(crate) fn only_reads(request: &[u8]) -> bool {
    let decoded = ConfigRequest::decode(request.get(5..).unwrap_or_default());
    let Ok(Some(Operation { op_type: Some(what) })) = decoded.map(|request| request.operation) else {
        return false;
    };
    match what {
        OpType::Get(_) | OpType::GetWithDefault(_) | OpType::GetOption(_) => true,
        OpType::Set(_) | OpType::GetAll(_) | OpType::Unset(_) | OpType::IsModifiable(_) => false,
    }
}

/// The answer to a call that is no work, where there is no compute for it.
/// `request` is its one message, flag and length included.
pub(crate) fn without_compute(method: Method, request: &[u8], lost: bool) -> Result<Bytes, Stop> {
    let message = request.get(5..).unwrap_or_default();
    match method {
        Method::ReattachExecute => {
            let request: ReattachExecuteRequest = decode(message)?;
            if lost {
                return Err(operation_lost().into());
            }
            // PySpark sends its ExecutePlan again, unless it has read results already.
            Err(Stop::Engine(Box::new(operation_not_found(&request.operation_id))))
        }
        Method::ReleaseExecute => {
            let request: ReleaseExecuteRequest = decode(message)?;
            Ok(framed(&ReleaseExecuteResponse {
                session_id: request.session_id,
                operation_id: Some(request.operation_id),
                server_side_session_id: observed(request.client_observed_server_side_session_id.as_ref()),
            }))
        }
        Method::Interrupt => {
            let request: InterruptRequest = decode(message)?;
            Ok(framed(&InterruptResponse {
                session_id: request.session_id,
                interrupted_ids: Vec::new(),
                server_side_session_id: observed(request.client_observed_server_side_session_id.as_ref()),
            }))
        }
        Method::ReleaseSession => {
            let request: ReleaseSessionRequest = decode(message)?;
            Ok(framed(&ReleaseSessionResponse {
                session_id: request.session_id,
                server_side_session_id: String::new(),
            }))
        }
        Method::GetStatus => {
            let request: GetStatusRequest = decode(message)?;
            Ok(framed(&GetStatusResponse {
                session_id: request.session_id,
                server_side_session_id: observed(request.client_observed_server_side_session_id.as_ref()),
            }))
        }
        Method::FetchErrorDetails => {
            let request: FetchErrorDetailsRequest = decode(message)?;
            Ok(framed(&FetchErrorDetailsResponse {
                session_id: request.session_id,
                server_side_session_id: observed(request.client_observed_server_side_session_id.as_ref()),
            }))
        }
        Method::ExecutePlan
        | Method::AnalyzePlan
        | Method::Config
        | Method::AddArtifacts
        | Method::ArtifactStatus
        | Method::CloneSession
        | Method::ListSqlExecutions
        | Method::GetSqlExecution
        | Method::Unknown => Err(Refused::new(
            Reason::ComputeReleased,
            "The session has no compute at the moment. The next query brings it up.",
        )
        .into()),
    }
}

/// The operation ran on compute that was lost.
pub(crate) fn operation_lost() -> Refused {
    Refused::new(
        Reason::OperationLost,
        "The compute that ran the operation was lost, and the operation with it. Whether it took effect is not known. Check before you run it again.",
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

fn observed(id: Option<&String>) -> String {
    id.cloned().unwrap_or_default()
}

/// With flag and length.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(len + 5);
    out.put_u8(0);
    // Answers are short.
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // The buffer grows, so this cannot fail.
    let _ = message.encode(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_proto::spark::{Command, MlCommand as Ml, Plan, config_request::Get, ml_command::CleanCache};

    const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn config(keys: &[&str]) -> Bytes {
        framed(&ConfigRequest {
            session_id: ID.to_owned(),
            client_observed_server_side_session_id: Some("server".to_owned()),
            operation: Some(Operation {
                op_type: Some(OpType::Get(Get {
                    keys: keys.iter().map(|&key| key.to_owned()).collect(),
                })),
            }),
            ..ConfigRequest::default()
        })
    }

    fn execute(command: Option<MlCommand>) -> Bytes {
        framed(&ExecutePlanRequest {
            session_id: ID.to_owned(),
            operation_id: Some("op".to_owned()),
            plan: Some(Plan {
                op_type: Some(PlanType::Command(Command {
                    command_type: Some(CommandType::MlCommand(Ml { command })),
                })),
            }),
            ..ExecutePlanRequest::default()
        })
    }

    #[test]
    fn what_pyspark_says_at_exit_is_not_work() {
        let reply = idle_talk(Method::Config, &config(&COMPRESSION)).unwrap();
        let reply = ConfigResponse::decode(&reply[5..]).unwrap();
        assert_eq!(
            (reply.session_id.as_str(), reply.server_side_session_id.as_str()),
            (ID, "server")
        );
        let reply = idle_talk(
            Method::ExecutePlan,
            &execute(Some(MlCommand::CleanCache(CleanCache {}))),
        )
        .unwrap();
        let reply = ExecutePlanResponse::decode(&reply[5..]).unwrap();
        assert_eq!(
            (reply.session_id.as_str(), reply.operation_id.as_str()),
            (ID, "op")
        );
        assert!(matches!(
            reply.response_type,
            Some(ResponseType::ResultComplete(_))
        ));
    }

    #[test]
    fn what_is_asked_before_an_error_is_shown_has_a_value() {
        let reply = idle_talk(Method::Config, &config(&STACK_TRACE[..1])).unwrap();
        let reply = ConfigResponse::decode(&reply[5..]).unwrap();
        assert_eq!(reply.pairs[0].key, STACK_TRACE[0]);
        assert_eq!(reply.pairs[0].value.as_deref(), Some("false"));
    }

    #[test]
    fn all_else_is_work() {
        for keys in [
            &["spark.sql.ansi.enabled"][..],
            &[],
            &[COMPRESSION[0], "spark.app.name"],
        ] {
            assert!(idle_talk(Method::Config, &config(keys)).is_none(), "{keys:?}");
        }
        assert!(idle_talk(Method::ExecutePlan, &execute(None)).is_none());
        assert!(idle_talk(Method::AnalyzePlan, &config(&COMPRESSION)).is_none());
        assert!(idle_talk(Method::ExecutePlan, b"").is_none());
    }

    #[test]
    fn what_only_reads_is_told_apart() {
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
        let Err(Stop::Refused(refused)) = without_compute(Method::ReattachExecute, &request, true) else {
            panic!("not refused");
        };
        assert_eq!(refused.reason, Reason::OperationLost);
        let Err(Stop::Engine(status)) = without_compute(Method::ReattachExecute, &request, false) else {
            panic!("not as Spark says it");
        };
        assert!(status.message().contains("INVALID_HANDLE.OPERATION_NOT_FOUND"));
    }
}
