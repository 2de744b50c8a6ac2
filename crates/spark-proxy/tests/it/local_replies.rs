//! Local replies: calls that need no compute wake, create and fail nothing while there is none.

use crate::common::{Reply, Rig, Rpc, within};
use prost::Message;
use session_core::Reason;
use session_proto::internal::{Route, RouteStatus};
use session_proto::spark::config_request::operation::OpType;
use session_proto::spark::config_request::{Get, Operation};
use session_proto::spark::{
    Command, ConfigRequest, ConfigResponse, ExecutePlanRequest, ExecutePlanResponse, MlCommand, Plan,
    ReattachExecuteRequest, ReleaseExecuteRequest, ReleaseExecuteResponse, command, ml_command, plan,
};
use std::time::Duration;
use test_support::fake_spark::{OPERATION, SPARK_SESSION, Shape, framed, request};
use tonic::Code;
use tonic_types::StatusExt as _;

const SERVER: &str = "the-id-at-the-server";

async fn idle() -> Rig {
    let rig = Rig::start().await;
    let route = Route {
        status: RouteStatus::Idle.into(),
        backend: None,
        ..rig.route()
    };
    rig.routes.set(route);
    rig
}

fn rpc(rig: &Rig, method: &str, message: &impl Message) -> Rpc {
    Rpc::spark(method)
        .bearer(&rig.token())
        .body(framed(&message.encode_to_vec()))
}

fn message<M: Message + Default>(reply: &Reply) -> M {
    assert_eq!(reply.code(), Code::Ok, "{reply:?}");
    M::decode(&reply.body[5..]).expect("a message")
}

fn assert_nothing_woke(rig: &Rig) {
    assert!(rig.routes.asked().iter().all(|asked| !asked.wake));
    assert!(rig.spark.seen().requests.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_not_work_get_local_replies_and_never_wake() {
    let rig = idle().await;
    for method in ["Interrupt", "ReleaseSession", "GetStatus"] {
        let reply = rig.call(Rpc::spark(method).bearer(&rig.token())).await;
        assert_eq!(reply.code(), Code::Ok, "{method}");
        assert_eq!(reply.echoed().session_id, SPARK_SESSION, "{method}");
    }
    let release = ReleaseExecuteRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: OPERATION.to_owned(),
        client_observed_server_side_session_id: Some(SERVER.to_owned()),
        ..ReleaseExecuteRequest::default()
    };
    let reply: ReleaseExecuteResponse = message(&rig.call(rpc(&rig, "ReleaseExecute", &release)).await);
    assert_eq!(
        (reply.session_id.as_str(), reply.operation_id()),
        (SPARK_SESSION, OPERATION)
    );
    assert_eq!(reply.server_side_session_id, SERVER);
    rig.call(Rpc::spark("ListSqlExecutions").bearer(&rig.token()))
        .await
        .refused(Reason::ComputeReleased);
    assert_nothing_woke(&rig);
    assert_eq!(rig.routes.asked().len(), 1, "an idle route is cached too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_of_a_client_leaves_an_idle_session_idle() {
    let rig = idle().await;
    let compression = ConfigRequest {
        session_id: SPARK_SESSION.to_owned(),
        client_observed_server_side_session_id: Some(SERVER.to_owned()),
        operation: Some(Operation {
            op_type: Some(OpType::Get(Get {
                keys: vec![
                    "spark.connect.session.planCompression.threshold".to_owned(),
                    "spark.connect.session.planCompression.defaultAlgorithm".to_owned(),
                ],
            })),
        }),
        ..ConfigRequest::default()
    };
    let reply: ConfigResponse = message(&rig.call(rpc(&rig, "Config", &compression)).await);
    assert_eq!(reply.server_side_session_id, SERVER);
    assert_eq!(reply.session_id, SPARK_SESSION);
    let goodbye = ExecutePlanRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: Some(OPERATION.to_owned()),
        client_observed_server_side_session_id: Some(SERVER.to_owned()),
        plan: Some(Plan {
            op_type: Some(plan::OpType::Command(Command {
                command_type: Some(command::CommandType::MlCommand(MlCommand {
                    command: Some(ml_command::Command::CleanCache(ml_command::CleanCache {})),
                })),
            })),
        }),
        ..ExecutePlanRequest::default()
    };
    let reply: ExecutePlanResponse = message(&rig.call(rpc(&rig, "ExecutePlan", &goodbye)).await);
    assert_eq!(reply.session_id, SPARK_SESSION);
    assert_eq!(reply.server_side_session_id, SERVER);
    assert_nothing_woke(&rig);

    // A query wakes the session.
    rig.routes.set(rig.route());
    let reply = rig.call(rig.rpc().body(request(b"SELECT 1"))).await;
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(
        &reply.echoed().content[..],
        b"SELECT 1",
        "an inspected request is forwarded complete"
    );
}

/// PySpark 4.1 and later send this request before their first query, and store the server-side
/// session id of the response, which only the engine has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_request_of_a_new_client_wakes_and_is_held() {
    let rig = idle().await;
    let question = ConfigRequest {
        session_id: SPARK_SESSION.to_owned(),
        client_type: Some("_SPARK_CONNECT_PYTHON spark/4.1.3 os/linux python/3.11.7".to_owned()),
        operation: Some(Operation {
            op_type: Some(OpType::Get(Get {
                keys: vec![
                    "spark.connect.session.planCompression.threshold".to_owned(),
                    "spark.connect.session.planCompression.defaultAlgorithm".to_owned(),
                ],
            })),
        }),
        ..ConfigRequest::default()
    };
    let client = rig.client().await;
    let question = rpc(&rig, "Config", &question);
    let held = tokio::spawn(async move { client.call(question).await });
    within("the session is woken", async {
        while !rig.routes.asked().iter().any(|asked| asked.wake) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(rig.spark.seen().requests.is_empty());
    rig.routes.announce(Route {
        version: 2,
        ..rig.route()
    });
    let reply = within("the engine answers", held).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{reply:?}");
    assert_eq!(rig.spark.seen().requests.len(), 1, "the engine's own answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reattach_without_compute_ends_with_operation_not_found() {
    let rig = idle().await;
    let reattach = ReattachExecuteRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: OPERATION.to_owned(),
        ..ReattachExecuteRequest::default()
    };
    let reply = rig.call(rpc(&rig, "ReattachExecute", &reattach)).await;
    let info = reply.status().get_details_error_info().unwrap();
    assert_eq!(info.metadata["errorClass"], "INVALID_HANDLE.OPERATION_NOT_FOUND");
    assert!(
        reply
            .status()
            .message()
            .contains("INVALID_HANDLE.OPERATION_NOT_FOUND")
    );
    assert_nothing_woke(&rig);
}

/// A route whose compute replaced one that was lost.
fn lost(rig: &Rig, seconds_ago: u64) -> Route {
    Route {
        version: 2,
        generation: 2,
        compute_lost_at: Some(session_proto::convert::timestamp(
            session_core::Timestamp::from_millis((rig.now() - seconds_ago) * 1000),
        )),
        ..rig.route()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_on_lost_compute_is_not_repeated() {
    for (engine, shape) in [("spark", Shape::SparkUnknown), ("sail", Shape::SailUnknown)] {
        let rig = Rig::start().await;
        let reattach = ReattachExecuteRequest {
            session_id: SPARK_SESSION.to_owned(),
            operation_id: OPERATION.to_owned(),
            ..ReattachExecuteRequest::default()
        };
        let reattach = || rpc(&rig, "ReattachExecute", &reattach).shape(shape);
        let on_engine = |mut route: Route| {
            if let Some(backend) = &mut route.backend {
                backend.engine = engine.to_owned();
            }
            route
        };
        rig.routes.announce(on_engine(lost(&rig, 14 * 60)));
        rig.call(reattach()).await.refused(Reason::OperationLost);
        // The session restarts and has no compute.
        rig.routes.announce(Route {
            version: 3,
            status: RouteStatus::Pending.into(),
            backend: None,
            ..lost(&rig, 60)
        });
        rig.call(reattach()).await.refused(Reason::OperationLost);
        rig.routes.announce(Route {
            version: 4,
            ..on_engine(lost(&rig, 16 * 60))
        });
        let reply = within("an old loss no longer matters", async {
            loop {
                let reply = rig.call(reattach()).await;
                if reply.code() == Code::Internal {
                    return reply;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let info = reply.status().get_details_error_info().unwrap();
        assert_eq!(
            info.metadata["errorClass"], "INVALID_HANDLE.OPERATION_NOT_FOUND",
            "{engine}"
        );
    }
}
