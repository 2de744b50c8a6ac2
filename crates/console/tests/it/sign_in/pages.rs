//! Pages, and the console below a path.

use super::{Installation, Provider, through};
use http::Request;

#[tokio::test]
async fn every_path_of_the_console_is_the_page_and_no_path_of_the_api_is() {
    let installation = Installation::start(None).await;
    let console = installation.console("").await;
    let browser = console.browser();
    for path in ["/", "/sessions", "/sessions/s-1", "/clusters/my.cluster"] {
        let page = browser
            .send(Request::get(path).header("accept", "text/html,*/*;q=0.8"), "")
            .await;
        assert!(
            page.header("content-type").starts_with("text/html"),
            "{path}: {page:?}"
        );
        // 503 in a build without the front end, with what to do.
        let is_page = page.status == 200 && page.text.contains("<base href=\"/\">");
        let is_missing = page.status == 503 && page.text.contains("make console-web");
        assert!(is_page || is_missing, "{path}: {page:?}");
    }
    for (path, accept) in [
        ("/api/v2/sessions", "*/*"),
        ("/auth/nothing", "*/*"),
        ("/assets/app-00000000.js", "*/*"),
        ("/assets/../../Cargo.toml", "*/*"),
        ("/favicon.ico", "image/*"),
        ("/sessions", "application/json"),
    ] {
        let answer = browser
            .send(Request::get(path).header("accept", accept), "")
            .await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert_eq!(
            answer.header("content-type"),
            "application/problem+json",
            "{path}"
        );
    }
    assert_eq!(browser.post("/sessions", "{}").await.status, 405);
}

#[tokio::test]
async fn a_path_prefix_is_removed_here_or_by_the_proxy_before() {
    let provider = Provider::start().await;
    let installation = Installation::start(Some(&provider)).await;
    let (listener, address) = super::installation::Balancer::bind().await;
    let public = format!("http://{address}/data/berth");
    let console = installation
        .console(&provider.config(installation.dir.path(), &public))
        .await;
    super::installation::Balancer::serve(listener, vec![console.address]);
    let browser = console.browser();
    let answer = through(&browser, "/data/berth/auth/login/corp?return=/sessions").await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (303, "/data/berth/sessions"),
        "{answer:?}"
    );
    let names: Vec<String> = browser.jar().into_keys().collect();
    assert_eq!(names, ["berth-data-berth-session.0"]);
    for path in ["/data/berth/auth/session", "/auth/session"] {
        let session = browser.get(path).await.json();
        assert_eq!(session["principal"]["id"], "corp|grace", "{path}");
    }
    let page = browser.get("/data/berth/sessions").await;
    assert!(page.text.contains("/data/berth/\""), "{page:?}");
    let other = browser.get("/data/berths/auth/session").await;
    assert!(other.header("content-type").starts_with("text/html"), "{other:?}");
}

#[tokio::test]
async fn behind_https_cookies_are_bound_to_the_host() {
    let installation = Installation::start(None).await;
    let console = installation
        .console("public.url = \"https://berth.example.org\"\n")
        .await;
    let browser = console.browser();
    let form = serde_json::json!({"key": installation.key.key}).to_string();
    let answer = browser.post("/auth/key", &form).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    let cookie = answer.cookies()[0];
    assert!(cookie.starts_with("__Host-berth-session.0="), "{cookie}");
    assert!(
        cookie.ends_with("; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax; Secure"),
        "{cookie}"
    );
    assert_eq!(answer.header("strict-transport-security"), "max-age=31536000");
    assert_eq!(browser.who().await.as_deref(), Some("sa|ada"));
}
