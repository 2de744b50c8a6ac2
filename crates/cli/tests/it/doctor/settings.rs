//! Faults of this machine's settings, credentials and client.

use super::{Case, Rig};
use crate::support::provider::Provider;
use crate::support::{free_address, script};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use session_core::{Clock as _, SystemClock};

fn jwt(exp: u64, iat: u64) -> String {
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let claims = format!("{{\"iss\":\"https://i\",\"sub\":\"ada\",\"exp\":{exp},\"iat\":{iat}}}");
    format!("{}.{}.c2ln", part("{\"alg\":\"ES256\"}".to_owned()), part(claims))
}

pub(super) async fn cases(rig: &Rig) -> Vec<Case> {
    let berth = &rig.berth;
    let session = rig.stack.active("ada").await;
    let token = rig.stack.issue("ada", &session).await.token;
    let string = rig.stack.string(&token, &session);
    let broken = berth.write("broken.toml", "[contexts.x]\nmanger = 1\n");
    let no_pem = berth.write("no.pem", "no certificate");
    let plain = |verdict, part| Case::new(verdict, part).env("BERTH_KEY", "berth_sa_x");
    let now = SystemClock.now().as_secs();
    let mut cases = vec![
        plain("config-file-invalid", "settings").env("BERTH_CONFIG", broken),
        plain("context-unknown", "settings").args(["--context", "nowhere"]),
        plain("address-invalid", "settings").env("BERTH_MANAGER", "berth.example.org:8081"),
        plain("plaintext-refused", "settings").env("BERTH_MANAGER", "http://192.0.2.1:8081"),
        plain("authority-file-invalid", "settings").env("BERTH_CA", no_pem),
        plain("credential-ambiguous", "settings").env("BERTH_TOKEN", "x"),
        Case::new("credential-missing", "credential"),
        Case::new("credential-missing", "credential").env("BERTH_KEY_FILE", "/nonexistent"),
        Case::new("credential-expired", "credential").env("BERTH_TOKEN", jwt(now - 60, now - 600)),
        Case::new("clock-off", "credential").env("BERTH_TOKEN", jwt(now + 1200, now + 600)),
        Case::new("credential-is-session-token", "credential").env("BERTH_TOKEN", &token),
        rig.string(
            "connection-string-invalid",
            "settings",
            &string.replace(";x-session-id", " ;x-session-id"),
        ),
        rig.string("connection-string-invalid", "settings", &format!("{string}…")),
        rig.string("token-missing", "settings", "sc://localhost:1/;x-session-id=s-1"),
        rig.string("ok", "", &string),
        rig.string("proxy-environment", "client", &string)
            .env("https_proxy", "http://proxy.example:3128"),
        rig.string("ok", "", &string)
            .env("https_proxy", "http://proxy.example:3128")
            .env("no_proxy", "localhost"),
    ];
    for (name, versions, verdict, part) in [
        (
            "py41",
            "{\"pyspark-client\": \"4.1.3\", \"grpcio\": \"1.80.0\"}",
            "ok",
            "",
        ),
        (
            "py35",
            "{\"pyspark\": \"3.5.9\", \"grpcio\": \"1.62.3\"}",
            "client-needs-tls",
            "client",
        ),
        ("bare", "{\"pyspark\": \"4.1.3\"}", "client-version", "client"),
        ("none", "{}", "client-version", "client"),
    ] {
        let python = berth.file(name);
        script(&python, versions);
        let python = python.display().to_string();
        cases.push(rig.string(verdict, part, &string).args(["--python", &python]));
    }
    // The cluster of the session supports 4.1 only.
    let old = berth.file("py40");
    script(&old, "{\"pyspark\": \"4.0.4\", \"grpcio\": \"1.80.0\"}");
    let old = old.display().to_string();
    cases.push(
        rig.at_stack("client-version", "client", "ada", Some(&session))
            .args(["--python", &old]),
    );
    cases.extend(sign_ins(rig).await);
    cases
}

/// Contexts with a provider: nobody signed in, and a provider that is away.
async fn sign_ins(rig: &Rig) -> Vec<Case> {
    let provider = Provider::start().await;
    let away = format!("http://{}", free_address());
    for (context, issuer) in [("needs", provider.issuer()), ("away", away.clone())] {
        let set = [
            "context",
            "set",
            context,
            "--oidc-issuer",
            &issuer,
            "--oidc-client-id",
            "berth-cli",
        ];
        rig.berth.run(&set, &[]).await.good();
    }
    rig.berth
        .run(&["--context", "needs", "login", "--device"], &[])
        .await
        .good();
    let login = std::fs::read_to_string(rig.berth.file("tokens/needs.json")).unwrap();
    let mut login: serde_json::Value = serde_json::from_str(&login).unwrap();
    login["expires_at"] = serde_json::json!(1000);
    login["refresh_token"] = serde_json::Value::Null;
    let write = |name: &str, login: &serde_json::Value| {
        std::fs::write(rig.berth.file(name), login.to_string()).unwrap();
    };
    write("tokens/needs.json", &login);
    login["issuer"] = serde_json::json!(away);
    login["refresh_token"] = serde_json::json!("refresh");
    let path = rig.berth.file("tokens/away.json");
    std::fs::copy(rig.berth.file("tokens/needs.json"), path).unwrap();
    write("tokens/away.json", &login);
    // Contexts are chosen by the cases; the current one must not serve others.
    let file = rig.berth.file("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("current")).collect();
    std::fs::write(&file, kept.join("\n")).unwrap();
    vec![
        Case::new("login-needed", "credential").args(["--context", "needs"]),
        Case::new("identity-provider-unreachable", "credential").args(["--context", "away"]),
    ]
}
