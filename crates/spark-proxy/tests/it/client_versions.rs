//! Versions of clients: counted at the first call of a Spark session, with advice for a client that
//! is newer than the engine.

use crate::common::{Reply, Rig, Rpc, within};
use crate::control_plane::Stack;
use crate::held_streams::on_sail;
use prost::Message as _;
use session_core::{ChangeReason, SessionKey};
use session_proto::internal::NewerClient;
use session_proto::spark::execute_plan_request::RequestOption;
use session_proto::spark::execute_plan_request::request_option::RequestOption as Kind;
use session_proto::spark::{AnalyzePlanRequest, ConfigRequest, ExecutePlanRequest, ReattachOptions};
use std::time::Duration;
use test_support::fake_spark::{OPERATION, Shape, framed};

const ADVICE: &str = "x-berth-advice";

fn spark_session(number: usize) -> String {
    format!("{number:08x}-89ab-cdef-0123-456789abcdef")
}

fn pyspark(version: &str) -> String {
    format!("_SPARK_CONNECT_PYTHON spark/{version} os/linux python/3.11.7")
}

/// The first call of a Spark session.
fn execute(token: &str, number: usize, client_type: &str) -> Rpc {
    let request = ExecutePlanRequest {
        session_id: spark_session(number),
        client_type: Some(client_type.to_owned()),
        ..ExecutePlanRequest::default()
    };
    Rpc::execute(token).body(framed(&request.encode_to_vec()))
}

fn advice(reply: &Reply) -> Option<&str> {
    assert_eq!(reply.code(), tonic::Code::Ok, "{reply:?}");
    reply.head.get(ADVICE).map(|value| value.to_str().unwrap())
}

/// A proxy to an engine whose newest clients are these.
async fn rig(newest: &str, declared: bool) -> Rig {
    let rig = Rig::start().await;
    let mut route = rig.route();
    let backend = route.backend.as_mut().unwrap();
    newest.clone_into(&mut backend.newest_client);
    backend.newest_client_declared = declared;
    rig.routes.set(route);
    rig
}

fn reported(rig: &Rig) -> Vec<NewerClient> {
    let reports = rig.routes.reports();
    let sessions = reports.iter().flat_map(|report| &report.sessions);
    sessions
        .flat_map(|session| session.newer_clients.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_client_gets_advice_at_the_first_call_of_a_spark_session() {
    let rig = rig("4.1", false).await;
    let client = rig.client().await;
    let token = rig.token();
    let text = "client 4.3.0 is newer than the engine's Spark 4.1; what is new in 4.3 may fail";
    for number in 0..3 {
        let first = client.call(execute(&token, number, &pyspark("4.3.0"))).await;
        assert_eq!(advice(&first), Some(text));
        let second = client.call(execute(&token, number, &pyspark("4.3.0"))).await;
        assert_eq!(advice(&second), None, "only the first call");
    }
    rig.routes
        .until_reported(|reports| {
            let mut sessions = reports.iter().flat_map(|report| &report.sessions);
            sessions.any(|session| !session.newer_clients.is_empty())
        })
        .await;
    let expected = NewerClient {
        version: "4.3.0".to_owned(),
        newest_client: "4.1".to_owned(),
        newest_client_declared: false,
    };
    assert_eq!(reported(&rig), [expected], "once, for three Spark sessions");
    let (_, metrics) = rig.get("/metrics").await;
    let counted = "spark_proxy_clients_total{client=\"python\",version=\"4.3\"} 3";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_not_known_to_be_newer_get_none() {
    let rig = rig("4.1", true).await;
    let (client, token) = (rig.client().await, rig.token());
    let declared = "client 4.2.0 is newer than 4.1, the newest in the cluster's client_versions; what is new in 4.2 may fail";
    let scala = "_SPARK_CONNECT_SCALA spark/4.2.0 scala/2.13.17 jvm/17.0.15 os/linux".to_owned();
    let long = "x".repeat(5000) + " " + &pyspark("4.2.0");
    for (number, (client_type, expected)) in [
        (pyspark("4.1.9"), None),
        (pyspark("4.0.1"), None),
        (pyspark("3.5.6"), None),
        (pyspark("dev"), None),
        ("_SPARK_CONNECT_GO os/linux go/1.23.1".to_owned(), None),
        ("_SPARK_CONNECT_RUST".to_owned(), None),
        (String::new(), None),
        ("spark/4.2.0\r\nx-evil: 1".to_owned(), Some(declared)),
        (scala, Some(declared)),
        (long, Some(declared)),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = client.call(execute(&token, number, &client_type)).await;
        assert_eq!(advice(&reply), expected, "{client_type}");
        assert!(!reply.head.contains_key("x-evil"));
    }

    let unknown = self::rig("", false).await;
    let reply = unknown
        .call(execute(&unknown.token(), 0, &pyspark("9.0.0")))
        .await;
    assert_eq!(advice(&reply), None, "an engine of an unknown version");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_first_call_carries_the_version_in_its_own_field() {
    let rig = rig("4.1", false).await;
    let token = rig.token();
    let client_type = Some(pyspark("4.3.0"));
    let config = ConfigRequest {
        session_id: spark_session(1),
        client_type: client_type.clone(),
        ..ConfigRequest::default()
    };
    let analyze = AnalyzePlanRequest {
        session_id: spark_session(2),
        client_type,
        ..AnalyzePlanRequest::default()
    };
    for (method, message) in [
        ("Config", config.encode_to_vec()),
        ("AnalyzePlan", analyze.encode_to_vec()),
    ] {
        let rpc = Rpc::spark(method).bearer(&token).body(framed(&message));
        assert!(advice(&rig.call(rpc).await).is_some(), "{method}");
    }
    // Without the text, the next call that has it counts.
    let silent = ExecutePlanRequest {
        session_id: spark_session(3),
        ..ExecutePlanRequest::default()
    };
    let silent = Rpc::execute(&token).body(framed(&silent.encode_to_vec()));
    let client = rig.client().await;
    assert_eq!(advice(&client.call(silent).await), None);
    let reply = client.call(execute(&token, 3, &pyspark("4.3.0"))).await;
    assert!(advice(&reply).is_some());
}

/// A query on Sail that the client can resume is run by a task of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumable_query_gets_advice() {
    let rig = rig("4.1", true).await;
    let mut route = on_sail(rig.route());
    "4.1".clone_into(&mut route.backend.as_mut().unwrap().newest_client);
    rig.routes.set(route);
    let reattach = Kind::ReattachOptions(ReattachOptions { reattachable: true });
    let request = ExecutePlanRequest {
        session_id: spark_session(1),
        client_type: Some(pyspark("4.3.0")),
        operation_id: Some(OPERATION.to_owned()),
        request_options: vec![RequestOption {
            request_option: Some(reattach),
        }],
        ..ExecutePlanRequest::default()
    };
    let rpc = Rpc::execute(&rig.token()).shape(Shape::Results(3, 10));
    let reply = rig.call(rpc.body(framed(&request.encode_to_vec()))).await;
    assert!(advice(&reply).is_some(), "{reply:?}");
}

/// With session-manager and two proxies: one event, although both proxies report it repeatedly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advice_is_one_event_of_the_session() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let token = stack.first_token(&session).await.token;
    let key = SessionKey {
        org: "acme".parse().unwrap(),
        id: session.parse().unwrap(),
    };
    let events = async |count: usize| {
        within("the events are written", async {
            loop {
                let all = stack.store.events(&key).await.unwrap();
                let advice = all
                    .into_iter()
                    .filter(|event| event.reason == ChangeReason::ClientNewer);
                let texts: Vec<_> = advice.map(|event| event.message).collect();
                if texts.len() >= count {
                    return texts;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    };
    let call = async |proxy: usize, number: usize, version: &str| {
        let client = stack.client(proxy).await;
        client.call(execute(&token, number, &pyspark(version))).await
    };
    // The probe of the fake engine read 4.1, and its cluster declares no clients.
    assert_eq!(advice(&call(0, 1, "4.1.3").await), None);
    assert!(advice(&call(0, 2, "4.3.0").await).is_some());
    assert!(advice(&call(1, 3, "4.3.0").await).is_some());
    assert_eq!(
        events(1).await,
        ["client 4.3.0 is newer than the engine's Spark 4.1; what is new in 4.3 may fail"]
    );
    assert!(advice(&call(1, 4, "4.2.1").await).is_some());
    let all = events(2).await;
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[1].contains("4.2.1"), "{all:?}");
}
