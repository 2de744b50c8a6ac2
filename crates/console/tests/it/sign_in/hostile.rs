//! What other sites, other keys and changed cookies must not be able to do.

use super::{Browser, Installation};
use http::Request;
use serde_json::json;

async fn signed_in(installation: &Installation, browser: &Browser) {
    let form = json!({"key": installation.key.key}).to_string();
    assert_eq!(browser.post("/auth/key", &form).await.status, 204);
    assert_eq!(browser.who().await.as_deref(), Some("sa|ada"));
}

#[tokio::test]
async fn other_sites_cannot_sign_in_or_out() {
    let installation = Installation::start(None).await;
    let console = installation.console("").await;
    let browser = console.browser();
    signed_in(&installation, &browser).await;
    let form = json!({"key": installation.key.key}).to_string();
    let host = console.address.to_string();
    for headers in [
        vec![],
        vec![("x-berth-request", "1")],
        vec![("sec-fetch-site", "same-origin")],
        vec![("x-berth-request", "1"), ("sec-fetch-site", "cross-site")],
        vec![("x-berth-request", "1"), ("sec-fetch-site", "same-site")],
        vec![("x-berth-request", "1"), ("origin", "https://evil.example")],
        vec![("x-berth-request", "1"), ("origin", "null")],
    ] {
        for path in ["/auth/logout", "/auth/key"] {
            let mut request = Request::post(path).header("content-type", "application/json");
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            let answer = browser.send(request, &form).await;
            assert_eq!(answer.status, 403, "{path} {headers:?}: {answer:?}");
            assert_eq!(answer.json()["reason"], "CROSS_SITE_REQUEST");
            assert!(answer.cookies().is_empty());
        }
    }
    assert_eq!(browser.who().await.as_deref(), Some("sa|ada"), "still signed in");
    // A browser without Sec-Fetch-Site, on a page of ours.
    let request = Request::post("/auth/logout")
        .header("x-berth-request", "1")
        .header("origin", format!("http://{host}"));
    assert_eq!(browser.send(request, "").await.status, 204);
}

#[tokio::test]
async fn cookies_of_another_key_and_changed_ones_are_ignored_and_removed() {
    let installation = Installation::start(None).await;
    let console = installation.console("").await;
    let other = installation
        .console_with(&installation.new_keys("other-keys"), "")
        .await;
    let browser = console.browser();
    signed_in(&installation, &browser).await;
    let good = browser.jar();

    let stranger = other.browser();
    stranger.set_jar(good.clone());
    let answer = stranger.get("/auth/session").await;
    assert_eq!(answer.json()["signed_in"], false);
    assert!(answer.cookies()[0].contains("Max-Age=0;"), "{answer:?}");
    assert!(stranger.jar().is_empty());

    let value = &good["berth-session.0"];
    let middle = value.len() / 2;
    let flipped = if value.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    for changed in [
        format!("{}{flipped}{}", &value[..middle], &value[middle + 1..]),
        value[..value.len() - 1].to_owned(),
        "1.".to_owned(),
        "999999999999.x".to_owned(),
        "not-sealed".to_owned(),
    ] {
        browser.set_jar([("berth-session.0".to_owned(), changed.clone())].into());
        assert_eq!(browser.who().await, None, "{changed}");
        assert!(browser.jar().is_empty(), "{changed}");
    }
    browser.set_jar(good);
    assert_eq!(
        browser.who().await.as_deref(),
        Some("sa|ada"),
        "the real one is still good"
    );
}

#[tokio::test]
async fn an_answer_to_the_sign_in_cannot_be_framed_or_sniffed() {
    let installation = Installation::start(None).await;
    let console = installation.console("").await;
    let browser = console.browser();
    for path in [
        "/auth/session",
        "/auth/callback?state=x&code=y",
        "/auth/login/nobody",
        "/",
        "/sessions/s-1",
    ] {
        let answer = browser.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("referrer-policy"), "same-origin");
        assert_eq!(
            answer.header("strict-transport-security"),
            "",
            "plaintext promises no TLS"
        );
    }
}
