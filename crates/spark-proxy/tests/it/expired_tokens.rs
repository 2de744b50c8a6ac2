//! Expired tokens: running calls continue, calls that continue an operation have a grace, and a grace
//! of zero rejects them.

use crate::common::{Reply, Rig, Rpc, within};
use prost::Message as _;
use session_core::Reason;
use session_proto::internal::SparkBinding;
use session_proto::spark::ConfigRequest;
use session_proto::spark::config_request::operation::OpType;
use session_proto::spark::config_request::{Get, Operation};
use std::time::Duration;
use test_support::fake_spark::{SPARK_SESSION, Shape, framed, request};
use tonic::Code;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_never_ends_a_running_stream_and_revocation_does() {
    let rig = Rig::start().await;
    let claims = rig.claims();
    let token = rig.sign(&claims);
    let client = rig.client().await;
    let mut call = client
        .begin(&Rpc::execute(&token).shape(Shape::HangAfterOne))
        .await
        .unwrap();
    call.finish(request(b"go"));
    let (_upload, response) = within("headers", call.head()).await.unwrap();
    let rest = tokio::spawn(Reply::rest(response));
    rig.clock.advance(Duration::from_secs(60));
    for _ in 0..48 {
        rig.clock.advance(HOUR);
        // A new call is rejected; the running one is not checked again.
        client
            .call(Rpc::execute(&token))
            .await
            .refused(Reason::TokenExpired);
        assert!(!rest.is_finished(), "the running stream ended");
    }
    let mut route = rig.route();
    route.version = 2;
    route.revoked_tokens.push(session_proto::internal::RevokedToken {
        token_id: claims.jti.to_string(),
        until: None,
    });
    rig.routes.announce(route);
    let reply = within("the stream ends", rest).await.unwrap().unwrap();
    reply.refused(Reason::TokenRevoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_has_no_grace() {
    let rig = Rig::start().await;
    let claims = rig.claims();
    let token = rig.sign(&claims);
    let reattach = || Rpc::spark("ReattachExecute").bearer(&token);
    rig.clock.advance(2 * HOUR);
    assert_eq!(rig.call(reattach()).await.code(), Code::Ok);
    let mut route = rig.route();
    route.version = 2;
    route.revoked_tokens.push(session_proto::internal::RevokedToken {
        token_id: claims.jti.to_string(),
        until: None,
    });
    rig.routes.announce(route);
    within("it is refused", async {
        while rig.call(reattach()).await.code() == Code::Ok {}
    })
    .await;
    for method in ["ReattachExecute", "ReleaseExecute"] {
        let reply = rig.call(Rpc::spark(method).bearer(&token)).await;
        reply.refused(Reason::TokenRevoked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grace_of_zero_rejects_all_expired_tokens() {
    let rig = Rig::with(|config| {
        config.tokens.reattach_grace = Duration::ZERO;
        config.tokens.interrupt_grace = Duration::ZERO;
    })
    .await;
    let token = rig.token();
    let methods = [
        "ExecutePlan",
        "Config",
        "ReattachExecute",
        "ReleaseExecute",
        "Interrupt",
    ];
    for method in methods {
        let reply = rig.call(Rpc::spark(method).bearer(&token)).await;
        assert_eq!(reply.code(), Code::Ok, "{method}");
    }
    // The leeway has passed too.
    rig.clock.advance(HOUR + Duration::from_secs(30));
    for method in methods {
        let reply = rig.call(Rpc::spark(method).bearer(&token)).await;
        reply.refused(Reason::TokenExpired);
    }
}

fn read_setting(token: &str) -> Rpc {
    let get = Get {
        keys: vec!["spark.sql.session.timeZone".to_owned()],
    };
    let message = ConfigRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation: Some(Operation {
            op_type: Some(OpType::Get(get)),
        }),
        ..ConfigRequest::default()
    };
    Rpc::spark("Config")
        .bearer(token)
        .body(framed(&message.encode_to_vec()))
}

/// An engine creates the Spark session of a call if it does not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_creates_no_spark_session() {
    for dedicated in [true, false] {
        for engine in ["spark", "sail"] {
            let rig = Rig::start().await;
            let mut route = rig.route();
            if let Some(backend) = &mut route.backend {
                backend.dedicated = dedicated;
                backend.engine = engine.to_owned();
            }
            route.bindings.push(SparkBinding {
                spark_session_id: SPARK_SESSION.to_owned(),
            });
            rig.routes.set(route);
            let token = rig.token();
            rig.clock.advance(HOUR + Duration::from_secs(60));
            for rpc in [
                read_setting(&token),
                Rpc::spark("Interrupt").bearer(&token),
                Rpc::spark("ReleaseExecute").bearer(&token),
            ] {
                rig.call(rpc).await.refused(Reason::TokenExpired);
            }
            assert!(rig.spark.seen().requests.is_empty(), "{engine}: nothing went on");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_continues_a_running_operation() {
    let rig = Rig::start().await;
    let token = rig.token();
    let client = rig.client().await;
    let mut query = client
        .begin(&Rpc::execute(&token).shape(Shape::HangAfterOne))
        .await
        .unwrap();
    query.finish(request(b"go"));
    let running = within("headers", query.head()).await.unwrap();
    rig.clock.advance(HOUR + Duration::from_secs(60));
    assert_eq!(client.call(read_setting(&token)).await.code(), Code::Ok);
    let interrupt = Rpc::spark("Interrupt").bearer(&token);
    assert_eq!(client.call(interrupt).await.code(), Code::Ok);
    drop(running);
    assert_eq!(client.call(read_setting(&token)).await.code(), Code::Ok);

    // Other compute does not have the Spark session.
    let mut route = rig.route();
    route.version = 2;
    route.generation = 2;
    rig.routes.announce(route);
    within("the new compute is used", async {
        while client.call(read_setting(&token)).await.code() == Code::Ok {}
    })
    .await;
    client
        .call(read_setting(&token))
        .await
        .refused(Reason::TokenExpired);
    // A reattach with a response shows that the Spark session exists.
    let reattach = Rpc::spark("ReattachExecute").bearer(&token);
    assert_eq!(client.call(reattach).await.code(), Code::Ok);
    assert_eq!(client.call(read_setting(&token)).await.code(), Code::Ok);
}
