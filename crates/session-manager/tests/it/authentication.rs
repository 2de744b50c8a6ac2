//! Authentication: identity providers and service accounts, and the limits of both
//! ports.

use crate::support::idp::Idp;
use crate::support::{Manager, on, until};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use serde_json::{Value, json};
use service_kit::caller::{NewKey, generate_key};
use service_kit::grpc::{self, ClientConfig};
use service_kit::tls::ClientTlsFiles;
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use session_proto::internal::{RecordTokenRequest, ReportActivityRequest, WatchRoutesRequest};
use session_proto::v1;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

/// The provider `corp` of the organizations `acme` and `beta`.
fn trusting(idp: &Idp, more: &str) -> String {
    format!(
        "platform_admins = [\"corp|root\"]\n{more}\n\
         [[oidc]]\nalias = \"corp\"\nissuer = \"{}\"\naudiences = [\"berth\"]\norgs = [\"acme\", \"beta\"]\n\
         org_claim = \"org\"\nroles_claim = \"roles\"\nteams_claim = \"groups\"\nkeys.again_after = \"1s\"\n",
        idp.issuer
    )
}

fn bearer<T>(message: T, credential: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {credential}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

async fn list(manager: &Manager, credential: &str) -> Result<Vec<v1::Session>, Status> {
    SessionServiceClient::new(manager.public.clone())
        .list_sessions(bearer(v1::ListSessionsRequest::default(), credential))
        .await
        .map(|listed| listed.into_inner().sessions)
}

async fn create(manager: &Manager, credential: &str) -> Result<v1::Session, Status> {
    let request = on("c");
    SessionServiceClient::new(manager.public.clone())
        .create_session(bearer(request, credential))
        .await
        .map(|created| created.into_inner().session.unwrap())
}

/// Waits until the provider's keys are loaded.
async fn known(manager: &Manager, idp: &Idp) {
    let token = idp.token(json!({"org": "acme", "roles": ["member"]}));
    until("the provider's keys", async || {
        list(manager, &token).await.is_ok()
    })
    .await;
}

fn member(claims: Value) -> Value {
    let mut all = json!({"org": "acme", "roles": ["member"]});
    for (name, value) in claims.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

#[tokio::test]
async fn tokens_and_keys_side_by_side() {
    let idp = Idp::start().await;
    let manager = Manager::start_with(&trusting(&idp, "")).await;
    known(&manager, &idp).await;
    let ada = idp.token(member(json!({"groups": ["data"]})));
    let session = create(&manager, &ada).await.unwrap();
    assert_eq!(
        (session.owner.as_str(), session.org.as_str()),
        ("corp|ada", "acme")
    );
    // The same name from another issuer is another principal.
    let by_key = manager.create("ada").await;
    let of = |sessions: Vec<v1::Session>| -> Vec<String> { sessions.into_iter().map(|one| one.id).collect() };
    assert_eq!(
        of(list(&manager, &ada).await.unwrap()),
        std::slice::from_ref(&session.id)
    );
    let olga = idp.token(member(json!({"sub": "olga", "roles": ["org-admin"]})));
    assert_eq!(
        list(&manager, &olga).await.unwrap().len(),
        2,
        "an org admin by claim sees {by_key:?} too"
    );
    let elsewhere = idp.token(json!({"sub": "olga", "org": "beta", "roles": ["org-admin"]}));
    assert_eq!(
        of(list(&manager, &elsewhere).await.unwrap()),
        Vec::<String>::new()
    );
    // Without a role a principal may read, but not create.
    let unknown = idp.token(json!({"org": "acme", "sub": "new"}));
    assert_eq!(
        reason_of(&create(&manager, &unknown).await.unwrap_err()),
        Some(Reason::NotAuthorized)
    );
    manager.stop().await;
}

/// Group ids in the form of directories; a thousand of them are 39 KiB.
fn groups(count: u32) -> Value {
    let id = |n: u32| format!("{n:08x}-5f0e-4b6e-9c1d-{:012x}", u64::from(n) * 0x9e37_79b9);
    (0..count).map(id).collect()
}

#[tokio::test]
async fn tokens_of_many_groups_are_accepted_and_larger_ones_get_a_reason() {
    let idp = Idp::start().await;
    let manager = Manager::start_with(&trusting(&idp, "limits.failures_per_minute_per_address = 0")).await;
    known(&manager, &idp).await;
    let mut ledger = TokenLedgerClient::new(manager.internal.clone());
    let mut internal = async |credential: &str| {
        ledger
            .record_token(bearer(RecordTokenRequest::default(), credential))
            .await
            .unwrap_err()
    };
    let mut largest = 0;
    for count in [10, 330, 620, 880] {
        let token = idp.token(member(json!({"groups": groups(count)})));
        largest = token.len();
        assert!(
            list(&manager, &token).await.is_ok(),
            "{count} groups, {largest} bytes"
        );
        // token-issuer forwards the same credential to the internal port.
        let answer = internal(&token).await;
        assert_ne!(answer.code(), Code::Unauthenticated, "{count}: {answer:?}");
    }
    assert!(largest > 32 << 10, "{largest}");
    // 53, 69 and 110 KiB.
    for count in [1000, 1300, 2000] {
        let token = idp.token(member(json!({"groups": groups(count)})));
        for refused in [list(&manager, &token).await.unwrap_err(), internal(&token).await] {
            assert_eq!(refused.code(), Code::Unauthenticated, "{count}: {refused:?}");
            assert_eq!(reason_of(&refused), Some(Reason::CallerUnknown));
            let text = refused.message();
            assert!(text.contains("too l"), "{count}: {text}");
        }
    }
    // Headers other than the token.
    let mut padded = bearer(v1::ListSessionsRequest::default(), &idp.token(member(json!({}))));
    let padding = "x".repeat(70 << 10).parse().unwrap();
    padded.metadata_mut().insert("x-padding", padding);
    let refused = SessionServiceClient::new(manager.public.clone())
        .list_sessions(padded)
        .await
        .unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::InvalidArgument), "{refused:?}");
    assert!(refused.message().contains("65536"), "{refused:?}");
    manager.stop().await;
}

#[tokio::test]
async fn invalid_credentials_are_rejected_with_different_errors() {
    let idp = Idp::start().await;
    let stranger = Idp::start().await;
    let manager = Manager::start_with(&trusting(&idp, "limits.failures_per_minute_per_address = 0")).await;
    known(&manager, &idp).await;
    let now = session_core::Clock::now(&session_core::SystemClock).as_secs();
    let key = manager.create("ada").await;
    let mut altered = idp.token(member(json!({})));
    altered.replace_range(altered.len() - 8.., "AAAAAAAA");
    for (credential, error) in [
        (idp.token(member(json!({"aud": "other"}))), "another aud"),
        (
            idp.token(member(json!({"iat": now - 900, "exp": now - 300}))),
            "has expired",
        ),
        (idp.token(member(json!({"exp": now + 90_000}))), "too far"),
        (stranger.token(member(json!({}))), "is not trusted here"),
        (
            stranger.token(member(json!({"iss": idp.issuer}))),
            "signature does not match",
        ),
        (altered, "signature does not match"),
        (idp.token(member(json!({"org": "umbrella"}))), "may not speak for"),
        (idp.token(json!({"roles": ["member"]})), "or it names none"),
        (
            idp.token(member(json!({"roles": {"member": true}}))),
            "wrong type",
        ),
        (manager.token(&key), "session token"),
        (
            "berth_sa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            "not known",
        ),
        ("letmein".to_owned(), "neither"),
        ("e30.e30.".to_owned(), "refused"),
    ] {
        let refused = list(&manager, &credential).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason_of(&refused)),
            (Code::Unauthenticated, Some(Reason::CallerUnknown)),
            "{error}: {refused}"
        );
        assert!(
            refused.message().contains(error),
            "{error}: {}",
            refused.message()
        );
        let echoed = credential
            .split('.')
            .any(|part| part.len() > 8 && refused.message().contains(part));
        assert!(!echoed, "{}", refused.message());
    }
    manager.stop().await;
}

#[tokio::test]
async fn only_configuration_makes_platform_admins() {
    let idp = Idp::start().await;
    let manager = Manager::start_with(&trusting(&idp, "")).await;
    known(&manager, &idp).await;
    let drain = async |claims: Value| {
        let request = v1::DrainClusterRequest {
            name: "gone".to_owned(),
        };
        let mut clusters = ClusterServiceClient::new(manager.public.clone());
        let refused = clusters
            .drain_cluster(bearer(request, &idp.token(claims)))
            .await
            .unwrap_err();
        reason_of(&refused)
    };
    let claimed = json!(["platform-admin", "org-admin", "member"]);
    assert_eq!(
        drain(member(json!({"roles": claimed}))).await,
        Some(Reason::NotAuthorized)
    );
    assert_eq!(
        drain(member(json!({"sub": "root"}))).await,
        Some(Reason::ManagedByConfig)
    );
    manager.stop().await;
}

#[tokio::test]
async fn keys_rotate_and_unknown_keys_do_not_cause_many_requests_to_the_provider() {
    let idp = Idp::start().await;
    let manager = Manager::start_with(&trusting(&idp, "limits.failures_per_minute_per_address = 0")).await;
    known(&manager, &idp).await;
    let old = idp.token(member(json!({})));
    idp.rotate(true);
    let new = idp.token(member(json!({})));
    until("the new key to be known", async || {
        list(&manager, &new).await.is_ok()
    })
    .await;
    assert!(
        list(&manager, &old).await.is_ok(),
        "the old one is still published"
    );

    idp.rotate(false);
    let unpublished = idp.token(member(json!({})));
    let (before, begun) = (idp.reads(), std::time::Instant::now());
    let calls = (0..200).map(|_| list(&manager, &unpublished));
    for outcome in futures::future::join_all(calls).await {
        assert!(
            outcome
                .unwrap_err()
                .message()
                .contains("signing key is not known")
        );
    }
    let allowed = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!(idp.reads() - before <= allowed, "{} reads", idp.reads() - before);

    idp.away(true);
    assert!(list(&manager, &new).await.is_ok(), "the last good keys stay");
    manager.stop().await;
}

#[tokio::test]
async fn an_unavailable_or_different_provider_is_not_trusted() {
    let idp = Idp::start().await;
    idp.away(true);
    let manager = Manager::start_with(&trusting(&idp, "")).await;
    let token = idp.token(member(json!({})));
    let refused = list(&manager, &token).await.unwrap_err();
    assert_eq!(
        reason_of(&refused),
        Some(Reason::ControlPlaneUnavailable),
        "{refused}"
    );
    for discovery in [
        json!({"issuer": format!("{}/", idp.issuer), "jwks_uri": format!("{}/keys", idp.issuer)}),
        json!({"issuer": "http://127.0.0.1:1", "jwks_uri": format!("{}/keys", idp.issuer)}),
        json!({"issuer": idp.issuer, "jwks_uri": "/etc/passwd"}),
        json!({"issuer": idp.issuer, "jwks_uri": "http://keys.example/keys"}),
        json!({"issuer": idp.issuer}),
        json!([]),
    ] {
        idp.serve_discovery(discovery);
        idp.away(false);
        let reads = idp.reads();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let refused = list(&manager, &token).await.unwrap_err();
        assert_eq!(
            reason_of(&refused),
            Some(Reason::ControlPlaneUnavailable),
            "{refused}"
        );
        assert_eq!(idp.reads(), reads, "its keys were read");
    }
    idp.serve_discovery(json!({"issuer": idp.issuer, "jwks_uri": format!("{}/keys", idp.issuer)}));
    until("the true provider", async || list(&manager, &token).await.is_ok()).await;
    manager.stop().await;
}

fn account(name: &str, key: &NewKey) -> String {
    format!(
        "[[service_accounts]]\nname = \"{name}\"\norg = \"acme\"\nroles = [\"member\"]\nkey_sha256 = \"{}\"\n",
        key.sha256
    )
}

#[tokio::test]
async fn a_leaked_key_is_removed_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("accounts.toml");
    let (leaked, other) = (generate_key(), generate_key());
    std::fs::write(&file, account("etl", &leaked) + &account("bi", &other)).unwrap();
    let config = format!(
        "service_accounts_file = \"{}\"\nlimits.failures_per_minute_per_address = 0\n",
        file.display()
    );
    let manager = Manager::start_with(&config).await;
    for key in [&leaked, &other] {
        assert!(list(&manager, &key.key).await.is_ok());
    }
    // An invalid file changes nothing.
    std::fs::write(
        &file,
        account("bi", &other) + "[[service_accounts]]\nname = \"x\"\n",
    )
    .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(list(&manager, &leaked.key).await.is_ok());
    // Rotation: the account has a second key.
    let rotated = generate_key();
    std::fs::write(&file, account("etl", &rotated) + &account("bi", &other)).unwrap();
    until("the leaked key to be refused", async || {
        list(&manager, &leaked.key).await.is_err()
    })
    .await;
    for key in [&rotated, &other] {
        assert!(list(&manager, &key.key).await.is_ok());
    }
    manager
        .sessions("ada")
        .list_sessions(v1::ListSessionsRequest::default())
        .await
        .unwrap();
    manager.stop().await;
}

#[tokio::test]
async fn calls_above_the_limits_are_rejected_with_a_retry_delay() {
    let limits = "limits.calls_per_second_per_principal = 5\nlimits.failures_per_minute_per_address = 5\n";
    let manager = Manager::start_with(limits).await;
    let calls = (0..40).map(|_| {
        let mut sessions = manager.sessions("ada");
        async move { sessions.list_sessions(v1::ListSessionsRequest::default()).await }
    });
    let outcomes = futures::future::join_all(calls).await;
    let limited: Vec<Status> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(
        (20..=30).contains(&limited.len()),
        "{} of 40 were limited",
        limited.len()
    );
    for status in &limited {
        assert_eq!(
            (status.code(), reason_of(status)),
            (Code::ResourceExhausted, Some(Reason::RateLimited))
        );
        assert!(
            status.get_details_retry_info().unwrap().retry_delay.is_some(),
            "{status}"
        );
    }
    assert!(
        manager
            .sessions("bob")
            .list_sessions(v1::ListSessionsRequest::default())
            .await
            .is_ok()
    );

    let large = v1::CreateSessionRequest {
        cluster: "x".repeat(300 * 1024),
        ..Default::default()
    };
    let refused = manager.sessions("bob").create_session(large).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    for _ in 0..5 {
        let refused = list(&manager, "berth_sa_guess").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    let shut = list(&manager, "berth_sa_guess").await.unwrap_err();
    assert_eq!(reason_of(&shut), Some(Reason::RateLimited), "{shut}");
    assert!(shut.get_details_retry_info().is_some());
    manager.stop().await;
}

/// A certificate of the services' authority with one name.
fn certificate(dir: &Path, file: &str, ca: &CertifiedIssuer<'static, KeyPair>, name: &str) -> ClientTlsFiles {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if name.contains("://") {
        params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    } else if !name.is_empty() {
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
    }
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, ca).unwrap();
    let path = |end: &str| dir.join(format!("{file}.{end}"));
    std::fs::write(path("crt"), cert.pem()).unwrap();
    std::fs::write(path("key"), key.serialize_pem()).unwrap();
    ClientTlsFiles {
        ca: Some(dir.join("ca.crt")),
        cert: Some(path("crt")),
        key: Some(path("key")),
        server_name: Some("localhost".to_owned()),
    }
}

/// Services without credentials (health, reflection) have limits of their own.
#[tokio::test]
async fn calls_without_a_credential_do_not_use_the_limits_of_callers() {
    let limits = "limits.calls_per_second_per_address = 0\n";
    let manager = Manager::start_with(limits).await;
    let mut sessions = manager.sessions("ada");
    sessions
        .list_sessions(v1::ListSessionsRequest::default())
        .await
        .unwrap();
    let mut opened = Vec::new();
    let mut refused = 0;
    for _ in 0..17 {
        let channel = Endpoint::from_shared(manager.public_uri.clone()).unwrap();
        let health = HealthClient::new(channel.connect().await.unwrap());
        let watches = (0..256).map(|_| {
            let mut health = health.clone();
            async move { health.watch(HealthCheckRequest::default()).await }
        });
        for watch in futures::future::join_all(watches).await {
            match watch {
                Ok(watch) => opened.push(watch),
                Err(status) => {
                    assert_eq!(reason_of(&status), Some(Reason::RateLimited), "{status:?}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((opened.len(), refused), (32, 17 * 256 - 32));
    // Also for callers from the same address.
    let calls = (0..50).map(|_| {
        let mut sessions = manager.sessions("ada");
        async move { sessions.list_sessions(v1::ListSessionsRequest::default()).await }
    });
    for outcome in futures::future::join_all(calls).await {
        outcome.unwrap();
    }
    drop(opened);
    manager.stop().await;
}

/// Watches stay open as long as their callers read.
#[tokio::test]
async fn an_organization_has_a_limit_of_concurrent_calls() {
    let limits = "limits.calls_at_once_per_org = 3\nlimits.calls_per_second_per_principal = 0\n";
    let manager = Manager::start_with(limits).await;
    let mut watches = Vec::new();
    for who in ["ada", "bob", "olga"] {
        let mut sessions = manager.sessions(who);
        let watch = sessions.watch_sessions(v1::WatchSessionsRequest::default());
        watches.push(watch.await.unwrap());
    }
    let list = async |who| {
        let mut sessions = manager.sessions(who);
        let listed = sessions.list_sessions(v1::ListSessionsRequest::default());
        listed.await.map(drop)
    };
    let status = list("tom").await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::RateLimited), "{status:?}");
    assert!(status.message().contains("organization"), "{}", status.message());
    list("eve").await.unwrap();
    watches.pop();
    until("a place to come back", async || list("tom").await.is_ok()).await;
    drop(watches);
    manager.stop().await;
}

#[tokio::test]
async fn services_may_call_the_methods_of_their_certificate_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "services");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
    let own = certificate(dir.path(), "server", &ca, "localhost");
    let config = format!(
        "listen.internal.tls.cert = \"{}\"\nlisten.internal.tls.key = \"{}\"\nlisten.internal.tls.client_ca = \"{}\"\n\
         [internal.allow]\nRouteService = [\"spark-proxy.berth.svc\"]\nTokenLedger = [\"spiffe://berth/token-issuer\"]\n\
         \"RouteService/WatchRoutes\" = [\"watcher.berth.svc\", \"spark-proxy.berth.svc\"]\n",
        own.cert.unwrap().display(),
        own.key.unwrap().display(),
        dir.path().join("ca.crt").display(),
    );
    let manager = Manager::start_with(&config).await;
    let uri = manager.internal_uri.replace("http://", "https://");
    let channel = |tls: ClientTlsFiles| {
        grpc::channel(&ClientConfig {
            tls,
            ..ClientConfig::new(&uri)
        })
        .unwrap()
    };
    let tried = async |name: &str| {
        let file = name.replace(['/', ':', '*'], "_");
        let tls = certificate(dir.path(), &file, &ca, name);
        let (mut routes, mut ledger) = (
            RouteServiceClient::new(channel(tls.clone())),
            TokenLedgerClient::new(channel(tls)),
        );
        let report = ReportActivityRequest {
            proxy_id: "p".to_owned(),
            ..Default::default()
        };
        let asked = RecordTokenRequest {
            session_id: "s-01jdq8f2mxk7w3v9c5ba".to_owned(),
            ..Default::default()
        };
        let refused = |status: &Status| {
            reason_of(status) == Some(Reason::NotAuthorized) && status.message().contains("certificate")
        };
        let outcomes = [
            routes.report_activity(report).await.map(drop),
            routes
                .watch_routes(WatchRoutesRequest {
                    proxy_id: "p".to_owned(),
                })
                .await
                .map(drop),
            // Admitted, the call fails without a caller's credential.
            ledger.record_token(asked).await.map(drop),
        ];
        outcomes.map(|outcome| !outcome.is_err_and(|status| refused(&status)))
    };
    for (name, may) in [
        ("spark-proxy.berth.svc", [true, true, false]),
        ("SPARK-PROXY.berth.svc", [true, true, false]),
        ("watcher.berth.svc", [false, true, false]),
        ("spiffe://berth/token-issuer", [false, false, true]),
        ("spiffe://berth/token-issuer/x", [false, false, false]),
        ("*.berth.svc", [false, false, false]),
        ("spark-proxy.berth.svc.evil.example", [false, false, false]),
        ("localhost", [false, false, false]),
    ] {
        assert_eq!(tried(name).await, may, "{name}");
    }
    let unknown = ClientTlsFiles {
        cert: None,
        key: None,
        ..certificate(dir.path(), "unlisted", &ca, "localhost")
    };
    let outcome = RouteServiceClient::new(channel(unknown))
        .report_activity(ReportActivityRequest::default())
        .await;
    let broken = outcome.unwrap_err();
    assert!(
        matches!(broken.code(), Code::Unavailable | Code::Unknown) && reason_of(&broken).is_none(),
        "without a certificate there is no connection: {broken}"
    );
    manager.stop().await;
}

#[tokio::test]
async fn the_public_port_does_not_serve_the_internal_api() {
    let manager = Manager::start().await;
    let mut routes = RouteServiceClient::new(manager.public.clone());
    let refused = routes
        .report_activity(ReportActivityRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let mut sessions = SessionServiceClient::new(manager.internal.clone());
    let refused = sessions
        .list_sessions(v1::ListSessionsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    manager.stop().await;
}
