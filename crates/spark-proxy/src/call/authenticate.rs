//! Authentication of a call and the session of its token.

use crate::call::ConnectionState;
use crate::grpc::headers::{self, DuplicateHeader};
use crate::grpc::method::Method;
use crate::routes::is_expired;
use crate::worker::Worker;
use crate::worker::tokens::{Caller, hash_of};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use service_kit::grpc::bearer_of;
use service_kit::limiter::address_key;
use session_core::{Reason, Timestamp};
use session_proto::error::Refused;
use session_token::{Grace, TokenError, Verified};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// Verifies the token of a request and checks that its headers name the same session.
pub(crate) async fn authenticate(
    worker: &Worker,
    connection: &ConnectionState,
    headers: &HeaderMap,
    method: Method,
) -> Result<Rc<Caller>, Refused> {
    let credential = credential(headers)?;
    let named = single(headers, &headers::SESSION_ID)?;
    let caller = check_token(worker, connection, credential, method).await?;
    match named {
        Some(named) if named.as_bytes() == caller.claims.sid.as_str().as_bytes() => Ok(caller),
        Some(_) => Err(Refused::new(
            Reason::SessionMismatch,
            "The token opens another session than x-session-id names. Call spark.stop(), then connect with the string that came with the token.",
        )),
        None if worker.shared.config.tokens.require_session_header => Err(Refused::new(
            Reason::HeaderMissing,
            "x-session-id is required here. Call spark.stop(), then add `;x-session-id=<session>` to the connection string.",
        )),
        None => Ok(caller),
    }
}

/// Returns the header that carries the token. The Scala client has sent it as `authentication` for
/// years (3.5, 4.0.0 to 4.0.1, 4.1.0 to 4.1.2; SPARK-57336), all others send `authorization`. Both
/// are accepted if equal; two different credentials are ambiguous.
fn credential(headers: &HeaderMap) -> Result<&HeaderValue, Refused> {
    let authorization = single(headers, &header::AUTHORIZATION)?;
    let authentication = single(headers, &headers::AUTHENTICATION)?;
    match (authorization, authentication) {
        (Some(one), Some(other)) if one != other => Err(Refused::new(
            Reason::HeaderDuplicate,
            "authorization and authentication carry different values. Send one of them, with the token.",
        )
        .with("header", headers::AUTHENTICATION.as_str())),
        (Some(value), _) | (None, Some(value)) => Ok(value),
        (None, None) => Err(missing()),
    }
}

/// A header that may occur once.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Refused> {
    headers::at_most_one(headers, name).map_err(|DuplicateHeader| {
        Refused::new(
            Reason::HeaderDuplicate,
            format!("{name} came more than once. Send it once."),
        )
        .with("header", name.as_str())
    })
}

async fn check_token(
    worker: &Worker,
    connection: &ConnectionState,
    credential: &HeaderValue,
    method: Method,
) -> Result<Rc<Caller>, Refused> {
    let shared = &worker.shared;
    let now = shared.clock.now();
    let generation = shared.keys.generation();
    let is_alive = |caller: &Rc<Caller>| !is_expired(&caller.claims, shared.config.tokens.leeway, now);
    let last = connection.last_admitted.with_header(credential, generation);
    if let Some(caller) = last.filter(is_alive) {
        return Ok(caller);
    }
    let token =
        bearer_of(credential).map_err(|_| invalid(&TokenError::Malformed("not a bearer credential")))?;
    let known = worker.tokens.get(&hash_of(token), generation);
    if let Some(caller) = known.filter(is_alive) {
        return Ok(caller);
    }
    let address = address_key(connection.address);
    shared
        .bad_tokens
        .peek(&address, Instant::now())
        .map_err(too_many_bad_tokens)?;
    let verified = verify(worker, token, method, now).await?;
    if let Err(TokenError::Invalid(_)) = verified {
        // The token is rejected in either case.
        let _ = shared.bad_tokens.take(&address, Instant::now());
    }
    let Verified { claims, by_grace, .. } = verified.map_err(|error| invalid(&error))?;
    Ok(Rc::new(if by_grace {
        let expired = invalid(&TokenError::Expired {
            at: claims.expires_at(),
            session: Some(claims.sid.clone()),
        });
        Caller::new(token, claims, Some(expired))
    } else {
        Caller::cacheable(token, claims, generation)
    }))
}

/// Verifies a token; reads the key set again if it does not contain the token's key.
///
/// # Errors
/// There is no key to verify any token.
async fn verify(
    worker: &Worker,
    token: &str,
    method: Method,
    now: Timestamp,
) -> Result<Result<Verified, TokenError>, Refused> {
    let shared = &worker.shared;
    let verify = |grace| shared.verifier.verify(token, shared.keys.ring(), now, grace);
    let mut verified = verify(method.grace());
    if let Err(TokenError::UnknownKid) = verified {
        let refreshed = Box::pin(worker.refresh_keys()).await;
        // Without any key no token can be verified or rejected.
        if refreshed.is_err() || shared.keys.ring().is_empty() {
            return Err(Refused::new(
                Reason::ControlPlaneUnavailable,
                "The token cannot be checked at the moment. Try again in a little while.",
            ));
        }
        verified = verify(method.grace());
    }
    if method == Method::Config
        && let Err(error) = &verified
        && error.reason() == Reason::TokenExpired
    {
        // Within grace `Config` may read settings; its content is checked later.
        verified = verify(Grace::Reattach);
    }
    Ok(verified)
}

fn invalid(error: &TokenError) -> Refused {
    Refused::new(error.reason(), error.client_text())
}

fn too_many_bad_tokens(wait: Duration) -> Refused {
    Refused::new(
        Reason::RateLimited,
        "Too many tokens from your address were not valid (limits.bad_tokens_per_second_per_address), so this one was not checked. Try again in a little while.",
    )
    .with("limit", "limits.bad_tokens_per_second_per_address")
    .retry_after(wait)
}

fn missing() -> Refused {
    Refused::new(
        Reason::TokenMissing,
        "No token came with the call. Call spark.stop(), then connect with the string that `berth token <session>` prints.",
    )
}
