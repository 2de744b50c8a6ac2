//! The same random requests have the same effect over REST and over gRPC: two
//! equal installations, one asked in each way, end in the same state.

use crate::support::{ACCOUNTS, Stack};
use http::{Method, StatusCode};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use session_proto::json::from_value;
use session_proto::v1;
use tonic::{Code, Status};

const REQUESTS: usize = 200;

/// A request by its place in lists, since ids differ between installations.
#[derive(Debug, Clone)]
enum Request {
    Create {
        name: String,
        label: String,
        key: String,
    },
    Describe(usize),
    Rename(usize, String),
    Keep(usize),
    Warm(usize),
    Close(usize),
    Revoke(usize),
    ListClusters,
    CreateCatalog(String),
    DeleteCatalog(String),
    DescribeOrg(&'static str),
    CreateOrg(String),
    Audit(&'static str),
    Usage(&'static str),
}

fn random(random: &mut StdRng) -> Request {
    let place = random.random_range(0..12);
    let text = |random: &mut StdRng, prefix: &str| format!("{prefix}{}", random.random_range(0..4));
    match random.random_range(0..16) {
        0..=2 => Request::Create {
            name: text(random, "n"),
            label: text(random, ""),
            key: text(random, "k"),
        },
        3 => Request::Describe(place),
        4 => Request::Rename(place, text(random, "r")),
        5 => Request::Keep(place),
        6 => Request::Warm(place),
        7 => Request::Close(place),
        8 => Request::Revoke(place),
        9 => Request::ListClusters,
        10 => Request::CreateCatalog(text(random, "lake")),
        11 => Request::DeleteCatalog(text(random, "lake")),
        12 => Request::DescribeOrg(["acme", "umbrella", "newco"][random.random_range(0..3)]),
        13 => Request::Audit(["", "acme", "umbrella"][random.random_range(0..3)]),
        14 => Request::Usage(["", "acme", "umbrella"][random.random_range(0..3)]),
        _ => Request::CreateOrg(text(random, "org")),
    }
}

const UNTIL: &str = "2020-01-01T00:00:00Z";

/// Result of a request: the object without ids and times, or the code.
type Outcome = Result<Value, u16>;

/// The parts of an object that both installations must have in common.
fn common(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|name, _| {
            !(name == "id" || name == "policy" || name == "usage" || name.ends_with("_at"))
        });
    }
    value
}

async fn over_rest(stack: &Stack, who: &str, ids: &mut Vec<String>, request: &Request) -> Outcome {
    let id = |place: &usize| {
        ids.get(*place)
            .cloned()
            .unwrap_or("s-00000000000000000000".to_owned())
    };
    let (method, path, body) = match request {
        Request::Create { name, label, key } => {
            let body = json!({"cluster": "c", "name": name, "labels": {"l": label}});
            let created = stack
                .send(
                    who,
                    "POST",
                    "/api/v1/sessions",
                    &[("idempotency-key", key)],
                    Some(body),
                )
                .await;
            if created.status == StatusCode::CREATED && !ids.contains(&created.text("id")) {
                ids.push(created.text("id"));
            }
            return outcome(created.status, created.json);
        }
        Request::Describe(place) => (Method::GET, format!("/sessions/{}", id(place)), None),
        Request::Rename(place, name) => (
            Method::PATCH,
            format!("/sessions/{}", id(place)),
            Some(json!({"name": name})),
        ),
        Request::Keep(place) => (
            Method::POST,
            format!("/sessions/{}:keepAlive", id(place)),
            Some(json!({"until": UNTIL})),
        ),
        Request::Warm(place) => (Method::POST, format!("/sessions/{}:warm", id(place)), None),
        Request::Close(place) => (Method::POST, format!("/sessions/{}:close", id(place)), None),
        Request::Revoke(place) => (
            Method::POST,
            format!("/sessions/{}/tokens:revokeAll", id(place)),
            None,
        ),
        Request::ListClusters => (Method::GET, "/clusters".to_owned(), None),
        Request::CreateCatalog(name) => (Method::POST, "/catalogs".to_owned(), Some(catalog(name))),
        Request::DeleteCatalog(name) => (Method::DELETE, format!("/catalogs/{name}"), None),
        Request::DescribeOrg(name) => (Method::GET, format!("/orgs/{name}"), None),
        Request::CreateOrg(name) => (Method::POST, "/orgs".to_owned(), Some(json!({"name": name}))),
        Request::Audit(org) => (Method::GET, format!("/audit?page_size=1000&org={org}"), None),
        Request::Usage(org) => (Method::GET, format!("/usage?org={org}"), None),
    };
    let answer = stack.ask(who, method, &path, body).await;
    let json = match request {
        Request::Audit(_) => actions(&answer.json),
        _ => answer.json,
    };
    outcome(answer.status, json)
}

/// What principals did, by an answer with audit records. Those of Berth itself and of
/// rejected calls are written at another time than the call.
fn actions(answer: &Value) -> Value {
    let records = answer["records"].as_array().into_iter().flatten();
    let done = records.filter(|record| record["outcome"] == "done" && record["actor"] != "system");
    done.map(|record| {
        json!([
            record["action"],
            record["actor"],
            record["object"],
            record["address"]
        ])
    })
    .collect()
}

fn outcome(status: StatusCode, json: Value) -> Outcome {
    if status.is_success() {
        Ok(common(json))
    } else {
        Err(status.as_u16())
    }
}

fn catalog(name: &str) -> Value {
    json!({"name": name, "engine": "sail", "properties": {"type": "memory", "initial_database": "a"}})
}

fn json_of<T: serde::Serialize>(answer: Result<tonic::Response<T>, Status>, inner: &str) -> Outcome {
    match answer {
        Ok(answer) => {
            let value = session_proto::json::value(answer.get_ref());
            Ok(common(if inner.is_empty() {
                value
            } else {
                value[inner].clone()
            }))
        }
        Err(status) => Err(match status.code() {
            Code::InvalidArgument => 400,
            Code::PermissionDenied => 403,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => 409,
            Code::Unavailable => 503,
            other => panic!("{other:?} {status:?}"),
        }),
    }
}

async fn over_grpc(stack: &Stack, who: &str, ids: &mut Vec<String>, request: &Request) -> Outcome {
    let id = |place: &usize| {
        ids.get(*place)
            .cloned()
            .unwrap_or("s-00000000000000000000".to_owned())
    };
    let mut sessions = stack.sessions(who);
    match request {
        Request::Create { name, label, key } => {
            let body = json!({"cluster": "c", "name": name, "labels": {"l": label}, "request_id": key});
            let request: v1::CreateSessionRequest = from_value(&body).unwrap();
            let created = sessions.create_session(request).await;
            if let Ok(created) = &created {
                let id = &created.get_ref().session.as_ref().unwrap().id;
                if !ids.contains(id) {
                    ids.push(id.clone());
                }
            }
            json_of(created, "session")
        }
        Request::Describe(place) => {
            let request = v1::DescribeSessionRequest {
                session_id: id(place),
                wait_ready: None,
            };
            json_of(sessions.describe_session(request).await, "session")
        }
        Request::Rename(place, name) => {
            let request = v1::UpdateSessionRequest {
                session_id: id(place),
                name: Some(name.clone()),
                ..v1::UpdateSessionRequest::default()
            };
            json_of(sessions.update_session(request).await, "session")
        }
        Request::Keep(place) => {
            let until = session_proto::json::parse_timestamp(UNTIL);
            let request = v1::KeepSessionAliveRequest {
                session_id: id(place),
                until,
            };
            json_of(sessions.keep_session_alive(request).await, "session")
        }
        Request::Warm(place) => json_of(
            sessions
                .warm_session(v1::WarmSessionRequest {
                    session_id: id(place),
                })
                .await,
            "session",
        ),
        Request::Close(place) => json_of(
            sessions
                .close_session(v1::CloseSessionRequest {
                    session_id: id(place),
                })
                .await,
            "session",
        ),
        Request::Revoke(place) => {
            let request = v1::RevokeAllSessionTokensRequest {
                session_id: id(place),
            };
            json_of(stack.tokens(who).revoke_all_session_tokens(request).await, "")
        }
        Request::ListClusters => json_of(
            stack
                .clusters(who)
                .list_clusters(v1::ListClustersRequest {})
                .await,
            "",
        ),
        Request::CreateCatalog(name) => {
            let catalog = Some(from_value(&catalog(name)).unwrap());
            json_of(
                stack
                    .catalogs(who)
                    .create_catalog(v1::CreateCatalogRequest { catalog })
                    .await,
                "catalog",
            )
        }
        Request::DeleteCatalog(name) => {
            let request = v1::DeleteCatalogRequest {
                name: name.clone(),
                force: false,
            };
            let deleted = json_of(stack.catalogs(who).delete_catalog(request).await, "");
            deleted.map(|_| Value::Null)
        }
        Request::Audit(org) => {
            let request = v1::ListAuditRecordsRequest {
                org: (*org).to_owned(),
                page_size: 1000,
                ..v1::ListAuditRecordsRequest::default()
            };
            let listed = json_of(stack.audit(who).list_audit_records(request).await, "");
            listed.map(|answer| actions(&answer))
        }
        Request::Usage(org) => {
            let request = v1::ListUsageRequest {
                org: (*org).to_owned(),
                ..v1::ListUsageRequest::default()
            };
            json_of(stack.audit(who).list_usage(request).await, "")
        }
        Request::DescribeOrg(name) => {
            let request = v1::DescribeOrgRequest {
                name: (*name).to_owned(),
            };
            json_of(stack.orgs(who).describe_org(request).await, "org")
        }
        Request::CreateOrg(name) => {
            let org = Some(from_value(&json!({"name": name})).unwrap());
            json_of(
                stack.orgs(who).create_org(v1::CreateOrgRequest { org }).await,
                "org",
            )
        }
    }
}

#[tokio::test]
async fn random_requests_have_the_same_effect_over_rest_and_grpc() {
    let (rest, grpc) = (Stack::start().await, Stack::start().await);
    let mut draw = StdRng::seed_from_u64(17);
    let (mut rest_ids, mut grpc_ids) = (Vec::new(), Vec::new());
    let mut succeeded = 0;
    for number in 0..REQUESTS {
        let (who, ..) = ACCOUNTS[draw.random_range(0..ACCOUNTS.len())];
        let request = random(&mut draw);
        let by_rest = over_rest(&rest, who, &mut rest_ids, &request).await;
        let by_grpc = over_grpc(&grpc, who, &mut grpc_ids, &request).await;
        assert_eq!(by_rest, by_grpc, "request {number} by {who}: {request:?}");
        succeeded += usize::from(by_rest.is_ok());
    }
    assert!(
        (REQUESTS / 4..REQUESTS).contains(&succeeded),
        "{succeeded} succeeded"
    );
    for (who, ..) in ACCOUNTS {
        let listed = rest.get(who, "/sessions?page_size=1000").await.json;
        let request = v1::ListSessionsRequest {
            page_size: 1000,
            ..v1::ListSessionsRequest::default()
        };
        let other = grpc.sessions(who).list_sessions(request).await.unwrap();
        let other = session_proto::json::value(other.get_ref());
        let sessions = |value: &Value| {
            let sessions = value["sessions"].as_array().unwrap().iter();
            sessions
                .map(|session| common(session.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(sessions(&listed), sessions(&other), "sessions of {who}");
    }
}
