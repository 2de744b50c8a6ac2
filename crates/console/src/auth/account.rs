//! Who is signed in, sign-in with a service-account key, and sign-out.

use super::browser::cookies_of;
use super::caller;
use super::credential::require_same_origin;
use crate::credential::Credential;
use crate::metrics::{SignInMethod, SignInOutcome};
use crate::problem::{Problem, RestReason};
use crate::sign_in::cookie;
use crate::sign_in::session::{KEY_METHOD, SignedIn};
use crate::state::AppState;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts as _, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::caller::KEY_PREFIX;
use session_core::{Clock as _, SystemClock};
use std::sync::Arc;
use std::time::Duration;

/// Maximum size of the body of a sign-in in bytes.
const MAX_BODY_BYTES: usize = 8 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyForm {
    key: String,
}

/// `GET auth/session`: who is signed in, and how to sign in. Needs no
/// credential.
pub(super) async fn session(State(app): State<AppState>, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let signed_in = parts.extensions.get::<Arc<SignedIn>>().cloned();
    let Ok(credential) = Credential::from_request_parts(&mut parts, &app).await else {
        return Ok(axum::Json(session_json(&app, None, None)).into_response());
    };
    match caller::describe(&app, &parts, credential).await {
        Ok(caller) => {
            let expires_at = signed_in.map(|signed_in| signed_in.expires_at().to_string());
            let principal = caller::to_json(&caller);
            Ok(axum::Json(session_json(&app, Some(principal), expires_at)).into_response())
        }
        // Not accepted any more: the browser is signed out.
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => {
            let mut response = axum::Json(session_json(&app, None, None)).into_response();
            app.sign_in.remove(response.headers_mut(), &parts.headers);
            Ok(response)
        }
        // A disabled principal or organization; it may be enabled again.
        Err(problem) if problem.status() == StatusCode::FORBIDDEN => {
            Ok(axum::Json(session_json(&app, None, None)).into_response())
        }
        Err(problem) => Err(problem),
    }
}

fn session_json(app: &AppState, principal: Option<Value>, expires_at: Option<String>) -> Value {
    let key = app
        .sign_in
        .config
        .service_account_keys
        .then(|| json!({"id": KEY_METHOD}));
    let providers = app.sign_in.config.providers.iter();
    let providers = providers.map(|provider| json!({"id": provider.id, "label": provider.label()}));
    let methods: Vec<Value> = key.into_iter().chain(providers).collect();
    json!({
        "signed_in": principal.is_some(),
        "principal": principal,
        "expires_at": expires_at,
        "methods": methods,
        "installation": app.config.spark_connect.to_json(),
    })
}

/// `POST auth/key`: signs in with a service-account key.
pub(super) async fn sign_in_with_key(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    require_same_origin(&parts, &app)?;
    let key = read_key(&app, &parts, body).await?;
    let credential = Credential::new(&key);
    let caller = caller::describe(&app, &parts, credential)
        .await
        .inspect_err(|problem| {
            let outcome = match problem.status() {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => SignInOutcome::Rejected,
                _ => SignInOutcome::Failed,
            };
            app.metrics.sign_ins.at((SignInMethod::Key, outcome)).inc();
        })?;
    let now = SystemClock.now();
    let signed_in = SignedIn::new(key, KEY_METHOD, now, app.sign_in.config.max_age);
    let mut response = StatusCode::NO_CONTENT.into_response();
    let cookies = cookies_of(&parts.headers);
    app.sign_in
        .store(response.headers_mut(), &cookies, &signed_in, now);
    app.metrics
        .sign_ins
        .at((SignInMethod::Key, SignInOutcome::Ok))
        .inc();
    tracing::info!(
        principal = caller.principal,
        org = caller.org,
        "signed in with a service-account key"
    );
    Ok(response)
}

/// The key in the body of a sign-in.
async fn read_key(app: &AppState, parts: &Parts, body: Body) -> Result<String, Problem> {
    if !app.sign_in.config.service_account_keys {
        let text =
            "Signing in with a service-account key is turned off here (`sign_in.service_account_keys`).";
        return Err(Problem::of_http(RestReason::NotFound, text));
    }
    if !is_json(&parts.headers) {
        let text = "The body must be JSON: send `Content-Type: application/json`.";
        return Err(Problem::of_http(RestReason::UnsupportedMediaType, text));
    }
    let timeout: Duration = app.config.limits.body_timeout;
    let body = tokio::time::timeout(timeout, to_bytes(body, MAX_BODY_BYTES))
        .await
        .map_err(|_| Problem::of_http(RestReason::RequestTimeout, "The body did not arrive in time."))?
        .map_err(|_| Problem::of_http(RestReason::RequestTooLarge, "The body is too large for a key."))?;
    // The message of the parser could repeat a part of the key.
    let form: KeyForm = serde_json::from_slice(&body)
        .map_err(|_| Problem::field("key", "the body must be {\"key\": \"…\"} and nothing else"))?;
    let key = form.key.trim();
    if !key.starts_with(KEY_PREFIX) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let text = format!("is not a service-account key, which begins with {KEY_PREFIX}");
        return Err(Problem::field("key", text));
    }
    Ok(key.to_owned())
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    value.is_some_and(|value| {
        let kind = value.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    })
}

/// `POST auth/logout`: removes the cookies.
pub(super) async fn sign_out(State(app): State<AppState>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    require_same_origin(&parts, &app)?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    let answer = response.headers_mut();
    app.sign_in.remove(answer, &parts.headers);
    let jar = &app.sign_in.jar;
    for (name, _) in cookie::with_prefix(&parts.headers, &jar.logins()) {
        cookie::append(answer, jar.set(name, "", Duration::ZERO));
    }
    Ok(response)
}
