//! Sign-in with a service-account key, and sign-out.

use super::Installation;
use http::Request;
use serde_json::json;

#[tokio::test]
async fn a_key_signs_in_and_out_again() {
    let installation = Installation::start(None).await;
    let console = installation
        .console("spark_connect = { endpoint = \"spark.example.org:443\", private_ca = true }\n")
        .await;
    let browser = console.browser();
    let nobody = browser.get("/auth/session").await;
    assert_eq!(nobody.header("cache-control"), "no-store");
    let nobody = nobody.json();
    assert_eq!(nobody["methods"], json!([{"id": "key"}]));
    assert_eq!(
        nobody["installation"],
        json!({"proxy_host": "spark.example.org", "proxy_port": 443, "proxy_tls": true, "proxy_ca": true,
               "version": env!("CARGO_PKG_VERSION")})
    );
    assert_eq!(browser.who().await, None);

    let key = &installation.key.key;
    let form = json!({"key": format!(" {key}\n")}).to_string();
    let answer = browser.post("/auth/key", &form).await;
    assert_eq!((answer.status, answer.text.as_str()), (204, ""), "{answer:?}");
    let cookies = answer.cookies();
    assert_eq!(cookies.len(), 1);
    assert!(cookies[0].starts_with("berth-session.0=1."), "{cookies:?}");
    assert!(
        cookies[0].ends_with("; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax"),
        "{cookies:?}"
    );
    assert!(!cookies[0].contains(&key[..16]), "the key is readable");

    let session = browser.get("/auth/session").await.json();
    assert_eq!(
        session["principal"],
        json!({"kind": "service_account", "id": "sa|ada", "name": "ada", "organization": "acme",
               "roles": ["member"], "teams": [], "team_admin_of": []})
    );
    assert!(
        session["expires_at"].as_str().unwrap().ends_with('Z'),
        "{session}"
    );

    let out = browser.post("/auth/logout", "").await;
    assert_eq!(out.status, 204);
    assert!(browser.jar().is_empty(), "{:?}", browser.jar());
    assert_eq!(browser.who().await, None);
}

#[tokio::test]
async fn a_bearer_credential_needs_no_cookie() {
    let installation = Installation::start(None).await;
    let browser = installation.console("").await.browser();
    let bearer = format!("Bearer {}", installation.key.key);
    let request = Request::get("/auth/session").header("authorization", bearer);
    let session = browser.send(request, "").await.json();
    assert_eq!(session["principal"]["id"], "sa|ada");
    assert_eq!(session["expires_at"], json!(null));
}

#[tokio::test]
async fn what_is_no_key_of_ours_gets_no_cookie_and_is_not_repeated() {
    let installation = Installation::start(None).await;
    let console = installation.console("").await;
    let browser = console.browser();
    let unknown = service_kit::caller::generate_key().key;
    for (body, status) in [
        (json!({"key": unknown}).to_string(), 401),
        (json!({"key": "berth_sa_short"}).to_string(), 401),
        (json!({"key": "hunter2"}).to_string(), 400),
        (json!({"key": "berth_sa_hunter2\u{7f}"}).to_string(), 400),
        (json!({"key": 5}).to_string(), 400),
        (json!({"key": unknown, "password": "hunter2"}).to_string(), 400),
        ("{\"key\": \"hunter2".to_owned(), 400),
        (String::new(), 400),
        (json!({"key": "hunter2".repeat(4000)}).to_string(), 413),
    ] {
        let answer = browser.post("/auth/key", &body).await;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(answer.cookies().is_empty());
        assert!(
            !answer.text.contains("hunter2") && !answer.text.contains(&unknown),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    let plain = Request::post("/auth/key")
        .header("x-berth-request", "1")
        .header("sec-fetch-site", "same-origin")
        .header("content-type", "text/plain");
    let answer = browser
        .send(plain, &json!({"key": installation.key.key}).to_string())
        .await;
    assert_eq!(
        answer.status, 415,
        "a form of another site can send this type: {answer:?}"
    );
}

#[tokio::test]
async fn keys_can_be_turned_off() {
    let installation = Installation::start(None).await;
    let console = installation
        .console("sign_in.service_account_keys = false\n")
        .await;
    let browser = console.browser();
    assert_eq!(browser.get("/auth/session").await.json()["methods"], json!([]));
    let form = json!({"key": installation.key.key}).to_string();
    let answer = browser.post("/auth/key", &form).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert_eq!(browser.who().await, None);
}
