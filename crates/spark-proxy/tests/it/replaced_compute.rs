//! Replaced compute: stored settings are restored, or the client gets an error, and errors about
//! missing objects name the replacement.

use crate::common;
use crate::common::{Rig, Rpc};
use prost::Message;
use session_proto::internal::Route;
use session_proto::spark::config_request::operation::OpType;
use session_proto::spark::config_request::{Get, Operation, Set, Unset};
use session_proto::spark::{ConfigRequest, KeyValue};
use std::time::Duration;
use test_support::fake_spark::{SPARK_SESSION, Shape, framed, request};
use tonic::Code;
use tonic_types::StatusExt as _;

fn config(rig: &Rig, op: OpType) -> Rpc {
    config_with(&rig.token(), op)
}

fn config_with(token: &str, op: OpType) -> Rpc {
    let message = ConfigRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation: Some(Operation { op_type: Some(op) }),
        ..ConfigRequest::default()
    };
    Rpc::spark("Config")
        .bearer(token)
        .body(framed(&message.encode_to_vec()))
}

fn set(pairs: &[(&str, &str)]) -> OpType {
    OpType::Set(Set {
        pairs: pairs
            .iter()
            .map(|(key, value)| KeyValue {
                key: (*key).to_owned(),
                value: Some((*value).to_owned()),
            })
            .collect(),
        ..Set::default()
    })
}

/// The route of a second generation.
fn replaced(rig: &Rig) -> Route {
    let at = session_core::Timestamp::from_millis((rig.now() - 60) * 1000);
    Route {
        version: 2,
        generation: 2,
        compute_replaced_at: Some(session_proto::convert::timestamp(at)),
        ..rig.route()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_settings_are_stored_before_the_call_ends() {
    let rig = Rig::start().await;
    let reply = rig
        .call(config(&rig, set(&[("spark.a", "1"), ("spark.b", "2")])))
        .await;
    assert_eq!(reply.code(), Code::Ok);
    let unset = OpType::Unset(Unset {
        keys: vec!["spark.a".to_owned()],
    });
    assert_eq!(rig.call(config(&rig, unset)).await.code(), Code::Ok);
    // Requests that change nothing or failed are not stored.
    let get = OpType::Get(Get {
        keys: vec!["spark.a".to_owned()],
    });
    assert_eq!(rig.call(config(&rig, get)).await.code(), Code::Ok);
    let refused = rig
        .call(config(&rig, set(&[("spark.c", "3")])).shape(Shape::Error))
        .await;
    assert_eq!(refused.code(), Code::Internal);
    let binds = rig.routes.binds();
    assert_eq!(binds.len(), 2, "{binds:?}");
    assert_eq!(binds[0].set.len(), 2);
    assert_eq!(binds[0].set["spark.b"], "2");
    assert_eq!(
        (binds[0].generation, binds[0].spark_session_id.as_str()),
        (1, SPARK_SESSION)
    );
    assert_eq!(binds[1].unset, ["spark.a"]);

    // PySpark 3.5 sets its connection string. A token is never stored.
    let token = rig.token();
    let url = format!("sc://localhost:8085/;token={token}");
    let remote = set(&[
        ("spark.remote", "sc://localhost"),
        ("spark.url", &url),
        ("spark.jwt", &token),
    ]);
    let reply = rig.call(config_with(&token, remote)).await;
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(rig.routes.binds().len(), 2);

    // The engine has accepted the settings in either case.
    rig.routes.refuse_binds(Some(tonic::Status::unavailable("away")));
    let reply = rig.call(config(&rig, set(&[("spark.a", "1")]))).await;
    assert_eq!(reply.code(), Code::Ok);
    assert_eq!(rig.metric("spark_proxy_settings_dropped_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_spark_session_is_prepared_before_its_first_call() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    rig.routes.set(Route {
        kept_spark_sessions: vec![SPARK_SESSION.to_owned()],
        ..replaced(&rig)
    });
    rig.routes.refuse_binds(Some(tonic::Status::unavailable("away")));
    let refused = rig.call(rig.rpc().body(request(b"SELECT 1"))).await;
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        rig.spark.seen().requests.is_empty(),
        "it would run with other settings"
    );
    rig.routes.refuse_binds(None);
    for _ in 0..3 {
        let reply = rig.call(rig.rpc().body(request(b"SELECT 1"))).await;
        assert_eq!(reply.code(), Code::Ok);
    }
    let binds = rig.routes.binds();
    assert_eq!(binds.len(), 2, "one failed request, then one: {binds:?}");
    assert_eq!((binds[1].generation, binds[1].set.len()), (2, 0));
    // A Spark session without stored settings needs no request.
    let other = String::from(SPARK_SESSION).replace("0123", "4567");
    let mut body = request(b"SELECT 1").to_vec();
    body[7..43].copy_from_slice(other.as_bytes());
    assert_eq!(rig.call(rig.rpc().body(body.into())).await.code(), Code::Ok);
    assert_eq!(rig.routes.binds().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replacement_error_is_sent_once_per_spark_session() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    rig.routes.set(Route {
        signals_replacement: true,
        ..replaced(&rig)
    });
    rig.routes.replace_next();
    let told = rig.call(rig.rpc().body(request(b"SELECT 1"))).await;
    let info = told.status().get_details_error_info().unwrap();
    assert_eq!(info.metadata["errorClass"], "INVALID_HANDLE.SESSION_CHANGED");
    assert!(
        told.status()
            .message()
            .contains("released while the session was idle")
    );
    assert!(rig.spark.seen().requests.is_empty());
    let reply = rig.call(rig.rpc().body(request(b"SELECT 1"))).await;
    assert_eq!(reply.code(), Code::Ok, "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_objects_after_a_replacement_are_explained() {
    let rig = Rig::start().await;
    let missing = || {
        rig.rpc()
            .shape(Shape::MissingTable)
            .body(request(b"SELECT * FROM v"))
    };
    let before = rig.call(missing()).await;
    assert!(!before.status().message().contains("Berth"), "{before:?}");
    rig.routes.announce(replaced(&rig));
    common::within("the new route", async {
        while rig.call(rig.rpc()).await.head["x-berth-generation"] != "2" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let after = rig.call(missing()).await;
    let status = after.status();
    assert!(status.message().starts_with(before.status().message()));
    assert!(status.message().contains("compute was replaced"), "{status:?}");
    assert!(status.message().contains("Temporary views"), "{status:?}");
    let details = tonic_types::pb::Status::decode(status.details()).unwrap();
    assert_eq!(
        details.message,
        status.message(),
        "clients show the text of the details"
    );
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["errorClass"], "TABLE_OR_VIEW_NOT_FOUND");
    // Other errors are unchanged.
    let other = rig.call(rig.rpc().shape(Shape::Error)).await;
    assert_eq!(other.status().message(), "kaputt");
}

/// Each change is a request to session-manager, one at a time per session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_changes_are_stored_in_order() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    rig.routes.slow_answers(Duration::from_millis(20));
    let client = rig.client().await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (client, rpc) = (client.clone(), config(&rig, set(&[("a", &number.to_string())])));
        calls.spawn(async move { client.call(rpc).await.code() });
    }
    assert_eq!(calls.join_all().await, [Code::Ok; 20]);
    assert_eq!((rig.routes.binds().len(), rig.routes.most_binds()), (20, 1));
    // A repeated change is not stored again, unless another one is between.
    for _ in 0..5 {
        let again = client.call(config(&rig, set(&[("b", "1")]))).await;
        assert_eq!(again.code(), Code::Ok);
    }
    assert_eq!(rig.routes.binds().len(), 21);
    for value in ["2", "1"] {
        client.call(config(&rig, set(&[("b", value)]))).await;
    }
    assert_eq!(rig.routes.binds().len(), 23);
}
