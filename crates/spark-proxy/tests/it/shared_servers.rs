//! Spark sessions on shared compute: their bindings, and calls about the Spark sessions of others.

use crate::common;
use crate::common::{Rig, Rpc, within};
use bytes::Bytes;
use prost::Message;
use session_core::{Reason, SessionId, Timestamp};
use session_proto::internal::{Backend, Route, SparkBinding};
use session_proto::spark::{
    CloneSessionRequest, ReattachExecuteRequest, ReleaseExecuteRequest, ReleaseSessionRequest,
};
use std::time::Duration;
use test_support::fake_spark::{SPARK_SESSION, Seen, Shape, framed, request};
use tonic::{Code, Status};

const OPERATION: &str = "aaaaaaaa-89ab-cdef-0123-456789abcdef";
const OTHER: &str = "99999999-89ab-cdef-0123-456789abcdef";

fn shared(rig: &Rig, engine: &str) -> Route {
    let route = rig.route();
    Route {
        backend: Some(Backend {
            engine: engine.to_owned(),
            dedicated: false,
            ..route.backend.clone().expect("a backend")
        }),
        ..route
    }
}

async fn on_shared(engine: &str) -> Rig {
    let rig = Rig::start().await;
    rig.routes.set(shared(&rig, engine));
    rig
}

/// A request for another Spark session.
fn about(spark_session: &str) -> Bytes {
    let mut bytes = request(b"SELECT 1").to_vec();
    bytes[7..43].copy_from_slice(spark_session.as_bytes());
    bytes.into()
}

/// Sail identifies Spark sessions by id alone and returns the user as `current_user()`. Spark
/// identifies them by user and id, and two sessions of one person must be separate on a shared
/// server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_is_the_subject_on_sail_and_the_session_on_spark() {
    let rig = on_shared("sail").await;
    let user = rig.call(rig.rpc()).await.echoed().user_context.unwrap();
    assert_eq!(
        (user.user_id.as_str(), user.user_name.as_str()),
        ("sa|tester", "sa|tester")
    );
    let rig = on_shared("spark").await;
    let user = rig.call(rig.rpc()).await.echoed().user_context.unwrap();
    assert_eq!(
        (user.user_id.as_str(), user.user_name.as_str()),
        (rig.session.as_str(), "sa|tester")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_use_binds_and_the_second_sends_no_request() {
    let rig = on_shared("sail").await;
    let client = rig.client().await;
    for _ in 0..3 {
        let reply = client.call(rig.rpc()).await;
        assert_eq!(reply.code(), Code::Ok);
    }
    let binds = rig.routes.binds();
    assert_eq!(binds.len(), 1);
    assert_eq!(
        (binds[0].spark_session_id.as_str(), binds[0].generation),
        (SPARK_SESSION, 1)
    );
    assert!(!binds[0].cloned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_of_the_route_need_no_request() {
    let rig = Rig::start().await;
    rig.routes.set(Route {
        bindings: vec![SparkBinding {
            spark_session_id: SPARK_SESSION.to_owned(),
        }],
        ..shared(&rig, "sail")
    });
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    assert!(rig.routes.binds().is_empty());
}

/// A message of each call that is not work.
fn no_work(method: &str) -> Bytes {
    let (session_id, operation_id) = (SPARK_SESSION.to_owned(), OPERATION.to_owned());
    framed(&match method {
        "ReattachExecute" => ReattachExecuteRequest {
            session_id,
            operation_id,
            ..ReattachExecuteRequest::default()
        }
        .encode_to_vec(),
        "ReleaseExecute" => ReleaseExecuteRequest {
            session_id,
            operation_id,
            ..ReleaseExecuteRequest::default()
        }
        .encode_to_vec(),
        _ => ReleaseSessionRequest {
            session_id,
            ..ReleaseSessionRequest::default()
        }
        .encode_to_vec(),
    })
}

const NO_WORK: [&str; 3] = ["ReattachExecute", "ReleaseExecute", "ReleaseSession"];

/// A disconnected client returns at another worker or proxy, whose route is older than the binding of
/// the Spark session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_of_another_proxy_is_found_by_a_new_route() {
    for engine in ["sail", "spark"] {
        for method in NO_WORK {
            let rig = on_shared(engine).await;
            let shape = match (engine, method) {
                // Sail ended the stream with OK but not as complete: it was interrupted.
                ("sail", "ReattachExecute") => Shape::SailUnknown,
                _ => Shape::Echo,
            };
            let rpc = || {
                let rpc = Rpc::spark(method).bearer(&rig.token()).shape(shape);
                rpc.body(no_work(method))
            };
            // Not bound: the route is resolved once more, and nothing is forwarded.
            // The first call also resolves the route.
            for asked in 2..=4 {
                let reply = rig.call(rpc()).await;
                assert_eq!(reply.code() == Code::Ok, method != "ReattachExecute", "{method}");
                assert!(rig.spark.seen().requests.is_empty(), "{engine} {method}");
                assert_eq!(rig.routes.asked().len(), asked, "{engine} {method}");
            }
            rig.routes.set(Route {
                bindings: vec![SparkBinding {
                    spark_session_id: SPARK_SESSION.to_owned(),
                }],
                ..shared(&rig, engine)
            });
            for sent in 1..=3 {
                rig.call(rpc()).await;
                assert_eq!(rig.spark.seen().requests.len(), sent, "{engine} {method}");
            }
            // From then on each of the two workers has the binding.
            assert!(rig.routes.asked().len() <= 6, "{:?}", rig.routes.asked());
            assert!(rig.routes.binds().is_empty(), "{engine} {method}");
        }
    }
}

/// ReleaseExecute is exempt from the rate of calls: a flood of them for unbound Spark sessions must
/// not become a flood of route requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bind_requests_are_within_the_rate_of_calls() {
    let rig = Rig::with(|config| config.limits.calls_per_second_per_org = 2).await;
    rig.routes.set(shared(&rig, "spark"));
    let client = rig.client().await;
    for _ in 0..100 {
        let rpc = Rpc::spark("ReleaseExecute").bearer(&rig.token());
        let reply = client.call(rpc.body(no_work("ReleaseExecute"))).await;
        assert_eq!(reply.code(), Code::Ok);
    }
    assert!(rig.spark.seen().requests.is_empty());
    let asked = rig.routes.asked().len();
    assert!(asked < 20, "{asked} route requests for 100 calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unconfirmed_bindings_while_session_manager_is_unreachable() {
    for (engine, method, forwarded) in [
        ("sail", "ReattachExecute", Err(Reason::ControlPlaneUnavailable)),
        ("sail", "ReleaseExecute", Ok(false)),
        // A client that exits must not wait for it.
        ("sail", "ReleaseSession", Ok(false)),
        ("spark", "ReattachExecute", Ok(true)),
        ("spark", "ReleaseExecute", Ok(true)),
        ("spark", "ReleaseSession", Ok(true)),
    ] {
        let rig = on_shared(engine).await;
        let rpc = || Rpc::spark(method).bearer(&rig.token()).body(no_work(method));
        rig.call(rpc()).await;
        rig.routes.go_away();
        let reply = within(method, rig.call(rpc())).await;
        match forwarded {
            Err(reason) => reply.refused(reason),
            Ok(forwarded) => {
                assert_eq!(
                    rig.spark.seen().requests.len(),
                    usize::from(forwarded),
                    "{engine} {method}"
                );
            }
        }
    }
}

/// Runs a hanging query; returns the number of keep-alive calls within `time`.
async fn kept_alive(rig: &Rig, time: Duration) -> usize {
    let client = rig.client().await;
    let mut running = client
        .begin(&rig.rpc().shape(Shape::Hang))
        .await
        .expect("a call that begins");
    running.finish(request(b"SELECT 1"));
    let asked = |seen: &Seen| {
        let config = |path: &str| path.ends_with("/Config");
        seen.requests.iter().filter(|(path, _)| config(path)).count()
    };
    let _ = tokio::time::timeout(time, rig.spark.until(|seen| asked(seen) >= 2)).await;
    drop(running);
    asked(&rig.spark.seen())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_on_shared_sail_keeps_its_spark_session_alive() {
    let rig = Rig::with(|config| config.backend.sail_keep_alive = Duration::from_secs(1)).await;
    rig.routes.set(shared(&rig, "sail"));
    assert!(kept_alive(&rig, Duration::from_secs(20)).await >= 2);
    let name = "spark_proxy_spark_sessions_kept_alive_total";
    within("counted", async {
        while rig.metric(name).await < 1.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Not needed on dedicated compute, nor on Spark.
    for (engine, dedicated) in [("spark", false), ("sail", true)] {
        let rig = Rig::with(|config| config.backend.sail_keep_alive = Duration::from_secs(1)).await;
        let mut route = shared(&rig, engine);
        if let Some(backend) = &mut route.backend {
            backend.dedicated = dedicated;
        }
        rig.routes.set(route);
        assert_eq!(kept_alive(&rig, Duration::from_millis(2500)).await, 0, "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spark_session_of_another_session_is_rejected_before_the_server() {
    for engine in ["sail", "spark"] {
        let rig = on_shared(engine).await;
        let stranger = SessionId::generate(Timestamp::from_millis(5), 5);
        rig.routes.bind(SPARK_SESSION, stranger.as_str());
        rig.call(rig.rpc()).await.refused(Reason::SparkSessionTaken);
        for method in ["Interrupt", "ReleaseExecute", "ReleaseSession"] {
            let reply = rig.call(Rpc::spark(method).bearer(&rig.token())).await;
            assert_eq!(
                reply.code(),
                Code::Ok,
                "{method} of an id that is not ours is answered here"
            );
        }
        assert!(rig.spark.seen().requests.is_empty(), "{engine}");
        // Another id is accepted.
        assert_eq!(rig.call(rig.rpc().body(about(OTHER))).await.code(), Code::Ok);
    }
}

/// Makes one call on each of two connections, on two workers.
async fn on_both_workers(rig: &Rig) -> [common::Client; 2] {
    let clients = [rig.client().await, rig.client().await];
    for client in &clients {
        assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_binding_is_invalid_at_every_worker() {
    for engine in ["sail", "spark"] {
        let rig = on_shared(engine).await;
        let clients = on_both_workers(&rig).await;
        assert_eq!(rig.routes.binds().len(), 2, "each worker sends one bind request");
        for client in &clients {
            assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
        }
        assert_eq!(rig.routes.binds().len(), 2, "and caches the result");
        // A newer route with the binding, and one without it.
        let bindings = vec![SparkBinding {
            spark_session_id: SPARK_SESSION.to_owned(),
        }];
        rig.routes.announce(Route {
            version: 2,
            bindings,
            ..shared(&rig, engine)
        });
        for client in &clients {
            assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
        }
        assert_eq!(rig.routes.binds().len(), 2, "the route has the binding");
        let stranger = SessionId::generate(Timestamp::from_millis(5), 5);
        rig.routes.bind(SPARK_SESSION, stranger.as_str());
        rig.routes.announce(Route {
            version: 3,
            ..shared(&rig, engine)
        });
        for client in &clients {
            within("another session has the binding", async {
                loop {
                    let reply = client.call(rig.rpc()).await;
                    if reply.code() != Code::Ok {
                        return reply.refused(Reason::SparkSessionTaken);
                    }
                }
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_spark_session_gets_no_keep_alive() {
    let rig = Rig::with(|config| config.backend.sail_keep_alive = Duration::from_secs(1)).await;
    rig.routes.set(shared(&rig, "sail"));
    let client = rig.client().await;
    let mut running = client
        .begin(&rig.rpc().shape(Shape::Hang))
        .await
        .expect("it begins");
    running.finish(request(b"SELECT 1"));
    let touched = |seen: &Seen| {
        let config = |path: &str| path.ends_with("/Config");
        seen.requests.iter().filter(|(path, _)| config(path)).count()
    };
    within("it is kept alive", rig.spark.until(|seen| touched(seen) > 0)).await;
    rig.routes.announce(Route {
        version: 2,
        ..shared(&rig, "sail")
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = touched(&rig.spark.seen());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(touched(&rig.spark.seen()), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unconfirmed_bindings_are_rejected_on_sail_and_allowed_on_spark() {
    for (engine, expected) in [("sail", Some(Reason::ControlPlaneUnavailable)), ("spark", None)] {
        let rig = on_shared(engine).await;
        rig.routes.refuse_binds(Some(Status::unavailable("away")));
        let reply = rig.call(rig.rpc()).await;
        match expected {
            Some(reason) => reply.refused(reason),
            None => assert_eq!(reply.code(), Code::Ok),
        }
        // The binding is confirmed once session-manager is reachable.
        rig.routes.refuse_binds(None);
        assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
        assert_eq!(rig.routes.binds().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_catalog_is_reported_and_not_cached() {
    let rig = on_shared("spark").await;
    let refused = session_proto::error::Refused::new(Reason::CatalogUnavailable, "no such catalog");
    rig.routes.refuse_binds(Some(refused.into_status()));
    for _ in 0..2 {
        rig.call(rig.rpc()).await.refused(Reason::CatalogUnavailable);
    }
    assert_eq!(rig.routes.binds().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_clones_are_bound_one_by_one() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    rig.routes.set(shared(&rig, "spark"));
    let client = rig.client().await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    rig.routes.slow_answers(Duration::from_millis(20));
    let mut storm = tokio::task::JoinSet::new();
    for number in 0..30 {
        let message = CloneSessionRequest {
            session_id: SPARK_SESSION.to_owned(),
            new_session_id: Some(format!("{number:0>8}-89ab-cdef-0123-456789abcdef")),
            ..CloneSessionRequest::default()
        };
        let rpc = Rpc::spark("CloneSession")
            .bearer(&rig.token())
            .body(framed(&message.encode_to_vec()));
        let client = client.clone();
        storm.spawn(async move { client.call(rpc).await });
    }
    while within("the clones", storm.join_next()).await.is_some() {}
    assert!(rig.routes.binds().len() > 30);
    assert_eq!(rig.routes.most_binds(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_bound_before_it_is_created() {
    let rig = on_shared("spark").await;
    let clone = |new: &str| {
        let message = CloneSessionRequest {
            session_id: SPARK_SESSION.to_owned(),
            new_session_id: Some(new.to_owned()),
            ..CloneSessionRequest::default()
        };
        Rpc::spark("CloneSession")
            .bearer(&rig.token())
            .body(framed(&message.encode_to_vec()))
    };
    rig.call(clone(OTHER)).await;
    let binds = rig.routes.binds();
    let asked: Vec<_> = binds
        .iter()
        .map(|bind| (bind.spark_session_id.as_str(), bind.cloned))
        .collect();
    assert_eq!(asked[..2], [(SPARK_SESSION, false), (OTHER, true)]);

    let stranger = SessionId::generate(Timestamp::from_millis(5), 5);
    let theirs = OTHER.replace('9', "8");
    rig.routes.bind(&theirs, stranger.as_str());
    let before = rig.spark.seen().requests.len();
    rig.call(clone(&theirs)).await.refused(Reason::SparkSessionTaken);
    let invalid = rig.call(clone("no uuid")).await.status();
    assert!(
        invalid
            .message()
            .starts_with("[INVALID_HANDLE.FORMAT] new_session_id"),
        "{invalid}"
    );
    assert_eq!(rig.spark.seen().requests.len(), before);
}
