//! Services that authenticate by a token of their platform instead of a certificate.

use crate::support::idp::Idp;
use crate::support::{Manager, until};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use service_kit::config::{Sources, load};
use service_kit::grpc::ClientConfig;
use service_kit::service_account_token::{SERVICE_TOKEN, ServiceChannel, service_channel};
use service_kit::tls::ClientTlsFiles;
use session_core::{Clock as _, Reason, SystemClock};
use session_manager::Config;
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use std::path::{Path, PathBuf};
use tonic::{Code, Request, Status};

const PROXY: &str = "system:serviceaccount:berth:spark-proxy";
const ISSUER: &str = "system:serviceaccount:berth:token-issuer";

/// A token in the form that a kubelet projects.
fn projected(platform: &Idp, subject: &str, change: Value) -> String {
    let mut claims = json!({
        "sub": subject,
        "aud": ["berth-internal"],
        "nbf": SystemClock.now().as_secs(),
        "jti": "0b5c2e9e-1f3a-4c6d-8e7f-000000000001",
        "kubernetes.io": {"namespace": "berth", "pod": {"name": "x-0", "uid": "1"}},
    });
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    platform.token(claims)
}

struct Rig {
    platform: Idp,
    manager: Manager,
    uri: String,
    dir: tempfile::TempDir,
}

fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("tls.crt"), cert.pem()).unwrap();
    std::fs::write(dir.join("tls.key"), signing_key.serialize_pem()).unwrap();
    (dir.join("tls.crt"), dir.join("tls.key"))
}

fn settings(platform: &Idp, dir: &Path) -> String {
    let (cert, key) = certificate(dir);
    format!(
        "listen.internal.tls.cert = \"{}\"\nlisten.internal.tls.key = \"{}\"\n\
         [internal]\nallow = {{ RouteService = [\"{PROXY}\"], TokenLedger = [\"{ISSUER}\"] }}\n\
         [internal.tokens]\nissuer = \"{}\"\naudience = \"berth-internal\"\n",
        cert.display(),
        key.display(),
        platform.issuer
    )
}

impl Rig {
    async fn start() -> Self {
        let (platform, dir) = (Idp::start().await, tempfile::tempdir().unwrap());
        let manager = Manager::start_with(&settings(&platform, dir.path())).await;
        let uri = manager
            .internal_uri
            .replace("http://127.0.0.1", "https://localhost");
        let rig = Self {
            platform,
            manager,
            uri,
            dir,
        };
        let good = rig.channel("first", &projected(&rig.platform, PROXY, json!({})));
        until("the platform's keys are known", async || {
            reports(&good).await.is_ok()
        })
        .await;
        rig
    }

    /// The channel of a service with this token file.
    fn channel(&self, name: &str, token: &str) -> ServiceChannel {
        let path = self.dir.path().join(name);
        std::fs::write(&path, token).unwrap();
        service_channel(&ClientConfig {
            tls: ClientTlsFiles {
                ca: Some(self.dir.path().join("tls.crt")),
                ..ClientTlsFiles::default()
            },
            token_file: Some(path),
            ..ClientConfig::new(&self.uri)
        })
        .unwrap()
    }
}

async fn reports(channel: &ServiceChannel) -> Result<(), Status> {
    let report = wire::ReportActivityRequest {
        proxy_id: "p".to_owned(),
        ..Default::default()
    };
    RouteServiceClient::new(channel.clone())
        .report_activity(report)
        .await
        .map(drop)
}

async fn keys(channel: &ServiceChannel) -> Result<(), Status> {
    TokenLedgerClient::new(channel.clone())
        .report_keys(wire::ReportKeysRequest::default())
        .await
        .map(drop)
}

#[tokio::test]
async fn a_service_is_identified_by_the_subject_of_its_token() {
    let rig = Rig::start().await;
    let proxy = rig.channel("proxy", &projected(&rig.platform, PROXY, json!({})));
    let issuer = rig.channel("issuer", &projected(&rig.platform, ISSUER, json!({})));
    reports(&proxy).await.unwrap();
    keys(&issuer).await.unwrap();
    for refused in [keys(&proxy).await, reports(&issuer).await] {
        let refused = refused.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::NotAuthorized), "{refused}");
    }
    // Other subjects of the same platform, and similar names.
    for subject in [
        "system:serviceaccount:berth:spark-proxy2",
        "system:serviceaccount:other:spark-proxy",
        "system:serviceaccount:berth:Spark-Proxy",
        "system:serviceaccount:berth:",
        "*",
        "x",
    ] {
        let channel = rig.channel("other", &projected(&rig.platform, subject, json!({})));
        let refused = reports(&channel).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{subject}: {refused}");
    }
    rig.manager.stop().await;
}

#[tokio::test]
async fn invalid_tokens_are_rejected() {
    let rig = Rig::start().await;
    let now = SystemClock.now().as_secs();
    let stranger = Idp::start().await;
    let signed = projected(&rig.platform, PROXY, json!({}));
    let (head, _) = signed.rsplit_once('.').unwrap();
    for (case, token) in [
        (
            "audience",
            projected(&rig.platform, PROXY, json!({"aud": ["api"]})),
        ),
        (
            "one audience more",
            projected(&rig.platform, PROXY, json!({"aud": ["berth-internal", "api"]})),
        ),
        (
            "expired",
            projected(
                &rig.platform,
                PROXY,
                json!({"iat": now - 900, "nbf": now - 900, "exp": now - 300}),
            ),
        ),
        (
            "too long a life",
            projected(&rig.platform, PROXY, json!({"exp": now + 30 * 86_400})),
        ),
        ("another platform", projected(&stranger, PROXY, json!({}))),
        (
            "another platform with the same issuer",
            projected(&stranger, PROXY, json!({"iss": rig.platform.issuer})),
        ),
        ("no signature", format!("{head}.")),
        ("another signature", format!("{head}.{}", "A".repeat(86))),
        ("a caller's key", service_kit::caller::generate_key().key),
        ("nonsense", "nonsense".to_owned()),
    ] {
        let channel = rig.channel("bad", &token);
        let refused = reports(&channel).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{case}: {refused}");
        assert_eq!(reason_of(&refused), None, "it is not about a caller: {case}");
        assert!(!refused.message().contains(&token), "{case}");
    }
    // None, two, and one in the header of callers' credentials.
    let none = service_channel(&ClientConfig {
        tls: ClientTlsFiles {
            ca: Some(rig.dir.path().join("tls.crt")),
            ..ClientTlsFiles::default()
        },
        ..ClientConfig::new(&rig.uri)
    })
    .unwrap();
    let mut two = Request::new(wire::ReportActivityRequest::default());
    two.metadata_mut().append(SERVICE_TOKEN, signed.parse().unwrap());
    two.metadata_mut().append(SERVICE_TOKEN, signed.parse().unwrap());
    let mut elsewhere = Request::new(wire::ReportActivityRequest::default());
    let bearer = format!("Bearer {signed}").parse().unwrap();
    elsewhere.metadata_mut().insert("authorization", bearer);
    for request in [
        Request::new(wire::ReportActivityRequest::default()),
        two,
        elsewhere,
    ] {
        let mut routes = RouteServiceClient::new(none.clone());
        let refused = routes.report_activity(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    rig.manager.stop().await;
}

#[tokio::test]
async fn a_replaced_token_is_used_without_a_restart() {
    let rig = Rig::start().await;
    let channel = rig.channel("token", &projected(&rig.platform, "x", json!({})));
    assert_eq!(
        reports(&channel).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // By rename, as a kubelet does.
    std::fs::write(
        rig.dir.path().join("token"),
        projected(&rig.platform, PROXY, json!({})),
    )
    .unwrap();
    until("the new token is shown", async || reports(&channel).await.is_ok()).await;
    rig.manager.stop().await;
}

#[tokio::test]
async fn tokens_require_tls_and_named_subjects() {
    let (platform, dir) = (Idp::start().await, tempfile::tempdir().unwrap());
    let jwks = dir.path().join("jwks.json");
    std::fs::write(&jwks, "{\"keys\":[]}").unwrap();
    let refused = |change: &dyn Fn(String) -> String| {
        let text = format!(
            "store.url = \"memory://\"\ntokens.keys.location = \"{}\"\n{}",
            jwks.display(),
            settings(&platform, dir.path())
        );
        let file = dir.path().join("config.toml");
        std::fs::write(&file, change(text)).unwrap();
        let loaded = load::<Config>(&Sources {
            file: Some(file),
            ..Default::default()
        });
        loaded.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&|text| text), "");
    let without_tls = refused(&|text| {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("listen.internal.tls"));
        lines.map(|line| format!("{line}\n")).collect()
    });
    assert!(without_tls.contains("over TLS only"), "{without_tls}");
    let any = refused(&|text| text.replace(&format!("\"{PROXY}\""), "\"*\""));
    assert!(any.contains("everybody on the platform"), "{any}");
    let none = refused(&|text| text.replace(&format!("\"{ISSUER}\""), ""));
    assert!(none.contains("internal.allow.TokenLedger"), "{none}");
    let both = refused(&|text| {
        let ca = dir.path().join("tls.crt");
        format!("listen.internal.tls.client_ca = \"{}\"\n{text}", ca.display())
    });
    assert!(both.contains("one or the other"), "{both}");

    // The client side: an https address, and an existing file.
    let token = dir.path().join("token");
    std::fs::write(&token, "x").unwrap();
    let problems = |uri: &str, file: &Path| {
        let config = ClientConfig {
            token_file: Some(file.to_owned()),
            ..ClientConfig::new(uri)
        };
        let mut problems = service_kit::config::Problems::default();
        service_kit::config::Validate::validate(&config, &mut problems);
        problems.found().len()
    };
    assert_eq!(problems("https://manager:8082", &token), 0);
    assert_eq!(
        problems("http://127.0.0.1:8082", &token),
        1,
        "not even on loopback"
    );
    assert_eq!(problems("https://manager:8082", &dir.path().join("none")), 1);
}
