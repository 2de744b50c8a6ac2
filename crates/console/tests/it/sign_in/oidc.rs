//! Sign-in at an identity provider.

use super::{Browser, Console, Installation, Provider, path_of, through};
use http::Request;
use serde_json::json;
use std::time::Duration;

struct Parts {
    provider: Provider,
    console: Console,
    _installation: Installation,
}

/// A console that browsers reach at its own port.
async fn start() -> Parts {
    let provider = Provider::start().await;
    let installation = Installation::start(Some(&provider)).await;
    // The port must be known before the console has it.
    let (listener, address) = super::installation::Balancer::bind().await;
    let public = format!("http://{address}");
    let console = installation
        .console(&provider.config(installation.dir.path(), &public))
        .await;
    super::installation::Balancer::serve(listener, vec![console.address]);
    Parts {
        provider,
        console,
        _installation: installation,
    }
}

#[tokio::test]
async fn a_person_signs_in_and_returns_to_the_page() {
    let parts = start().await;
    let browser = parts.console.browser();
    let methods = browser.get("/auth/session").await.json()["methods"].clone();
    assert_eq!(
        methods,
        json!([{"id": "key"}, {"id": "corp", "label": "Sign in with corp"}])
    );
    let answer = through(&browser, "/auth/login/corp?return=/sessions/s-1%3Ftab%3Dlog").await;
    assert_eq!(answer.status, 303, "{answer:?}");
    assert_eq!(answer.header("location"), "/sessions/s-1?tab=log");
    assert!(
        browser.jar().keys().all(|name| !name.contains("login")),
        "{:?}",
        browser.jar()
    );
    let session = browser.get("/auth/session").await.json();
    assert_eq!(session["principal"]["id"], "corp|grace");
    assert_eq!(session["principal"]["kind"], "user");
    assert_eq!(session["principal"]["roles"], json!(["member"]));
}

#[tokio::test]
async fn a_callback_is_good_once_and_only_in_the_browser_that_started_it() {
    let parts = start().await;
    let browser = parts.console.browser();
    let to_provider = browser.get("/auth/login/corp").await;
    let started = browser.jar();
    assert_eq!(started.len(), 1);
    let back = Browser::at_url(to_provider.header("location")).get_url().await;
    let callback = path_of(back.header("location")).to_owned();

    // In another browser, and in one that started another sign-in.
    let stranger = parts.console.browser();
    for _ in 0..2 {
        let answer = stranger.get(&callback).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.text.contains("Sign in again"), "{answer:?}");
        assert_eq!(stranger.who().await, None);
        stranger.get("/auth/login/corp").await;
    }
    // With the cookie of another sign-in under the name of this one.
    let name = started.keys().next().unwrap().clone();
    let other = stranger.jar().into_values().next().unwrap();
    stranger.set_jar([(name.clone(), other)].into());
    assert_eq!(stranger.get(&callback).await.status, 400);

    assert_eq!(browser.get(&callback).await.status, 303);
    assert_eq!(browser.who().await.as_deref(), Some("corp|grace"));
    // Again, without and with the cookie of the sign-in.
    assert_eq!(parts.console.browser().get(&callback).await.status, 400);
    let again = parts.console.browser();
    again.set_jar(started);
    let answer = again.get(&callback).await;
    assert_eq!(
        answer.status, 403,
        "the provider knows the code is used: {answer:?}"
    );
    assert_eq!(again.who().await, None);
}

#[tokio::test]
async fn wrong_answers_of_a_provider_sign_nobody_in() {
    let parts = start().await;
    let browser = parts.console.browser();
    let attempt = async |says: &str, status: u16| {
        let answer = through(&browser, "/auth/login/corp").await;
        assert_eq!(answer.status, status, "{says}: {answer:?}");
        assert!(answer.text.contains(says), "{says}: {answer:?}");
        assert_eq!(browser.who().await, None, "{says}");
        assert!(browser.jar().is_empty(), "{says}: {:?}", browser.jar());
    };
    for claims in [
        json!({"nonce": "another"}),
        json!({"nonce": null}),
        json!({"aud": "another-client"}),
        json!({"aud": ["console", "another-client"]}),
        json!({"azp": "another-client"}),
        json!({"iss": "http://127.0.0.1:1/realm"}),
        json!({"exp": 1_000_000_000}),
    ] {
        parts.provider.set(|provider| provider.claims = claims);
        attempt("not valid here", 502).await;
    }
    parts.provider.set(|provider| {
        provider.claims = json!({});
        provider.other_key = true;
    });
    attempt("not valid here", 502).await;
    parts.provider.set(|provider| {
        provider.other_key = false;
        provider.callback_issuer = Some("https://evil.example".to_owned());
    });
    attempt("not valid here", 502).await;
    // The provider announces `iss`, so an answer without it is another's.
    parts.provider.set(|provider| provider.callback_issuer = None);
    attempt("not valid here", 502).await;
    parts.provider.set(|provider| {
        provider.callback_issuer = Some(provider_issuer(provider));
        provider.claims = json!({"org": "umbrella"});
    });
    attempt("may not speak for", 401).await;
    parts.provider.set(|provider| provider.claims = json!({}));
    assert_eq!(through(&browser, "/auth/login/corp").await.status, 303);
    assert_eq!(browser.who().await.as_deref(), Some("corp|grace"));
}

fn provider_issuer(provider: &super::provider::Behaviour) -> String {
    provider.issuer().to_owned()
}

#[tokio::test]
async fn a_denied_or_unknown_sign_in_is_explained() {
    let parts = start().await;
    let browser = parts.console.browser();
    assert_eq!(browser.get("/auth/login/nobody").await.status, 404);
    let to_provider = browser.get("/auth/login/corp").await;
    let url = to_provider.header("location").to_owned();
    let state = url
        .split_once("state=")
        .unwrap()
        .1
        .split('&')
        .next()
        .unwrap()
        .to_owned();
    let issuer: String = form_urlencoded::byte_serialize(parts.provider.issuer().as_bytes()).collect();
    let denied = format!(
        "/auth/callback?error=access_denied&error_description=%3Cscript%3E&state={state}&iss={issuer}"
    );
    let answer = browser.get(&denied).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(
        answer.text.contains("did not let you in") && !answer.text.contains("<script>"),
        "{answer:?}"
    );
    assert!(browser.jar().is_empty());
    for path in [
        "/auth/callback",
        "/auth/callback?code=x",
        "/auth/callback?state=&code=x",
        "/auth/callback?state=x",
    ] {
        assert_eq!(browser.get(path).await.status, 400, "{path}");
    }
}

#[tokio::test]
async fn no_return_path_leads_to_another_host_or_adds_a_header() {
    let parts = start().await;
    for hostile in [
        "//evil.example",
        "/%5Cevil.example",
        "https://evil.example/",
        "/%09/evil.example",
        "/x%0d%0aset-cookie:%20a=b",
        "/%2e%2e//evil.example",
        "javascript:alert(1)",
        "",
    ] {
        let browser = parts.console.browser();
        let answer = through(&browser, &format!("/auth/login/corp?return={hostile}")).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (303, "/"),
            "{hostile}: {answer:?}"
        );
        assert!(
            answer.cookies().iter().all(|cookie| cookie.starts_with("berth-")),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn waiting_sign_ins_of_one_browser_are_limited() {
    let parts = start().await;
    let browser = parts.console.browser();
    for _ in 0..20 {
        assert_eq!(browser.get("/auth/login/corp").await.status, 303);
        assert!(browser.jar().len() <= 4, "{:?}", browser.jar().keys());
    }
}

/// A browser whose credential is due for renewal, because half of its life is over.
async fn short_lived(parts: &Parts) -> Browser {
    const LIFE: u64 = 12;
    parts.provider.set(|provider| {
        provider.refreshes = true;
        provider.life = LIFE;
    });
    let browser = parts.console.browser();
    assert_eq!(through(&browser, "/auth/login/corp").await.status, 303);
    tokio::time::sleep(Duration::from_secs(LIFE / 2 + 1)).await;
    browser
}

#[tokio::test]
async fn a_credential_is_renewed_once_for_all_requests_before_it_expires() {
    let parts = start().await;
    let browser = short_lived(&parts).await;
    let first = browser.jar();
    parts.provider.set(|provider| provider.life = 600);
    let requests = (0..8).map(|_| {
        let one = parts.console.browser();
        one.set_jar(first.clone());
        async move { (one.who().await, one.jar()) }
    });
    for (who, jar) in futures::future::join_all(requests).await {
        assert_eq!(who.as_deref(), Some("corp|grace"));
        assert_ne!(jar, first, "the cookie has the new credential");
        browser.set_jar(jar);
    }
    assert_eq!(parts.provider.renewals(), 1);
    let renewed = browser.jar();
    assert_eq!(browser.who().await.as_deref(), Some("corp|grace"));
    assert_eq!(browser.jar(), renewed, "a fresh credential is left alone");
    assert_eq!(parts.provider.renewals(), 1);
}

#[tokio::test]
async fn a_failed_renewal_leaves_the_credential_that_is_still_good() {
    let parts = start().await;
    let browser = short_lived(&parts).await;
    parts.provider.set(|provider| provider.forget_refresh_tokens());
    assert_eq!(browser.who().await.as_deref(), Some("corp|grace"));
    assert_eq!(parts.provider.renewals(), 0);
}

#[tokio::test]
async fn a_long_token_is_kept_in_pieces() {
    let parts = start().await;
    // Random, so that it cannot be compressed.
    let groups: Vec<String> = (0..300).map(|_| uuid::Uuid::new_v4().to_string()).collect();
    parts
        .provider
        .set(|provider| provider.claims = json!({"groups": groups}));
    let browser = parts.console.browser();
    assert_eq!(through(&browser, "/auth/login/corp").await.status, 303);
    assert!(browser.jar().len() >= 3, "{}", browser.jar().len());
    assert_eq!(browser.who().await.as_deref(), Some("corp|grace"));
    let mut incomplete = browser.jar();
    incomplete.pop_last();
    browser.set_jar(incomplete);
    assert_eq!(browser.who().await, None);
    assert!(browser.jar().is_empty());

    let groups: Vec<String> = (0..2000).map(|_| uuid::Uuid::new_v4().to_string()).collect();
    parts
        .provider
        .set(|provider| provider.claims = json!({"groups": groups}));
    let answer = through(&browser, "/auth/login/corp").await;
    assert!(
        answer.status >= 400 && answer.text.contains("fewer"),
        "{answer:?}"
    );
    assert_eq!(browser.who().await, None);
}

#[tokio::test]
async fn another_origin_is_not_trusted_by_its_host_header() {
    let parts = start().await;
    let browser = parts.console.browser();
    assert_eq!(through(&browser, "/auth/login/corp").await.status, 303);
    // The console's public address is the balancer's, so its own port is another origin.
    let request = Request::post("/auth/logout")
        .header("x-berth-request", "1")
        .header("origin", format!("http://{}", parts.console.address));
    let answer = browser.send(request, "").await;
    assert_eq!(answer.status, 403, "{answer:?}");
}
