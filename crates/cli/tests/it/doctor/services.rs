//! Faults that Berth itself reports: its services are real, and a scripted peer
//! stands for what they say only under load or while they stop.

use super::{Case, Rig};
use crate::support::grpc_peer::{Script, scripted};
use crate::support::{Stack, free_address};
use prost::Message as _;
use session_core::Reason;
use session_proto::convert;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::{self, SessionStatus};
use std::collections::BTreeSet;
use std::time::Duration;
use test_support::redis::PrivateRedis;
use tonic::transport::Endpoint;

/// Checks the cases; returns the verdicts that were provoked.
pub(super) async fn check(mut rig: Rig, wrong: &mut Vec<String>) -> (BTreeSet<&'static str>, Rig) {
    let mut cases = credentials(&rig).await;
    cases.extend(sessions(&rig).await);
    cases.extend(away(&rig).await);
    cases.extend(reasons(&rig).await);
    cases.extend(over_tls(&mut rig).await);
    for case in &cases {
        wrong.extend(rig.check(case).await.err());
    }
    let mut provoked: BTreeSet<&'static str> = cases.iter().map(|case| case.verdict).collect();
    provoked.insert(without_redis(&rig, wrong).await);
    (provoked, rig)
}

/// Keys and tokens.
async fn credentials(rig: &Rig) -> Vec<Case> {
    let stack = &rig.stack;
    let session = stack.active("ada").await;
    let other = stack.active("ada").await;
    let token = stack.issue("ada", &session).await.token;
    let revoked = stack.issue("ada", &session).await;
    let request = v1::RevokeSessionTokenRequest {
        session_id: session.clone(),
        token_id: revoked.token_id.clone(),
    };
    stack
        .tokens()
        .revoke_session_token(stack.asks("ada", request))
        .await
        .unwrap();
    let disable = v1::DisableOrgRequest {
        name: "closed".to_owned(),
    };
    let channel = Endpoint::from_shared(format!("http://{}", stack.manager))
        .unwrap()
        .connect_lazy();
    OrgServiceClient::new(channel)
        .disable_org(stack.asks("pat", disable))
        .await
        .unwrap();
    let [manager, issuer] = stack.addresses();
    let part = "spark-proxy";
    vec![
        Case::new("credential-rejected", "session-manager")
            .env("BERTH_MANAGER", &manager)
            .env("BERTH_ISSUER", &issuer)
            .env("BERTH_KEY", "berth_sa_wrong"),
        rig.at_stack("organization-disabled", "session-manager", "kim", None),
        rig.string(
            "token-expired",
            part,
            &stack.string(&stack.expired_token(&session), &session),
        ),
        rig.string(
            "token-foreign",
            part,
            &stack.string(&stack.foreign_token(&session), &session),
        ),
        rig.string("token-malformed", part, &stack.string("berth_sa_key", &session)),
        rig.string("token-revoked", part, &stack.string(&revoked.token, &session)),
        rig.string("session-mismatch", part, &stack.string(&token, &other)),
        rig.at_stack("wrong-service", "session-manager", "ada", None)
            .env("BERTH_MANAGER", &issuer)
            .env("BERTH_ISSUER", &manager),
        rig.at_stack("ok", "", "ada", None),
        rig.at_stack("ok", "", "ada", Some(&session)),
    ]
}

/// States of sessions.
async fn sessions(rig: &Rig) -> Vec<Case> {
    let stack = &rig.stack;
    let active = stack.active("ada").await;
    let closed = stack.active("ada").await;
    let of_closed = stack.issue("ada", &closed).await.token;
    stack.close("ada", &closed).await;
    let starting = stack.pending("ada").await;
    let failed = stack.failed("ada", "no such image").await;
    let lost = stack.active_at("ada", free_address()).await;
    let full = stack.active("eve").await;
    stack.issue("eve", &full).await;
    vec![
        rig.at_stack("session-not-found", "session-manager", "bob", Some(&active)),
        rig.at_stack("session-not-found", "session-manager", "ada", Some("s-1")),
        rig.at_stack("session-closed", "session", "ada", Some(&closed)),
        rig.string(
            "session-closed",
            "spark-proxy",
            &stack.string(&of_closed, &closed),
        ),
        rig.at_stack("session-starting", "session", "ada", Some(&starting)),
        rig.at_stack("session-failed", "session", "ada", Some(&failed)),
        rig.at_stack("compute-unavailable", "spark-proxy", "ada", Some(&lost)),
        rig.at_stack("quota-exceeded", "token-issuer", "eve", Some(&full)),
    ]
}

/// Services whose session-manager is away, a console that is away, and clocks
/// that differ.
async fn away(rig: &Rig) -> Vec<Case> {
    let stack = &rig.stack;
    let session = stack.active("ada").await;
    let token = stack.issue("ada", &session).await.token;
    let lonely = stack.string(&token, &session).replace(
        &format!(":{}/", stack.proxy.port()),
        &format!(":{}/", stack.lonely_proxy.port()),
    );
    let issued = v1::IssueSessionTokenResponse {
        token: token.clone(),
        issued_at: Some(convert::timestamp(session_core::Timestamp::from_millis(
            1_700_000_000_000,
        ))),
        connection_url: stack.string(&token, &session),
        ..Default::default()
    };
    let old = scripted(Script::Message(issued.encode_to_vec())).await;
    let away = free_address();
    vec![
        rig.at_stack("control-plane-unavailable", "token-issuer", "ada", None)
            .env("BERTH_ISSUER", format!("http://{}", stack.lonely_issuer)),
        rig.string("control-plane-unavailable", "spark-proxy", &lonely),
        rig.at_stack("console-unreachable", "console", "ada", None)
            .env("BERTH_CONSOLE", format!("http://{away}")),
        rig.at_stack("connection-refused", "session-manager", "ada", None)
            .env("BERTH_MANAGER", format!("http://{away}")),
        rig.at_stack("clock-off", "token-issuer", "ada", Some(&session))
            .env("BERTH_ISSUER", format!("http://{old}")),
    ]
}

/// Reasons that a healthy stack does not give on request.
async fn reasons(rig: &Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (verdict, reason) in [
        ("catalog-unavailable", Reason::CatalogUnavailable),
        ("cluster-not-active", Reason::ClusterNotActive),
        ("proxy-draining", Reason::ProxyDraining),
        ("rate-limited", Reason::RateLimited),
        ("rate-limited", Reason::TooManyWaiting),
        ("session-starting", Reason::SessionWarming),
        ("session-idle", Reason::ComputeReleased),
        ("session-failed", Reason::SessionFailed),
        ("tls-expected", Reason::TlsRequired),
        ("connection-string-invalid", Reason::HeaderMissing),
        ("berth-fault", Reason::Internal),
        ("berth-fault", Reason::NotAuthorized),
    ] {
        let peer = scripted(Script::Reason(reason)).await;
        let string = format!("sc://localhost:{}/;token=x", peer.port());
        cases.push(rig.string(verdict, "spark-proxy", &string));
    }
    let mut idle = v1::Session {
        id: "s-1".to_owned(),
        reason: "IDLE_RELEASED".to_owned(),
        ..Default::default()
    };
    idle.set_status(SessionStatus::Idle);
    let described = v1::DescribeSessionResponse { session: Some(idle) };
    let peer = scripted(Script::Message(described.encode_to_vec())).await;
    // The rest of the check goes wrong at token-issuer, which comes later.
    let session = rig.stack.active("ada").await;
    cases.push(
        rig.at_stack("session-idle", "session", "ada", Some(&session))
            .env("BERTH_MANAGER", format!("http://{peer}")),
    );
    cases
}

/// A proxy with TLS of a private authority.
async fn over_tls(rig: &mut Rig) -> Vec<Case> {
    let dir = rig.berth.dir.path().to_path_buf();
    rig.authority.write(&dir);
    let ca = dir.join("ca.pem").display().to_string();
    let proxy = rig
        .stack
        .tls_proxy(&dir.join("cert.pem"), &dir.join("key.pem"))
        .await;
    let session = rig.stack.active("ada").await;
    let token = rig.stack.issue("ada", &session).await.token;
    let string = format!(
        "sc://localhost:{}/;use_ssl=true;token={token};x-session-id={session}",
        proxy.port()
    );
    let plain = string.replace("use_ssl=true;", "");
    // The new proxy must have read keys and routes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let part = "spark-proxy";
    vec![
        rig.string("tls-private-authority", part, &string),
        rig.string("tls-expected", part, &plain),
        rig.string("client-authority", "client", &string)
            .env("BERTH_CA", &ca),
        rig.string("ok", "", &string)
            .env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", &ca),
    ]
}

/// session-manager on a Redis that has died.
async fn without_redis(rig: &Rig, wrong: &mut Vec<String>) -> &'static str {
    let mut redis = PrivateRedis::start().await.unwrap();
    let options = session_store::redis::Options::default();
    let store = session_store::open(&redis.url(), &options).await.unwrap();
    let stack = Stack::start_on(store).await;
    redis.kill9().unwrap();
    let [manager, issuer] = stack.addresses();
    let verdict = "state-store-unavailable";
    let case = Case::new(verdict, "session-manager")
        .env("BERTH_MANAGER", manager)
        .env("BERTH_ISSUER", issuer)
        .env("BERTH_KEY", stack.key("ada"));
    wrong.extend(rig.check(&case).await.err());
    verdict
}
