//! Every method of the gRPC APIs has a route; every route answers good input,
//! and rejects bad input with a problem that names it.

use crate::support::{Answer, Stack};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use session_proto::v1;
use std::collections::BTreeSet;

/// Methods without a route, and the reason.
const EXEMPT: [(&str, &str); 1] = [("describe_caller", "`GET /auth/session` has its answer")];

/// Names of the methods of `berth.v1`, from the descriptors.
fn methods() -> BTreeSet<String> {
    use prost::Message as _;
    let set = prost_types::FileDescriptorSet::decode(session_proto::PUBLIC_DESCRIPTORS).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let methods = services.flat_map(|service| &service.method);
    methods.map(|method| snake(method.name())).collect()
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// Method, path and id of the operations in the OpenAPI document.
fn operations() -> Vec<(String, String, String)> {
    let document = console::openapi();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            found.push((method.to_ascii_uppercase(), path.clone(), id.to_owned()));
        }
    }
    found
}

#[test]
fn every_method_has_a_route_or_an_exemption() {
    let methods = methods();
    assert!(methods.len() >= 35, "the descriptors were not read: {methods:?}");
    let ids: Vec<_> = operations().into_iter().map(|(.., id)| id).collect();
    let routed: BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(routed.len(), ids.len(), "an operation id is there twice");
    let exempt: BTreeSet<_> = EXEMPT.iter().map(|(method, _)| (*method).to_owned()).collect();
    let expected: BTreeSet<_> = methods.difference(&exempt).cloned().collect();
    assert_eq!(routed, expected);
}

#[tokio::test]
async fn the_documents_need_no_credential_and_load_nothing() {
    let stack = Stack::start_with("public.url = \"https://example.org/berth\"").await;
    let document = stack.get("", "/openapi.json").await;
    assert_eq!(document.json["openapi"], "3.1.0");
    assert_eq!(document.json["servers"][0]["url"], "/berth/api/v1");
    let text = document.json.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document.json["components"]["schemas"][name].is_object(), "{name}");
    }
    let session = &document.json["components"]["schemas"]["Session"];
    assert_eq!(session["properties"].as_object().unwrap().len(), 31);
    assert!(
        session["properties"]["idle_at"]["description"]
            .as_str()
            .unwrap()
            .contains("idle")
    );
    for path in ["/docs", "/errors"] {
        let page = stack.get("", path).await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(
            page.header("content-security-policy")
                .starts_with("default-src 'none'")
        );
        let Value::String(text) = &page.json else {
            panic!("{page:?}")
        };
        assert!(!text.contains("<script") && !text.contains("src="), "{path}");
    }
}

/// A path of the document with these names.
fn with_names(path: &str, session: &str) -> String {
    let path = path.replace("{session_id}", session).replace("{token_id}", "t-0");
    path.replace("{name}", "absent")
        .replace("{principal}", "sa%7Cnobody")
}

#[tokio::test]
async fn every_route_needs_a_credential_and_rejects_what_it_does_not_know() {
    let stack = Stack::start().await;
    let session = stack.session("ada").await;
    for (method, path, id) in operations() {
        let path = format!("/api/v1{}", with_names(&path, &session));
        let body = (method != "GET" && method != "DELETE").then(|| json!({}));
        let denied = stack.send("", &method, &path, &[], body.clone()).await;
        assert_eq!(denied.status, StatusCode::UNAUTHORIZED, "{id}");
        assert_eq!(denied.header("www-authenticate"), "Bearer", "{id}");
        assert_problem(&denied, "CALLER_UNKNOWN");
        let unknown = stack
            .send("wrong-credential", &method, &path, &[], valid_body(&id))
            .await;
        assert_eq!(unknown.status, StatusCode::UNAUTHORIZED, "{id} {unknown:?}");
        let query = stack
            .send("ada", &method, &format!("{path}?no_such=1"), &[], valid_body(&id))
            .await;
        assert_eq!(
            (query.status, query.field()),
            (StatusCode::BAD_REQUEST, "no_such"),
            "{id}"
        );
        if method != "GET" && method != "DELETE" {
            let field = stack
                .send("pat", &method, &path, &[], Some(json!({"no_such": 1})))
                .await;
            // A patch is merged with an object that does not exist.
            let absent = id.starts_with("update_c") && field.status == StatusCode::FORBIDDEN;
            let named = (field.status, field.field()) == (StatusCode::BAD_REQUEST, "no_such");
            assert!(absent || named, "{id} {field:?}");
            let list = stack.send("ada", &method, &path, &[], Some(json!([]))).await;
            assert_eq!(list.status, StatusCode::BAD_REQUEST, "{id}");
        }
    }
}

/// A body with which a request reaches the gRPC API.
fn valid_body(id: &str) -> Option<Value> {
    match id {
        "create_session" => Some(json!({"cluster": "c"})),
        "extend_session" => Some(json!({"expires_at": "2030-01-01T00:00:00Z"})),
        "keep_session_alive" => Some(json!({"until": "2030-01-01T00:00:00Z"})),
        _ => None,
    }
}

/// Checks the form of a problem.
pub(crate) fn assert_problem(answer: &Answer, reason: &str) {
    assert_eq!(
        answer.header("content-type"),
        "application/problem+json",
        "{answer:?}"
    );
    assert_eq!(answer.reason(), reason, "{answer:?}");
    assert_eq!(answer.json["status"], answer.status.as_u16());
    assert_eq!(answer.json["type"], format!("/api/v1/errors#{reason}"));
    for field in ["title", "detail"] {
        assert!(!answer.text(field).is_empty());
    }
    assert!(answer.json["metadata"].is_object());
}

#[tokio::test]
async fn sessions_live_and_end_over_rest() {
    let stack = Stack::start().await;
    let body = json!({"cluster": "c", "name": "etl", "labels": {"a": "b"}, "idle_timeout": "1800s"});
    let created = stack.post("ada", "/sessions", body).await;
    assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
    let id = created.text("id");
    assert_eq!(created.header("location"), format!("/api/v1/sessions/{id}"));
    assert_eq!(created.json["policy"]["idle_timeout"], "1800s");
    stack.ready("acme", &id).await;
    let path = format!("/sessions/{id}");
    let ready = stack.get("ada", &format!("{path}?wait=active&timeout=20s")).await;
    assert_eq!(ready.text("status"), "active");
    let listed = stack
        .get("ada", "/sessions?statuses=active,idle&labels=a%3Db&cluster=c")
        .await;
    assert_eq!(listed.json["sessions"][0]["id"], id.as_str());
    let other = stack.get("ada", "/sessions?labels=a%3Dc").await;
    assert_eq!(other.json["sessions"], json!([]));
    let expires = ready.text("expires_at");
    let later = expires.replace('Z', ".500+00:00");
    let extended = stack
        .post("ada", &format!("{path}:extend"), json!({"expires_at": later}))
        .await;
    assert_eq!(extended.status, StatusCode::OK, "{extended:?}");
    let kept = stack
        .post("ada", &format!("{path}:keepAlive"), json!({"until": expires}))
        .await;
    assert_eq!(kept.text("keep_alive_until"), expires);
    let warm = stack
        .ask("ada", Method::POST, &format!("{path}:warm"), None)
        .await;
    assert_eq!(warm.text("status"), "active");
    let events = stack.get("ada", &format!("{path}/events")).await;
    assert_eq!(events.json["events"][0]["reason"], "CREATED");
    let operations = stack.get("ada", &format!("{path}/operations")).await;
    assert_eq!(operations.json, json!({"operations": []}));
    let closed = stack
        .ask("ada", Method::POST, &format!("{path}:close"), None)
        .await;
    assert_eq!(closed.text("status"), "closed");
    let late = stack
        .post("ada", &format!("{path}:keepAlive"), json!({"until": expires}))
        .await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert_problem(&late, "SESSION_CLOSED");
    let foreign = stack.get("eve", &path).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    assert_problem(&foreign, "NOT_AUTHORIZED");
}

#[tokio::test]
async fn tokens_are_issued_listed_and_revoked() {
    let stack = Stack::start().await;
    let session = stack.session("ada").await;
    let path = format!("/sessions/{session}/tokens");
    stack.issuer_ready("ada").await;
    let issued = stack.post("ada", &path, json!({"ttl": "600s"})).await;
    assert_eq!(issued.status, StatusCode::CREATED, "{issued:?}");
    assert_eq!(issued.header("cache-control"), "no-store");
    let token = issued.text("token");
    assert!(issued.text("connection_url").contains(&token));
    let token_id = issued.text("token_id");
    let listed = stack.get("ada", &path).await;
    assert_eq!(listed.json["tokens"][0]["token_id"], token_id.as_str());
    assert!(!listed.json.to_string().contains(&token));
    let revoked = stack
        .ask("ada", Method::DELETE, &format!("{path}/{token_id}"), None)
        .await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    let listed = stack.get("ada", &path).await;
    assert_eq!(listed.json["tokens"][0]["revoked"], true);
    let all = stack
        .ask("ada", Method::POST, &format!("{path}:revokeAll"), None)
        .await;
    assert_eq!(all.status, StatusCode::OK);
    assert!(all.json["token_epoch"].as_u64().unwrap() > 0);
    let short = stack.post("ada", &path, json!({"ttl": "1s"})).await;
    assert_eq!((short.status, short.field()), (StatusCode::BAD_REQUEST, "ttl"));
    let foreign = stack.post("bob", &path, json!({})).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn clusters_are_created_changed_and_removed() {
    let stack = Stack::start().await;
    let lab = json!({"name": "lab", "engine": "sail", "provider": {"process": {"program": "/opt/sail"}}});
    let denied = stack.post("ada", "/clusters", lab.clone()).await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    let created = stack.post("pat", "/clusters", lab.clone()).await;
    assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
    let again = stack.post("pat", "/clusters", lab).await;
    assert_eq!(
        (again.status, again.reason()),
        (StatusCode::CONFLICT, "ALREADY_EXISTS")
    );
    let read: v1::Cluster =
        session_proto::json::from_value(&stack.get("pat", "/clusters/lab").await.json).unwrap();
    assert_eq!(read.name, "lab");
    let patch = json!({"idle_timeout": "600s", "provider": {"process": {"program": "/opt/other"}}});
    let patched = stack
        .ask("pat", Method::PATCH, "/clusters/lab", Some(patch))
        .await;
    assert_eq!(patched.status, StatusCode::OK, "{patched:?}");
    assert_eq!(patched.json["provider"]["process"]["program"], "/opt/other");
    assert_eq!(patched.json["idle_timeout"], "600s");
    let unset = stack
        .ask(
            "pat",
            Method::PATCH,
            "/clusters/lab",
            Some(json!({"idle_timeout": null})),
        )
        .await;
    assert_eq!(unset.json["idle_timeout"], Value::Null);
    assert_eq!(unset.json["provider"]["process"]["program"], "/opt/other");
    let busy = stack.ask("pat", Method::DELETE, "/clusters/c", None).await;
    assert_eq!(busy.reason(), "MANAGED_BY_CONFIG");
    assert_eq!(
        stack
            .ask("pat", Method::POST, "/clusters/lab:drain", None)
            .await
            .text("status"),
        "draining"
    );
    let removed = stack
        .ask("pat", Method::DELETE, "/clusters/lab?force=true", None)
        .await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{removed:?}");
}

#[tokio::test]
async fn catalogs_are_created_changed_and_removed() {
    let stack = Stack::start().await;
    let lake = json!({"name": "lake", "engine": "sail", "properties": {"type": "memory", "initial_database": ["a"]}});
    let created = stack.post("olga", "/catalogs", lake).await;
    assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
    assert_eq!(created.json["properties"]["initial_database"], json!(["a"]));
    let patch = json!({"allowed_teams": ["data"]});
    let patched = stack
        .ask("olga", Method::PATCH, "/catalogs/lake", Some(patch))
        .await;
    assert_eq!(patched.json["allowed_teams"], json!(["data"]));
    let renamed = stack
        .ask(
            "olga",
            Method::PATCH,
            "/catalogs/lake",
            Some(json!({"name": "sea"})),
        )
        .await;
    assert_eq!(renamed.field(), "name");
    assert_eq!(
        stack.get("olga", "/catalogs").await.json["catalogs"][0]["name"],
        "lake"
    );
    let removed = stack.ask("olga", Method::DELETE, "/catalogs/lake", None).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn organizations_and_principals_are_limited_and_disabled() {
    let stack = Stack::start().await;
    let by_position = json!({"name": "newco", "limits": [1, 2, 3, 4, 5]});
    let refused = stack.post("pat", "/orgs", by_position).await;
    assert_eq!(
        (refused.status, refused.field()),
        (StatusCode::BAD_REQUEST, "limits")
    );
    let created = stack.post("pat", "/orgs", json!({"name": "newco"})).await;
    assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
    let mut limits = created.json["limits"].clone();
    limits["labels"] = json!(7);
    let path = "/orgs/newco/limits";
    let set = stack.ask("pat", Method::PUT, path, Some(limits.clone())).await;
    assert_eq!(set.json["limits"], limits);
    assert_eq!(
        stack.ask("ada", Method::PUT, path, Some(limits)).await.status,
        StatusCode::FORBIDDEN
    );
    let disabled = stack.ask("pat", Method::POST, "/orgs/newco:disable", None).await;
    assert_eq!(
        (
            &disabled.json["org"]["disabled"],
            &disabled.json["closed_sessions"]
        ),
        (&json!(true), &json!(0))
    );
    let enabled = stack.ask("pat", Method::POST, "/orgs/newco:enable", None).await;
    assert_eq!(enabled.json["disabled"], false);
    assert_eq!(
        stack.get("eve", "/orgs").await.json["orgs"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    stack.session("bob").await;
    let out = stack
        .ask("olga", Method::POST, "/principals/sa%7Cbob:disable", None)
        .await;
    assert_eq!(out.json, json!({"closed_sessions": 1}), "{out:?}");
    assert_eq!(
        stack.get("bob", "/sessions").await.status,
        StatusCode::UNAUTHORIZED
    );
    let back = stack
        .post("olga", "/principals/sa%7Cbob:disable", json!({"disabled": false}))
        .await;
    assert_eq!(back.status, StatusCode::OK);
    assert_eq!(stack.get("bob", "/sessions").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_audit_trail_and_usage_are_read_by_role() {
    let stack = Stack::start().await;
    let session = stack.session("ada").await;
    stack.session("eve").await;
    let own = stack
        .get("olga", "/audit?page_size=1&actions=session.created,org.created")
        .await;
    assert_eq!(own.status, StatusCode::OK, "{own:?}");
    let record = &own.json["records"][0];
    assert_eq!(
        (
            &record["session_id"],
            &record["actor"],
            &record["to"],
            &record["from"]
        ),
        (
            &json!(session),
            &json!("sa|ada"),
            &json!("pending"),
            &json!("unspecified")
        )
    );
    let token = own.text("next_page_token");
    let at = record["at"].as_str().unwrap().to_owned();
    let older = stack
        .get("olga", &format!("/audit?until={at}&page_token={token}"))
        .await;
    assert_eq!(older.json, json!({"records": [], "next_page_token": ""}));
    let all = stack
        .get("pat", "/audit?actions=session.created&actions=token.issued")
        .await;
    assert_eq!(all.json["records"].as_array().unwrap().len(), 2);
    for (who, query, status) in [
        ("ada", "", StatusCode::FORBIDDEN),
        ("olga", "?org=umbrella", StatusCode::FORBIDDEN),
        ("olga", "?actions=session.gone", StatusCode::BAD_REQUEST),
        ("olga", "?since=yesterday", StatusCode::BAD_REQUEST),
    ] {
        let refused = stack.get(who, &format!("/audit{query}")).await;
        assert_eq!(refused.status, status, "{who} {query} {refused:?}");
    }
    let since = stack.get("olga", "/audit?since=yesterday").await;
    assert_eq!(since.field(), "since");
    let action = stack.get("olga", "/audit?actions=session.gone").await;
    assert_eq!(action.field(), "actions");

    let usage = stack.get("olga", "/usage").await;
    let row = &usage.json["rows"][0];
    assert_eq!(
        (
            &row["owner"],
            &row["cluster"],
            &row["sessions"],
            &row["live_sessions"]
        ),
        (&json!("sa|ada"), &json!("c"), &json!(1), &json!(1)),
        "{usage:?}"
    );
    assert_eq!(row["usage"]["rpcs"], 0);
    let theirs = stack
        .get("pat", "/usage?org=umbrella&owner=sa%7Ceve&cluster=c")
        .await;
    assert_eq!(theirs.json["rows"].as_array().unwrap().len(), 1);
    let foreign = stack.get("eve", "/usage?org=acme").await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn paths_methods_and_types_that_do_not_exist_are_problems() {
    let stack = Stack::start().await;
    for path in [
        "/nothing",
        "/sessions/s-1/~close",
        "/sessions/~watch",
        "/sessions/x:fly",
        "",
    ] {
        let absent = stack.ask("ada", Method::POST, path, None).await;
        assert_eq!(absent.status, StatusCode::NOT_FOUND, "{path}");
        assert_problem(&absent, "NOT_FOUND");
    }
    let method = stack.ask("ada", Method::PUT, "/sessions", Some(json!({}))).await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_problem(&method, "METHOD_NOT_ALLOWED");
    assert!(method.header("allow").contains("POST"), "{method:?}");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body = stack
        .send_raw("ada", "POST", "/api/v1/sessions", &form, "cluster=c")
        .await;
    assert_eq!(body.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let json = [("content-type", "application/json; charset=utf-8")];
    for (text, field) in [
        ("{", "body"),
        ("{\"cluster\": 1}", "cluster"),
        ("{\"request_id\": \"x\"}", "request_id"),
    ] {
        let bad = stack
            .send_raw("ada", "POST", "/api/v1/sessions", &json, text)
            .await;
        assert_eq!(
            (bad.status, bad.field()),
            (StatusCode::BAD_REQUEST, field),
            "{text} {bad:?}"
        );
    }
}

#[tokio::test]
async fn ids_of_requests_pass_through() {
    let stack = Stack::start().await;
    let named = stack
        .send("ada", "GET", "/api/v1/orgs", &[("x-request-id", "r-1")], None)
        .await;
    assert_eq!(named.header("x-request-id"), "r-1");
    for bad in ["", "a b", &"x".repeat(200)] {
        let fresh = stack
            .send("ada", "GET", "/api/v1/orgs", &[("x-request-id", bad)], None)
            .await;
        assert_eq!(fresh.header("x-request-id").len(), 36, "{bad:?}");
    }
}

#[tokio::test]
async fn the_api_speaks_http_2() {
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    let stack = Stack::start().await;
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let requests = (0..50).map(|_| {
        let uri = format!("http://{}/api/v1/orgs", stack.console);
        let request = http::Request::get(uri).header("authorization", format!("Bearer {}", stack.key("ada")));
        client.request(request.body(Empty::<bytes::Bytes>::new()).unwrap())
    });
    for answer in futures::future::join_all(requests).await {
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status(), answer.version()),
            (StatusCode::OK, http::Version::HTTP_2)
        );
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["orgs"][0]["name"], "acme");
    }
}
