//! Every way to call without the right to, with the exact code and reason.

use crate::common;
use crate::common::{Ask, Client, Rig, new_signer, within, write_jwks};
use session_core::{Reason, SessionId, Timestamp};
use session_token::Claims;
use std::time::Duration;
use tonic::Code;
use tonic_types::StatusExt as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_token_is_said_exactly() {
    let rig = Rig::start().await;
    let plain = || Ask::spark("ExecutePlan");
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
    assert_eq!(rig.spark.seen().requests.len(), 1, "only the good one passed");
    assert!(rig.routes.asked().len() == 1, "nobody asks about a bad token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_must_be_single_and_agree() {
    let rig = Rig::start().await;
    let token = rig.token();
    let other = SessionId::generate(Timestamp::from_millis(1), 1);
    rig.call(Ask::execute(&token).bearer(&token))
        .await
        .refused(Reason::HeaderDuplicate);
    let doubled = rig.ask().header("x-session-id", rig.session.as_str());
    rig.call(doubled).await.refused(Reason::HeaderDuplicate);
    rig.call(Ask::execute(&token).header("x-session-id", other.as_str()))
        .await
        .refused(Reason::SessionMismatch);
    rig.call(Ask::execute(&token).header("x-session-id", ""))
        .await
        .refused(Reason::SessionMismatch);
    assert_eq!(
        rig.call(Ask::execute(&token)).await.code(),
        Code::Ok,
        "it may be left out"
    );

    let strict = Rig::with(|config| config.tokens.require_session_header = true).await;
    strict
        .call(Ask::execute(&strict.token()))
        .await
        .refused(Reason::HeaderMissing);
    assert_eq!(strict.call(strict.ask()).await.code(), Code::Ok);
}

/// The Scala client before 4.0.4, 4.1.3 and 4.2.0 names the header so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_of_older_scala_clients_is_accepted() {
    let rig = Rig::with(|config| config.listen.workers = 1).await;
    let older = |token: &str| Ask::spark("ExecutePlan").header("authentication", &format!("Bearer {token}"));
    let (token, other) = (rig.token(), rig.token());
    let client = rig.client().await;
    // Checked, then remembered, under one name and under the other.
    for ask in [
        older(&token),
        older(&token),
        Ask::execute(&token),
        older(&token).bearer(&token),
    ] {
        assert_eq!(client.call(ask).await.code(), Code::Ok);
    }
    let passed = rig.spark.seen().requests;
    assert_eq!(passed.len(), 4);
    for (_, headers) in passed {
        assert!(!headers.contains_key("authentication"), "{headers:?}");
        assert!(!headers.contains_key("authorization"), "{headers:?}");
    }

    // Two good tokens, in either order, and each of them doubled.
    for ask in [older(&token).bearer(&other), older(&other).bearer(&token)] {
        let reply = client.call(ask).await;
        reply.refused(Reason::HeaderDuplicate);
        let info = reply.status().get_details_error_info().unwrap();
        assert_eq!(info.metadata["header"], "authentication");
    }
    for ask in [
        older(&token).header("authentication", &format!("Bearer {token}")),
        older(&token).bearer(&token).bearer(&token),
    ] {
        client.call(ask).await.refused(Reason::HeaderDuplicate);
    }
    let wrong = new_signer().sign(&rig.claims()).unwrap();
    client.call(older(&wrong)).await.refused(Reason::TokenInvalid);
    client.call(older("abc")).await.refused(Reason::TokenMalformed);
    client
        .call(Ask::spark("ExecutePlan").header("authentication", "Basic abc"))
        .await
        .refused(Reason::TokenMalformed);
    assert_eq!(rig.spark.seen().requests.len(), 4, "only the good ones passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_several_callers() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    assert_eq!(client.call(rig.ask()).await.code(), Code::Ok);
    client
        .call(Ask::spark("Config"))
        .await
        .refused(Reason::TokenMissing);
    assert_eq!(client.call(rig.ask()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_counts_at_the_start_of_a_call_and_graces_are_by_method() {
    let rig = Rig::start().await;
    let token = rig.token();
    let by = |method: &str| Ask::spark(method).bearer(&token);
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
async fn revoked_tokens_are_refused_and_their_running_calls_ended() {
    let rig = Rig::start().await;
    let (one, two) = (rig.claims(), rig.claims());
    let hang = |claims: &Claims| {
        Ask::execute(&rig.sign(claims)).shape(test_support::fake_spark::Shape::HangAfterOne)
    };
    let client = rig.client().await;
    let mut first = client.begin(&hang(&one)).await.unwrap();
    first.finish(test_support::fake_spark::request(b"go"));
    let (_u1, first) = within("headers", first.head()).await.unwrap();
    let mut second = client.begin(&hang(&two)).await.unwrap();
    second.finish(test_support::fake_spark::request(b"go"));
    let (_u2, second) = within("headers", second.head()).await.unwrap();

    // One token by its name.
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
    rig.call(Ask::execute(&rig.sign(&one)))
        .await
        .refused(Reason::TokenRevoked);
    assert_eq!(rig.call(Ask::execute(&rig.sign(&two))).await.code(), Code::Ok);

    // All of them by the epoch.
    route.version = 3;
    route.token_epoch = 2;
    rig.routes.announce(route);
    within("the second ends", common::Reply::rest(second))
        .await
        .unwrap()
        .refused(Reason::TokenRevoked);
    rig.call(Ask::execute(&rig.sign(&two)))
        .await
        .refused(Reason::TokenRevoked);
    assert_eq!(
        rig.call(Ask::execute(&rig.sign(&Claims {
            epoch: 2,
            ..rig.claims()
        })))
        .await
        .code(),
        Code::Ok
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_organization_and_a_foreign_one_are_refused() {
    let rig = Rig::start().await;
    let foreign = rig.sign(&Claims {
        org: "other".parse().unwrap(),
        ..rig.claims()
    });
    rig.call(Ask::execute(&foreign))
        .await
        .refused(Reason::TokenInvalid);
    let mut route = rig.route();
    route.version = 2;
    route.org_disabled = true;
    rig.routes.announce(route);
    within("it is refused", async {
        while rig.call(rig.ask()).await.code() == Code::Ok {}
    })
    .await;
    rig.call(rig.ask()).await.refused(Reason::OrgDisabled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_found_when_a_token_names_it() {
    let rig = Rig::with(|config| config.tokens.keys.again_after = Duration::from_millis(1)).await;
    let next = new_signer();
    let token = next.sign(&rig.claims()).unwrap();
    rig.call(Ask::execute(&token)).await.refused(Reason::TokenInvalid);
    let old = rig.token();
    assert_eq!(rig.call(Ask::execute(&old)).await.code(), Code::Ok);

    write_jwks(&rig.dir.path().join("jwks.json"), &[&next]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(rig.call(Ask::execute(&token)).await.code(), Code::Ok);
    // The old key is gone, and with it what it had signed, remembered or not.
    rig.call(Ask::execute(&old)).await.refused(Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_keys_have_the_set_read_again_once_in_a_while_only() {
    let rig = Rig::start().await;
    let next = new_signer();
    write_jwks(&rig.dir.path().join("jwks.json"), &[&rig.signer, &next]);
    // It was read at the start, less than 30 s ago.
    rig.call(Ask::execute(&next.sign(&rig.claims()).unwrap()))
        .await
        .refused(Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_no_start() {
    let routes = test_support::fake_routes::FakeRoutes::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let jwks = dir.path().join("jwks.json");
    let mut config = common::config(&routes, jwks.clone());
    // A free port, which the proxy itself is to bind.
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

/// A signature takes longer to check than all else that is done for a bad token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_signatures_of_one_address_are_not_checked_without_bound() {
    let rig = Rig::with(|config| {
        config.limits.bad_tokens_per_second_per_address = 2;
        config.listen.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let good = rig.ask();
    let known = Client::over(from(&rig, [198, 51, 100, 7]).await).await.unwrap();
    assert_eq!(known.call(good.clone()).await.code(), Code::Ok);

    // The signature of another token.
    let (one, other) = (rig.token(), rig.token());
    let signed = one.rsplit_once('.').unwrap().0;
    let forged = format!("{signed}.{}", other.rsplit_once('.').unwrap().1);
    for _ in 0..4 {
        let reply = known.call(Ask::execute(&forged)).await;
        reply.refused(Reason::TokenInvalid);
    }
    for token in [&forged, &rig.token()] {
        let reply = known.call(Ask::execute(token)).await;
        reply.refused(Reason::RateLimited);
        let text = reply.status().message().to_owned();
        assert!(
            text.contains("limits.bad_tokens_per_second_per_address"),
            "{text}"
        );
    }
    // What is remembered passes, and so does what comes from elsewhere.
    assert_eq!(known.call(good).await.code(), Code::Ok);
    let other = Client::over(from(&rig, [198, 51, 100, 8]).await).await.unwrap();
    assert_eq!(other.call(rig.ask()).await.code(), Code::Ok);
    within("it may come again", async {
        while known.call(rig.ask()).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// A connection that a load balancer brings from this address.
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
