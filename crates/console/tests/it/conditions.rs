//! ETag and If-Match, Idempotency-Key, waiting reads.

use crate::routes::assert_problem;
use crate::support::Stack;
use http::{Method, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_change_of_another_version_fails() {
    let stack = Stack::start().await;
    let id = stack.session("ada").await;
    let path = format!("/api/v1/sessions/{id}");
    let read = stack.send("ada", "GET", &path, &[], None).await;
    let etag = read.header("etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", read.json["version"]));
    let rename = |name: &str| Some(json!({"name": name, "labels": {"by": name}}));
    let first = stack
        .send("ada", "PATCH", &path, &[("if-match", &etag)], rename("first"))
        .await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    assert_eq!(
        (first.text("name"), &first.json["labels"]),
        ("first".to_owned(), &json!({"by": "first"}))
    );
    assert_ne!(first.header("etag"), etag);
    let second = stack
        .send("ada", "PATCH", &path, &[("if-match", &etag)], rename("second"))
        .await;
    assert_eq!(second.status, StatusCode::PRECONDITION_FAILED);
    assert_problem(&second, "PRECONDITION_FAILED");
    assert_eq!(
        stack.send("ada", "GET", &path, &[], None).await.text("name"),
        "first"
    );
    let any = stack
        .send(
            "ada",
            "PATCH",
            &path,
            &[("if-match", "*")],
            Some(json!({"name": ""})),
        )
        .await;
    assert_eq!((any.status, any.text("name")), (StatusCode::OK, String::new()));
    for bad in ["7", "\"a\"", "\"1\", \"2\""] {
        let refused = stack
            .send("ada", "PATCH", &path, &[("if-match", bad)], rename("x"))
            .await;
        assert_eq!(
            (refused.status, refused.field()),
            (StatusCode::BAD_REQUEST, "If-Match"),
            "{bad}"
        );
    }
    let unchecked = stack
        .send(
            "ada",
            "POST",
            &format!("{path}:close"),
            &[("if-match", &etag)],
            None,
        )
        .await;
    assert_eq!(
        (unchecked.status, unchecked.field()),
        (StatusCode::BAD_REQUEST, "If-Match")
    );
}

#[tokio::test]
async fn definitions_have_versions_too() {
    let stack = Stack::start().await;
    let lake =
        json!({"name": "lake", "engine": "sail", "properties": {"type": "memory", "initial_database": "a"}});
    let created = stack.post("olga", "/catalogs", lake).await;
    let etag = created.header("etag").to_owned();
    let path = "/api/v1/catalogs/lake";
    let patch = Some(json!({"default_database": "b"}));
    let first = stack
        .send("olga", "PATCH", path, &[("if-match", &etag)], patch.clone())
        .await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    let second = stack
        .send("olga", "PATCH", path, &[("if-match", &etag)], patch)
        .await;
    assert_eq!(second.status, StatusCode::PRECONDITION_FAILED);
    let in_body = Some(json!({"default_database": "c", "version": created.json["version"]}));
    let third = stack.send("olga", "PATCH", path, &[], in_body).await;
    assert_eq!(third.status, StatusCode::PRECONDITION_FAILED);
    let newest = Some(json!({"default_database": "c", "version": first.json["version"]}));
    let fourth = stack.send("olga", "PATCH", path, &[], newest).await;
    assert_eq!(fourth.text("default_database"), "c");
}

#[tokio::test]
async fn the_same_key_creates_one_session() {
    let stack = Stack::start().await;
    let create = async |who: &str, key: &str, name: &str| {
        let body = json!({"cluster": "c", "name": name});
        stack
            .send(
                who,
                "POST",
                "/api/v1/sessions",
                &[("idempotency-key", key)],
                Some(body),
            )
            .await
    };
    let first = create("ada", "k-1", "a").await;
    let again = create("ada", "k-1", "a").await;
    assert_eq!(
        (first.status, again.status),
        (StatusCode::CREATED, StatusCode::CREATED)
    );
    assert_eq!(first.text("id"), again.text("id"));
    assert_eq!(
        create("ada", "\"k-1\"", "a").await.text("id"),
        first.text("id"),
        "in quotes"
    );
    let other = create("ada", "k-1", "b").await;
    assert_eq!(other.status, StatusCode::CONFLICT);
    assert_problem(&other, "REQUEST_ID_REUSED");
    assert_ne!(create("bob", "k-1", "a").await.text("id"), first.text("id"));
    for bad in ["", "a b", &"x".repeat(129)] {
        let refused = create("ada", bad, "a").await;
        assert_eq!(
            (refused.status, refused.field()),
            (StatusCode::BAD_REQUEST, "Idempotency-Key")
        );
    }
}

#[tokio::test]
async fn a_read_waits_until_the_session_is_active() {
    let stack = Stack::start().await;
    let id = stack.session("ada").await;
    let path = format!("/sessions/{id}?wait=active");
    let began = Instant::now();
    let pending = stack.get("ada", &format!("{path}&timeout=1s")).await;
    assert_eq!(pending.text("status"), "pending");
    assert!(began.elapsed() >= Duration::from_secs(1));
    let ready = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stack.ready("acme", &id).await;
    };
    let began = Instant::now();
    let (read, ()) = tokio::join!(stack.get("ada", &path), ready);
    assert_eq!(read.text("status"), "active");
    assert!(began.elapsed() < Duration::from_secs(20));
    for (query, field) in [
        ("wait=idle", "wait"),
        ("timeout=5s", "timeout"),
        ("wait=active&timeout=61s", "timeout"),
        ("wait=active&timeout=1m", "timeout"),
        ("wait=active&wait=active", "wait"),
    ] {
        let bad = stack.get("ada", &format!("/sessions/{id}?{query}")).await;
        assert_eq!(
            (bad.status, bad.field()),
            (StatusCode::BAD_REQUEST, field),
            "{query}"
        );
    }
    for query in [
        "page_size=0",
        "page_size=1001",
        "page_size=x",
        "statuses=up",
        "labels=a",
        "labels=a%3D1&labels=a%3D2",
    ] {
        let bad = stack
            .ask("ada", Method::GET, &format!("/sessions?{query}"), None)
            .await;
        let field = query.split('=').next().unwrap();
        assert_eq!(
            (bad.status, bad.field()),
            (StatusCode::BAD_REQUEST, field),
            "{query}"
        );
    }
}
