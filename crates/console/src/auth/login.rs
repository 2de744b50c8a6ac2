//! Sign-in at an identity provider: to the provider and back.

use super::browser::cookies_of;
use super::caller;
use crate::credential::Credential;
use crate::metrics::{SignInMethod, SignInOutcome};
use crate::pages::message_page;
use crate::sign_in::oidc::{LoginError, PENDING_AGE, Pending, Provider};
use crate::sign_in::session::SignedIn;
use crate::sign_in::{cookie, return_path};
use crate::state::AppState;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use session_core::{Clock as _, SystemClock};
use std::sync::Arc;
use std::time::Duration;

/// Cookies of sign-ins that may wait at the same time in one browser.
const MAX_PENDING: usize = 4;
const TITLE: &str = "Sign-in failed";
const STALE: &str =
    "This sign-in has expired, was already used, or was started in another browser. Sign in again.";

#[derive(Debug, Deserialize)]
pub(super) struct Start {
    #[serde(rename = "return")]
    return_path: Option<String>,
}

/// What the provider returns.
#[derive(Deserialize)]
pub(super) struct Callback {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    iss: Option<String>,
}

/// A sign-in that did not finish: the status and text of its page.
struct Failed {
    status: StatusCode,
    text: String,
    outcome: SignInOutcome,
}

impl Failed {
    fn rejected(text: impl Into<String>) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            text: text.into(),
            outcome: SignInOutcome::Rejected,
        }
    }
}

impl From<LoginError> for Failed {
    fn from(error: LoginError) -> Self {
        let (status, outcome) = match error {
            LoginError::Unavailable | LoginError::InvalidToken => {
                (StatusCode::BAD_GATEWAY, SignInOutcome::Failed)
            }
            LoginError::Rejected | LoginError::TooLarge => (StatusCode::FORBIDDEN, SignInOutcome::Rejected),
        };
        Self {
            status,
            text: error.to_string(),
            outcome,
        }
    }
}

/// `GET auth/login/{provider}`: redirects the browser to the provider.
pub(super) async fn start(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<Start>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let Some(provider) = app.sign_in.provider(&id) else {
        let text = "There is no such identity provider.";
        return message_page(&app, StatusCode::NOT_FOUND, TITLE, text);
    };
    let return_path = return_path::local(query.return_path.as_deref(), &app.prefix);
    let redirected = redirect_to(&app, provider, return_path, &parts.headers).await;
    redirected.unwrap_or_else(|failed| fail(&app, failed))
}

async fn redirect_to(
    app: &AppState,
    provider: &Provider,
    return_path: String,
    request: &HeaderMap,
) -> Result<Response, Failed> {
    let internal = |error: anyhow::Error| {
        let error = format!("{error:#}");
        tracing::error!(error, "starting a sign-in failed");
        Failed::from(LoginError::Unavailable)
    };
    let pending = Pending::new(&provider.config().id, return_path, SystemClock.now()).map_err(internal)?;
    let sealed = pending.seal(&app.sign_in.keys).map_err(internal)?;
    let url = provider.authorization_url(&pending).await?;
    let mut response = see_other(&url).ok_or(LoginError::Unavailable)?;
    let jar = &app.sign_in.jar;
    let answer = response.headers_mut();
    let prefix = jar.logins();
    let waiting: Vec<&str> = cookie::with_prefix(request, &prefix)
        .map(|(name, _)| name)
        .collect();
    if waiting.len() >= MAX_PENDING {
        for name in waiting {
            cookie::append(answer, jar.set(name, "", Duration::ZERO));
        }
    }
    cookie::append(answer, jar.set(&jar.login(&pending.state), &sealed, PENDING_AGE));
    Ok(response)
}

/// `GET auth/callback`: the browser comes back from the provider.
pub(super) async fn finish(
    State(app): State<AppState>,
    Query(callback): Query<Callback>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let cookies = cookies_of(&parts.headers);
    let mut response = match pending_of(&app, &callback, &cookies) {
        None => message_page(&app, StatusCode::BAD_REQUEST, TITLE, STALE),
        Some(pending) => match signed_in(&app, &pending, &callback, &parts).await {
            Ok(signed_in) => complete(&app, &pending, &signed_in, &cookies),
            Err(failed) => fail(&app, failed),
        },
    };
    // Used up, whatever happened.
    if let Some(state) = &callback.state {
        let jar = &app.sign_in.jar;
        let name = jar.login(state);
        if cookie::only(&cookies, &name).is_some() {
            cookie::append(response.headers_mut(), jar.set(&name, "", Duration::ZERO));
        }
    }
    response
}

/// The sign-in that this browser started and that the provider answers.
fn pending_of(app: &AppState, callback: &Callback, cookies: &HeaderMap) -> Option<Pending> {
    let state = callback.state.as_deref()?;
    let sealed = cookie::only(cookies, &app.sign_in.jar.login(state))?;
    Pending::open(sealed, state, &app.sign_in.keys, SystemClock.now())
}

async fn signed_in(
    app: &AppState,
    pending: &Pending,
    callback: &Callback,
    parts: &Parts,
) -> Result<SignedIn, Failed> {
    let provider: &Arc<Provider> = app
        .sign_in
        .provider(&pending.provider)
        .ok_or_else(|| Failed::rejected(STALE))?;
    if !provider.is_issuer(callback.iss.as_deref()).await {
        tracing::warn!(provider = pending.provider, "callback of another issuer rejected");
        return Err(LoginError::InvalidToken.into());
    }
    if let Some(error) = &callback.error {
        return Err(Failed::rejected(match error.as_str() {
            "access_denied" => "The identity provider did not let you in, or you cancelled.",
            _ => {
                "The identity provider ended the sign-in with an error. Try again, or ask your administrator."
            }
        }));
    }
    let code = callback.code.as_deref().ok_or_else(|| Failed::rejected(STALE))?;
    let now = SystemClock.now();
    let signed_in = provider
        .finish(pending, code, now, app.sign_in.config.max_age)
        .await?;
    let credential = Credential::new(&signed_in.credential);
    let caller = caller::describe(app, parts, credential)
        .await
        .map_err(|problem| {
            let denied = problem.status().is_client_error();
            Failed {
                outcome: if denied {
                    SignInOutcome::Rejected
                } else {
                    SignInOutcome::Failed
                },
                status: problem.status(),
                text: problem.detail().to_owned(),
            }
        })?;
    tracing::info!(
        principal = caller.principal,
        org = caller.org,
        "signed in at an identity provider"
    );
    Ok(signed_in)
}

/// Stores the sign-in and opens the page.
fn complete(app: &AppState, pending: &Pending, signed_in: &SignedIn, cookies: &HeaderMap) -> Response {
    let Some(mut response) = see_other(&pending.return_path) else {
        return fail(app, Failed::rejected(STALE));
    };
    if !app
        .sign_in
        .store(response.headers_mut(), cookies, signed_in, SystemClock.now())
    {
        return fail(app, LoginError::TooLarge.into());
    }
    app.metrics
        .sign_ins
        .at((SignInMethod::Oidc, SignInOutcome::Ok))
        .inc();
    response
}

fn fail(app: &AppState, failed: Failed) -> Response {
    app.metrics
        .sign_ins
        .at((SignInMethod::Oidc, failed.outcome))
        .inc();
    message_page(app, failed.status, TITLE, &failed.text)
}

fn see_other(location: &str) -> Option<Response> {
    let location = HeaderValue::from_str(location).ok()?;
    Some((StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response())
}
