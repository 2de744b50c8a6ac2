//! Every way to call without the right to, with the exact code and reason.

use crate::common;
use crate::common::{Client, Rig, Rpc, new_signer, within, write_jwks};
use session_core::{Reason, SessionId, Timestamp};
use session_token::Claims;
use std::time::Duration;
use tonic::Code;
use tonic_types::StatusExt as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_token_fault_has_its_own_reason() {
    let rig = Rig::start().await;
    let plain = || Rpc::spark("ExecutePlan");
    rig.call(plain()).await.refused(Reason::TokenMissing);
    rig.call(plain().header("authorization", "Basic abc"))
        .await
        .refused(Reason::TokenMalformed);
    rig.call(plain().bearer("abc"))
        .await
        .refused(Reason::TokenMalformed);
    rig.call(plain().bearer("a.b.c"))
        .await
        .refused(Reason::TokenMalformed);

    let foreign = new_signer().sign(&rig.claims()).unwrap();
    rig.call(plain().bearer(&foreign))
        .await
        .refused(Reason::TokenInvalid);
    let elsewhere = rig.sign(&Claims {
        aud: "another".into(),
        ..rig.claims()
    });
    rig.call(plain().bearer(&elsewhere))
        .await
        .refused(Reason::TokenInvalid);
    let good = rig.token();
    let (head, signature) = good.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    rig.call(plain().bearer(&format!("{head}.{flipped}{}", &signature[1..])))
        .await
        .refused(Reason::TokenInvalid);

    let old = rig.sign(&Claims {
        iat: common::NOW - 7200,
        nbf: common::NOW - 7200,
        exp: common::NOW - 3600,
        ..rig.claims()
    });
    let reply = rig.call(plain().bearer(&old)).await;
    reply.refused(Reason::TokenExpired);
    assert!(
        reply.status().message().contains("berth token"),
        "{}",
        reply.status().message()
    );
    let info = reply.status().get_details_error_info().unwrap();
    assert_eq!(info.metadata["errorClass"], "BERTH.TOKEN_EXPIRED");

    assert_eq!(rig.call(plain().bearer(&good)).await.code(), Code::Ok);
    assert_eq!(rig.spark.seen().requests.len(), 1, "only the valid one passed");
    assert!(
        rig.routes.asked().len() == 1,
        "an invalid token causes no route request"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicate_and_contradicting_headers_are_rejected() {
    let rig = Rig::start().await;
    let token = rig.token();
    let other = SessionId::generate(Timestamp::from_millis(1), 1);
    rig.call(Rpc::execute(&token).bearer(&token))
        .await
        .refused(Reason::HeaderDuplicate);
    let doubled = rig.rpc().header("x-session-id", rig.session.as_str());
    rig.call(doubled).await.refused(Reason::HeaderDuplicate);
    rig.call(Rpc::execute(&token).header("x-session-id", other.as_str()))
        .await
        .refused(Reason::SessionMismatch);
    rig.call(Rpc::execute(&token).header("x-session-id", ""))
        .await
        .refused(Reason::SessionMismatch);
    assert_eq!(
        rig.call(Rpc::execute(&token)).await.code(),
        Code::Ok,
        "it may be left out"
    );

    let strict = Rig::with(|config| config.tokens.require_session_header = true).await;
    strict
        .call(Rpc::execute(&strict.token()))
        .await
        .refused(Reason::HeaderMissing);
    assert_eq!(strict.call(strict.rpc()).await.code(), Code::Ok);
}

/// Name of the header in the Scala client before 4.0.4, 4.1.3 and 4.2.0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_of_older_scala_clients_is_accepted() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    let older = |token: &str| Rpc::spark("ExecutePlan").header("authentication", &format!("Bearer {token}"));
    let (token, other) = (rig.token(), rig.token());
    let client = rig.client().await;
    // Verified, then cached, under both names.
    for rpc in [
        older(&token),
        older(&token),
        Rpc::execute(&token),
        older(&token).bearer(&token),
    ] {
        assert_eq!(client.call(rpc).await.code(), Code::Ok);
    }
    let passed = rig.spark.seen().requests;
    assert_eq!(passed.len(), 4);
    for (_, headers) in passed {
        assert!(!headers.contains_key("authentication"), "{headers:?}");
        assert!(!headers.contains_key("authorization"), "{headers:?}");
    }

    // Two valid tokens, in either order, and each of them twice.
    for rpc in [older(&token).bearer(&other), older(&other).bearer(&token)] {
        let reply = client.call(rpc).await;
        reply.refused(Reason::HeaderDuplicate);
        let info = reply.status().get_details_error_info().unwrap();
        assert_eq!(info.metadata["header"], "authentication");
    }
    for rpc in [
        older(&token).header("authentication", &format!("Bearer {token}")),
        older(&token).bearer(&token).bearer(&token),
    ] {
        client.call(rpc).await.refused(Reason::HeaderDuplicate);
    }
    let wrong = new_signer().sign(&rig.claims()).unwrap();
    client.call(older(&wrong)).await.refused(Reason::TokenInvalid);
    client.call(older("abc")).await.refused(Reason::TokenMalformed);
    client
        .call(Rpc::spark("ExecutePlan").header("authentication", "Basic abc"))
        .await
        .refused(Reason::TokenMalformed);
    assert_eq!(rig.spark.seen().requests.len(), 4, "only the valid ones passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_several_callers() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    client
        .call(Rpc::spark("Config"))
        .await
        .refused(Reason::TokenMissing);
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_is_checked_at_the_start_of_a_call_with_grace_by_method() {
    let rig = Rig::start().await;
    let token = rig.token();
    let by = |method: &str| Rpc::spark(method).bearer(&token);
    assert_eq!(rig.call(by("ExecutePlan")).await.code(), Code::Ok);
    rig.clock.advance(Duration::from_secs(3600 + 60));
    for method in [
        "ExecutePlan",
        "Config",
        "AddArtifacts",
        "ReleaseSession",
        "NotYetInvented",
    ] {
        rig.call(by(method)).await.refused(Reason::TokenExpired);
    }
    for method in ["ReattachExecute", "ReleaseExecute", "Interrupt"] {
        assert_eq!(rig.call(by(method)).await.code(), Code::Ok, "{method}");
    }
    rig.clock.advance(Duration::from_secs(3600));
    rig.call(by("Interrupt")).await.refused(Reason::TokenExpired);
    assert_eq!(rig.call(by("ReattachExecute")).await.code(), Code::Ok);
    rig.clock.advance(Duration::from_secs(12 * 3600));
    rig.call(by("ReattachExecute"))
        .await
        .refused(Reason::TokenExpired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_are_rejected_and_their_running_calls_ended() {
    let rig = Rig::start().await;
    let (one, two) = (rig.claims(), rig.claims());
    let hang = |claims: &Claims| {
        Rpc::execute(&rig.sign(claims)).shape(test_support::fake_spark::Shape::HangAfterOne)
    };
    let client = rig.client().await;
    let mut first = client.begin(&hang(&one)).await.unwrap();
    first.finish(test_support::fake_spark::request(b"go"));
    let (_u1, first) = within("headers", first.head()).await.unwrap();
    let mut second = client.begin(&hang(&two)).await.unwrap();
    second.finish(test_support::fake_spark::request(b"go"));
    let (_u2, second) = within("headers", second.head()).await.unwrap();

    // One token, by its id.
    let mut route = rig.route();
    route.version = 2;
    route.revoked_tokens.push(session_proto::internal::RevokedToken {
        token_id: one.jti.to_string(),
        until: None,
    });
    rig.routes.announce(route.clone());
    let reply = within("the first ends", common::Reply::rest(first))
        .await
        .unwrap();
    reply.refused(Reason::TokenRevoked);
    assert!(!reply.body.is_empty(), "the error came in trailers");
    rig.call(Rpc::execute(&rig.sign(&one)))
        .await
        .refused(Reason::TokenRevoked);
    assert_eq!(rig.call(Rpc::execute(&rig.sign(&two))).await.code(), Code::Ok);

    // All tokens, by the epoch.
    route.version = 3;
    route.token_epoch = 2;
    rig.routes.announce(route);
    within("the second ends", common::Reply::rest(second))
        .await
        .unwrap()
        .refused(Reason::TokenRevoked);
    rig.call(Rpc::execute(&rig.sign(&two)))
        .await
        .refused(Reason::TokenRevoked);
    assert_eq!(
        rig.call(Rpc::execute(&rig.sign(&Claims {
            epoch: 2,
            ..rig.claims()
        })))
        .await
        .code(),
        Code::Ok
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_disabled_or_other_organizations_are_rejected() {
    let rig = Rig::start().await;
    let foreign = rig.sign(&Claims {
        org: "other".parse().unwrap(),
        ..rig.claims()
    });
    rig.call(Rpc::execute(&foreign))
        .await
        .refused(Reason::TokenInvalid);
    let mut route = rig.route();
    route.version = 2;
    route.org_disabled = true;
    rig.routes.announce(route);
    within("it is refused", async {
        while rig.call(rig.rpc()).await.code() == Code::Ok {}
    })
    .await;
    rig.call(rig.rpc()).await.refused(Reason::OrgDisabled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_found_when_a_token_names_it() {
    let rig = Rig::with(|config| config.tokens.keys.again_after = Duration::from_millis(1)).await;
    let next = new_signer();
    let token = next.sign(&rig.claims()).unwrap();
    rig.call(Rpc::execute(&token)).await.refused(Reason::TokenInvalid);
    let old = rig.token();
    assert_eq!(rig.call(Rpc::execute(&old)).await.code(), Code::Ok);

    write_jwks(&rig.dir.path().join("jwks.json"), &[&next]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(rig.call(Rpc::execute(&token)).await.code(), Code::Ok);
    // The old key is withdrawn: its tokens are invalid, cached or not.
    rig.call(Rpc::execute(&old)).await.refused(Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rereads_for_unknown_keys_are_limited() {
    let rig = Rig::start().await;
    let next = new_signer();
    write_jwks(&rig.dir.path().join("jwks.json"), &[&rig.signer, &next]);
    // It was read at the start, less than 30 s ago.
    rig.call(Rpc::execute(&next.sign(&rig.claims()).unwrap()))
        .await
        .refused(Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_the_data_port_stays_closed() {
    let routes = test_support::fake_routes::FakeRoutes::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let jwks = dir.path().join("jwks.json");
    let mut config = common::config(&routes, jwks.clone());
    // A free port, to be bound by the proxy.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    config.listen.address = free;
    let admin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin_address = admin.local_addr().unwrap();
    let shutdown = service_kit::shutdown::Shutdown::new();
    let listeners = spark_proxy::Listeners {
        data: None,
        admin: Some(admin),
    };
    let running = tokio::spawn(spark_proxy::run(config, listeners, shutdown.clone()));
    let (status, text) = within("the admin port answers", async {
        loop {
            let (status, text) = common::http_get(admin_address, "/readyz").await;
            if status != 0 {
                return (status, text);
            }
        }
    })
    .await;
    assert_eq!(status, 503, "{text}");
    assert!(
        tokio::net::TcpStream::connect(free).await.is_err(),
        "the data port is open without a key"
    );
    write_jwks(&jwks, &[&new_signer()]);
    within("it gets ready", async {
        while common::http_get(admin_address, "/readyz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(tokio::net::TcpStream::connect(free).await.is_ok());
    shutdown.stop();
    within("it ends", running).await.unwrap().unwrap();
}

/// Verification of the signature is the most expensive step for an invalid token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_tokens_of_one_address_are_limited() {
    let rig = Rig::with(|config| {
        config.limits.bad_tokens_per_second_per_address = 2;
        config.listen.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let good = rig.rpc();
    let known = Client::over(from(&rig, [198, 51, 100, 7]).await).await.unwrap();
    assert_eq!(known.call(good.clone()).await.code(), Code::Ok);

    // The signature of another token.
    let (one, other) = (rig.token(), rig.token());
    let signed = one.rsplit_once('.').unwrap().0;
    let forged = format!("{signed}.{}", other.rsplit_once('.').unwrap().1);
    for _ in 0..4 {
        let reply = known.call(Rpc::execute(&forged)).await;
        reply.refused(Reason::TokenInvalid);
    }
    for token in [&forged, &rig.token()] {
        let reply = known.call(Rpc::execute(token)).await;
        reply.refused(Reason::RateLimited);
        let text = reply.status().message().to_owned();
        assert!(
            text.contains("limits.bad_tokens_per_second_per_address"),
            "{text}"
        );
    }
    // Cached tokens pass, and so do tokens from other addresses.
    assert_eq!(known.call(good).await.code(), Code::Ok);
    let other = Client::over(from(&rig, [198, 51, 100, 8]).await).await.unwrap();
    assert_eq!(other.call(rig.rpc()).await.code(), Code::Ok);
    within("it may come again", async {
        while known.call(rig.rpc()).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// A connection through a load balancer, from this client IP.
async fn from(rig: &Rig, address: [u8; 4]) -> tokio::net::TcpStream {
    use tokio::io::AsyncWriteExt as _;
    let mut tcp = tokio::net::TcpStream::connect(rig.address)
        .await
        .expect("a connection");
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(address);
    header.extend([10, 0, 0, 1, 0x10, 0, 0x1f, 0x95]);
    tcp.write_all(&header).await.expect("the header is sent");
    tcp
}
