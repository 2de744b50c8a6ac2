//! An identity provider for sign-ins: discovery, device and browser flow,
//! refresh tokens that rotate and are accepted once, revocation.
//! `tests/e2e` has the same flows with npm `oidc-provider`.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

type Form = HashMap<String, String>;
type Reply = (StatusCode, Json<Value>);

/// What the provider was asked, and how it behaves.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Polls of the device flow that are answered with `authorization_pending`.
    pub(crate) pending_polls: usize,
    /// Lifetime of tokens in seconds.
    pub(crate) lifetime: u64,
    /// Error of the next request to the token endpoint.
    pub(crate) refusal: Option<&'static str>,
    /// The grants that were accepted.
    pub(crate) grants: Vec<String>,
    /// Parameters of the authorization request.
    pub(crate) authorization: Form,
    pub(crate) revoked: Vec<String>,
    refresh_token: Option<String>,
    issued: usize,
}

/// The provider; it ends with the test.
#[derive(Clone)]
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    pub(crate) record: Arc<Mutex<Record>>,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Self {
            address: listener.local_addr().unwrap(),
            record: Arc::new(Mutex::new(Record {
                lifetime: 3600,
                ..Record::default()
            })),
        };
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/device", post(device))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .route("/revoke", post(revoke))
            .with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        provider
    }

    pub(crate) fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how it behaves, or reads what it recorded.
    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut Record) -> T) -> T {
        what(&mut self.record.lock().unwrap())
    }

    fn tokens(&self) -> Reply {
        self.with(|record| {
            record.issued += 1;
            let refresh_token = format!("refresh-{}", record.issued);
            record.refresh_token = Some(refresh_token.clone());
            let claims = json!({"iss": self.issuer(), "sub": "ada", "n": record.issued});
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let token = format!("{}.{}.c2ln", part(&json!({"alg": "none"})), part(&claims));
            (
                StatusCode::OK,
                Json(json!({
                    "access_token": token, "token_type": "Bearer",
                    "expires_in": record.lifetime, "refresh_token": refresh_token,
                })),
            )
        })
    }
}

fn refused(error: &str) -> Reply {
    (
        StatusCode::BAD_REQUEST,
        Json(json!({"error": error, "error_description": "scripted"})),
    )
}

fn form(body: &str) -> Form {
    body.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| {
            let value = value.replace("%3A", ":").replace("%2F", "/").replace("%20", " ");
            (name.to_owned(), value)
        })
        .collect()
}

async fn discovery(State(provider): State<Provider>) -> Json<Value> {
    let issuer = provider.issuer();
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "device_authorization_endpoint": format!("{issuer}/device"),
        "token_endpoint": format!("{issuer}/token"),
        "revocation_endpoint": format!("{issuer}/revoke"),
        "authorization_response_iss_parameter_supported": true,
    }))
}

async fn device(State(provider): State<Provider>, body: String) -> Reply {
    let form = form(&body);
    if form.get("client_id").map(String::as_str) != Some("berth-cli") {
        return refused("invalid_client");
    }
    provider.with(|record| record.authorization = form);
    (
        StatusCode::OK,
        Json(json!({
            "device_code": "device-1", "user_code": "ABCD-EFGH", "interval": 1, "expires_in": 60,
            "verification_uri": format!("{}/activate", provider.issuer()),
        })),
    )
}

/// The user agrees at once.
async fn authorize(State(provider): State<Provider>, Query(query): Query<Form>) -> Redirect {
    let to = format!(
        "{}?code=code-1&state={}&iss={}",
        query["redirect_uri"],
        query["state"],
        provider.issuer().replace(':', "%3A").replace('/', "%2F")
    );
    provider.with(|record| record.authorization = query);
    Redirect::to(&to)
}

async fn token(State(provider): State<Provider>, body: String) -> Reply {
    let form = form(&body);
    let grant = form["grant_type"].clone();
    let refusal = provider.with(|record| {
        if let Some(refusal) = record.refusal.take() {
            return Some(refusal);
        }
        match grant.as_str() {
            "urn:ietf:params:oauth:grant-type:device_code" if record.pending_polls > 0 => {
                record.pending_polls -= 1;
                Some("authorization_pending")
            }
            "urn:ietf:params:oauth:grant-type:device_code" => {
                (form["device_code"] != "device-1").then_some("invalid_grant")
            }
            "authorization_code" => {
                let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(form["code_verifier"].as_bytes()));
                let good = form["code"] == "code-1"
                    && challenge == record.authorization["code_challenge"]
                    && form["redirect_uri"] == record.authorization["redirect_uri"];
                (!good).then_some("invalid_grant")
            }
            // Each is accepted once.
            "refresh_token" => {
                let known = record.refresh_token.take();
                (known.as_ref() != form.get("refresh_token")).then_some("invalid_grant")
            }
            _ => Some("unsupported_grant_type"),
        }
    });
    if let Some(refusal) = refusal {
        return refused(refusal);
    }
    provider.with(|record| record.grants.push(grant));
    provider.tokens()
}

async fn revoke(State(provider): State<Provider>, body: String) -> StatusCode {
    provider.with(|record| record.revoked.push(form(&body)["token"].clone()));
    StatusCode::OK
}
