//! The cookie of a signed-in browser around every request: it is opened,
//! renewed when the credential expires soon, and removed when it is not usable.

use crate::sign_in::{Change, cookie};
use crate::state::AppState;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use session_core::{Clock as _, SystemClock};
use std::sync::Arc;

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
