//! The cookie of a signed-in browser around every request: it is opened,
//! renewed when the credential expires soon, and removed when it is not usable.

use super::oidc::LoginError;
use super::session::SignedIn;
use super::{SignIn, cookie};
use crate::service::AppState;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, SET_COOKIE};
use session_core::{Clock as _, SystemClock, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// What becomes of the cookie.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Keep,
    Store,
    Remove,
}

/// Middleware: puts the `Arc<SignedIn>` of a request with a usable cookie into
/// its extensions. A request with an `Authorization` header needs none.
pub(crate) async fn attach(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let has_cookie = cookie::has(request.headers(), &app.sign_in.jar.session());
    if request.headers().contains_key(AUTHORIZATION) || !has_cookie {
        return next.run(request).await;
    }
    let cookies = cookies_of(request.headers());
    let now = SystemClock.now();
    let (signed_in, change) = app.sign_in.current(&cookies, now).await;
    if let Some(signed_in) = &signed_in {
        request.extensions_mut().insert(Arc::clone(signed_in));
    }
    let mut response = next.run(request).await;
    if app.sign_in.is_set_by(response.headers()) {
        return response;
    }
    let answer = response.headers_mut();
    match (signed_in, change) {
        (Some(signed_in), Change::Store) => {
            app.sign_in.store(answer, &cookies, &signed_in, now);
        }
        (_, Change::Remove) => app.sign_in.remove(answer, &cookies),
        (_, Change::Store | Change::Keep) => {}
    }
    response
}

/// Only the cookies of a request.
pub(super) fn cookies_of(headers: &HeaderMap) -> HeaderMap {
    let lines = headers.get_all(COOKIE).iter();
    lines.map(|line| (COOKIE, line.clone())).collect()
}

impl SignIn {
    /// The usable sign-in of a browser.
    async fn current(&self, cookies: &HeaderMap, now: Timestamp) -> (Option<Arc<SignedIn>>, Change) {
        let sealed = cookie::load(cookies, &self.jar.session());
        let Some(signed_in) = sealed.and_then(|sealed| SignedIn::open(&sealed, &self.keys)) else {
            return (None, Change::Remove);
        };
        let usable = signed_in.is_usable(now);
        let provider = self.provider(&signed_in.method);
        let Some(provider) = provider.filter(|_| signed_in.needs_renewal(now)) else {
            return match usable {
                true => (Some(Arc::new(signed_in)), Change::Keep),
                false => (None, Change::Remove),
            };
        };
        match (self.renewals.renew(provider, &signed_in, now).await, usable) {
            (Ok(renewed), _) => (Some(renewed), Change::Store),
            (Err(_), true) => (Some(Arc::new(signed_in)), Change::Keep),
            // It can be renewed when the provider is back.
            (Err(LoginError::Unavailable), false) => (None, Change::Keep),
            (Err(LoginError::Rejected | LoginError::InvalidToken | LoginError::TooLarge), false) => {
                (None, Change::Remove)
            }
        }
    }

    /// Adds the headers that keep a sign-in. False if it is too long for
    /// cookies.
    pub(super) fn store(
        &self,
        answer: &mut HeaderMap,
        cookies: &HeaderMap,
        signed_in: &SignedIn,
        now: Timestamp,
    ) -> bool {
        let age = signed_in.expires_at().since(now);
        match signed_in.seal(&self.keys) {
            Ok(sealed) if age > Duration::ZERO => {
                self.jar.store(answer, cookies, &self.jar.session(), &sealed, age)
            }
            Ok(_) => true,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "sealing a cookie failed");
                false
            }
        }
    }

    /// Adds the headers that end a sign-in.
    pub(super) fn remove(&self, answer: &mut HeaderMap, cookies: &HeaderMap) {
        self.jar.remove(answer, cookies, &self.jar.session());
    }

    /// Whether the answer already decides about the cookie.
    fn is_set_by(&self, answer: &HeaderMap) -> bool {
        let name = self.jar.session();
        let mut lines = answer.get_all(SET_COOKIE).iter();
        lines.any(|line| line.as_bytes().starts_with(name.as_bytes()))
    }
}
