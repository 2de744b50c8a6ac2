//! Sign-in by device and browser, the stored tokens, and their renewal.

use crate::support::provider::Provider;
use crate::support::{Berth, Stack, ended, free_address, within};
use serde_json::Value;
use std::os::unix::fs::MetadataExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A context for the provider; session-manager is away.
async fn with_context(provider: &Provider) -> Berth {
    let berth = Berth::new();
    let manager = format!("http://{}", free_address());
    let issuer = provider.issuer();
    berth
        .run(
            &[
                "context",
                "set",
                "prod",
                "--manager",
                &manager,
                "--oidc-issuer",
                &issuer,
                "--oidc-client-id",
                "berth-cli",
            ],
            &[],
        )
        .await
        .good();
    berth
}

fn stored(berth: &Berth) -> Value {
    serde_json::from_str(&std::fs::read_to_string(berth.file("tokens/prod.json")).unwrap()).unwrap()
}

/// Makes the stored token one that is about to expire.
fn age(berth: &Berth) {
    let mut login = stored(berth);
    login["expires_at"] = login["obtained_at"].clone();
    let path = berth.file("tokens/prod.json");
    std::fs::write(path, login.to_string()).unwrap();
}

#[tokio::test]
async fn the_device_flow_signs_in_and_the_tokens_are_private() {
    let provider = Provider::start().await;
    provider.with(|record| record.pending_polls = 1);
    let berth = with_context(&provider).await;
    let login = berth
        .run(&["--output", "json", "login", "--device"], &[])
        .await
        .good();
    assert!(
        login.stderr.contains("ABCD-EFGH") && login.stderr.contains("/activate"),
        "{login:?}"
    );
    let shown = login.json();
    assert_eq!(
        (shown["context"].as_str(), shown["subject"].as_str()),
        (Some("prod"), Some("ada")),
        "{shown}"
    );
    assert_eq!(shown["renewable"], true);
    provider.with(|record| {
        assert_eq!(record.authorization["scope"], "openid offline_access");
        assert_eq!(record.grants.len(), 1);
    });
    let mode = |name: &str| std::fs::metadata(berth.file(name)).unwrap().mode() & 0o777;
    assert_eq!(
        (mode("tokens"), mode("tokens/prod.json"), mode("config.toml")),
        (0o700, 0o600, 0o600)
    );
    // Nothing that was printed is a secret.
    let token = stored(&berth)["token"].as_str().unwrap().to_owned();
    assert!(
        !login.stdout.contains(&token) && !login.stderr.contains(&token),
        "{login:?}"
    );

    let logout = berth.run(&["--output", "json", "logout"], &[]).await.good();
    assert_eq!(logout.json()["revoked"], true, "{logout:?}");
    provider.with(|record| assert_eq!(record.revoked, ["refresh-1"]));
    assert!(!berth.file("tokens/prod.json").exists());
    let after = berth.run(&["session", "list"], &[]).await;
    assert!(after.stderr.contains("berth login"), "{after:?}");
}

#[tokio::test]
async fn logout_sends_no_token_to_another_provider() {
    let (provider, other) = (Provider::start().await, Provider::start().await);
    let berth = with_context(&provider).await;
    berth.run(&["login", "--device"], &[]).await.good();
    let issuer = other.issuer();
    let change = ["context", "set", "prod", "--oidc-issuer", &issuer];
    berth.run(&change, &[]).await.good();
    let logout = berth.run(&["--output", "json", "logout"], &[]).await.good();
    assert_eq!(logout.json()["revoked"], false, "{logout:?}");
    for provider in [provider, other] {
        provider.with(|record| assert!(record.revoked.is_empty(), "{:?}", record.revoked));
    }
    assert!(!berth.file("tokens/prod.json").exists());
}

#[tokio::test]
async fn a_denied_or_expired_code_ends_the_sign_in() {
    let provider = Provider::start().await;
    let berth = with_context(&provider).await;
    for (refusal, word) in [
        ("access_denied", "denied"),
        ("expired_token", "expired"),
        ("invalid_client", "invalid_client"),
    ] {
        provider.with(|record| record.refusal = Some(refusal));
        let login = berth.run(&["login", "--device"], &[]).await;
        assert_eq!(login.code, Some(1), "{login:?}");
        assert!(login.stderr.contains(word), "{refusal}: {login:?}");
        assert!(!berth.file("tokens/prod.json").exists());
    }
    provider.with(|record| record.pending_polls = 1000);
    let late = berth.run(&["login", "--device", "--timeout", "2s"], &[]).await;
    assert!(late.stderr.contains("in time"), "{late:?}");
}

/// A GET as a browser makes it; returns the head of the response.
async fn browse(address: &str) -> String {
    let rest = address.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

fn location(response: &str) -> String {
    let line = response
        .lines()
        .find(|line| line.to_lowercase().starts_with("location: "));
    line.unwrap()["location: ".len()..].to_owned()
}

#[tokio::test]
async fn the_browser_flow_accepts_only_its_own_redirect() {
    let provider = Provider::start().await;
    let berth = with_context(&provider).await;
    let mut child = berth.start(&["login", "--browser"], &[]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    within("the address is printed", stderr.read_line(&mut line))
        .await
        .unwrap();
    let address = line.trim().strip_prefix("To sign in, open ").unwrap().to_owned();
    assert!(
        address.contains("code_challenge_method=S256") && address.contains("prompt=consent"),
        "{address}"
    );
    let redirect = location(&browse(&address).await);
    let (base, query) = redirect.split_once('?').unwrap();
    // A page in the same browser that guesses the port changes nothing.
    for other in [
        format!("{base}?code=evil&state=guess"),
        base.replace("callback", "favicon.ico"),
    ] {
        let response = browse(&other).await;
        assert!(response.starts_with("HTTP/1.1 404"), "{response}");
    }
    let response = browse(&format!("{base}?{query}")).await;
    assert!(response.contains("You are signed in"), "{response}");
    assert!(response.contains("default-src 'none'"), "{response}");
    let ended = ended(child).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    provider.with(|record| assert_eq!(record.grants, ["authorization_code"]));
    assert!(stored(&berth)["refresh_token"].is_string());
}

#[tokio::test]
async fn a_redirect_of_another_issuer_is_refused() {
    let provider = Provider::start().await;
    let berth = with_context(&provider).await;
    let mut child = berth.start(&["login", "--browser"], &[]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    within("the address is printed", stderr.read_line(&mut line))
        .await
        .unwrap();
    let address = line.trim().strip_prefix("To sign in, open ").unwrap().to_owned();
    let redirect = location(&browse(&address).await);
    let (good, _) = redirect.split_once("&iss=").unwrap();
    browse(&format!("{good}&iss=https%3A%2F%2Fevil.example")).await;
    let ended = ended(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!berth.file("tokens/prod.json").exists());
}

#[tokio::test]
async fn commands_that_run_at_once_renew_a_token_once() {
    let provider = Provider::start().await;
    let berth = with_context(&provider).await;
    berth.run(&["login", "--device"], &[]).await.good();
    age(&berth);
    let commands: Vec<_> = (0..8).map(|_| berth.start(&["session", "list"], &[])).collect();
    for child in commands {
        // session-manager is away; what counts is that the sign-in served.
        let ended = ended(child).await;
        assert!(ended.stderr.contains("cannot be reached"), "{ended:?}");
        assert!(!ended.stderr.contains("berth login"), "{ended:?}");
    }
    provider.with(|record| {
        let renewals = record
            .grants
            .iter()
            .filter(|grant| *grant == "refresh_token")
            .count();
        assert_eq!(renewals, 1, "{:?}", record.grants);
    });
    assert_eq!(stored(&berth)["refresh_token"], "refresh-2");
}

#[tokio::test]
async fn an_ended_sign_in_says_so() {
    let provider = Provider::start().await;
    let berth = with_context(&provider).await;
    berth.run(&["login", "--device"], &[]).await.good();
    age(&berth);
    provider.with(|record| record.refusal = Some("invalid_grant"));
    let ended = berth.run(&["session", "list"], &[]).await;
    assert!(
        ended.stderr.contains("has ended") && ended.stderr.contains("berth login"),
        "{ended:?}"
    );
    // Another client of the context does not use the tokens of the first.
    let changed = ["context", "set", "prod", "--oidc-client-id", "other"];
    berth.run(&changed, &[]).await.good();
    let other = berth.run(&["session", "list"], &[]).await;
    assert!(other.stderr.contains("not signed in"), "{other:?}");
}

#[tokio::test]
async fn tokens_that_others_can_read_are_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let provider = Provider::start().await;
    let berth = with_context(&provider).await;
    berth.run(&["login", "--device"], &[]).await.good();
    let file = berth.file("tokens/prod.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let ended = berth.run(&["session", "list"], &[]).await;
    assert!(ended.stderr.contains("chmod 600"), "{ended:?}");
}

#[tokio::test]
async fn whoami_shows_the_credential_and_not_the_secret() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let env = stack.env("ada", &addresses);
    let shown = berth.run(&["--output", "json", "whoami"], &env).await.good();
    let json = shown.json();
    assert_eq!(json["organization"], "acme", "{json}");
    assert_eq!(json["principal"], "sa|ada");
    assert_eq!(json["credential"]["kind"], "service-account-key");
    assert_eq!(json["credential"]["origin"], "environment");
    assert!(!shown.stdout.contains(stack.key("ada")));
}
