//! Who calls, and which session the token opens.
//!
//! Good tokens are remembered by their exact text, per worker, until they
//! expire or the key set changes. Epoch, denylist and the state of the session
//! are looked at on every call, elsewhere.

use crate::headers::{self, Doubled};
use crate::method::Method;
use crate::routes::expired;
use crate::worker::Worker;
use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use service_kit::grpc::bearer_of;
use session_core::{Reason, Timestamp};
use session_proto::error::Refused;
use session_token::{Claims, Grace, TokenError, Verified};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Remembered tokens per worker; a token is half a kilobyte.
const MOST: usize = 4096;

/// A caller with a good token.
pub(crate) struct Caller {
    pub(crate) token: Arc<str>,
    pub(crate) claims: Claims,
    /// The token's time is over, and this is what to say unless the call only
    /// reads what a running query still needs (ADR 0011).
    pub(crate) late: Option<Refused>,
    /// When its use was last put down.
    reported: Cell<Option<Instant>>,
}

/// The use of a token is put down this often.
const REPORT_USE: Duration = Duration::from_secs(10);

impl Caller {
    pub(crate) fn of(token: &str, claims: Claims, late: Option<Refused>) -> Self {
        Self {
            token: token.into(),
            claims,
            late,
            reported: Cell::default(),
        }
    }

    /// Is it time to put down that the token is used? Says so once.
    pub(crate) fn is_worth_reporting(&self) -> bool {
        let worth = self.reported.get().is_none_or(|at| at.elapsed() >= REPORT_USE);
        if worth {
            self.reported.set(Some(Instant::now()));
        }
        worth
    }
}

/// The good tokens of one worker.
#[derive(Default)]
pub(crate) struct Tokens {
    callers: RefCell<HashMap<HeaderValue, Rc<Caller>, RandomState>>,
    generation: Cell<u64>,
}

impl Tokens {
    /// The caller with this credential, if it was good a moment ago.
    pub(crate) fn get(&self, value: &HeaderValue, generation: u64) -> Option<Rc<Caller>> {
        if self.generation.replace(generation) != generation {
            self.callers.borrow_mut().clear();
        }
        self.callers.borrow().get(value).cloned()
    }

    pub(crate) fn put(&self, value: &HeaderValue, caller: &Rc<Caller>, leeway: Duration, now: Timestamp) {
        let mut callers = self.callers.borrow_mut();
        if callers.len() >= MOST {
            callers.retain(|_, known| !expired(&known.claims, leeway, now));
        }
        if callers.len() >= MOST {
            callers.clear();
        }
        // A copy of its own: the request's would keep its whole header block.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            callers.insert(value, Rc::clone(caller));
        }
    }
}

/// Checks the token of a request and that its headers name the same session.
pub(crate) async fn authenticate(
    worker: &Worker,
    headers: &HeaderMap,
    method: Method,
) -> Result<Rc<Caller>, Refused> {
    let credential = credential(headers)?;
    let named = single(headers, &headers::SESSION_ID)?;
    let caller = check_token(worker, credential, method).await?;
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

/// The header that carries the token. The Scala client has sent it as
/// `authentication` for years (3.5, 4.0.0 to 4.0.1, 4.1.0 to 4.1.2; SPARK-57336),
/// all others send `authorization`. Both may come if they are equal: a request
/// with two credentials has no caller.
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

/// A header that may come once.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Refused> {
    headers::at_most_one(headers, name).map_err(|Doubled| {
        Refused::new(
            Reason::HeaderDuplicate,
            format!("{name} came more than once. Send it once."),
        )
        .with("header", name.as_str())
    })
}

async fn check_token(
    worker: &Worker,
    credential: &HeaderValue,
    method: Method,
) -> Result<Rc<Caller>, Refused> {
    let shared = &worker.shared;
    let now = shared.clock.now();
    let leeway = shared.config.tokens.leeway;
    let generation = shared.keys.generation();
    if let Some(caller) = worker.tokens.get(credential, generation)
        && !expired(&caller.claims, leeway, now)
    {
        return Ok(caller);
    }
    let token = bearer_of(credential).map_err(|_| {
        let refused = TokenError::Malformed("not a bearer credential");
        Refused::new(refused.reason(), refused.client_text())
    })?;
    let verify = |grace| shared.verifier.verify(token, shared.keys.ring(), now, grace);
    let verified = match verify(method.grace()) {
        Err(TokenError::UnknownKid) => {
            let looked = Box::pin(worker.look_for_keys()).await;
            // Without any key nothing can be said of a token, good or bad.
            if looked.is_err() || shared.keys.ring().is_empty() {
                return Err(Refused::new(
                    Reason::ControlPlaneUnavailable,
                    "The token cannot be checked at the moment. Try again in a little while.",
                ));
            }
            verify(method.grace())
        }
        other => other,
    };
    let (verified, late) = match verified {
        Err(error) if method == Method::Config && error.reason() == Reason::TokenExpired => {
            let late = Refused::new(error.reason(), error.client_text());
            (verify(Grace::Reattach), Some(late))
        }
        other => (other, None),
    };
    let Verified { claims, by_grace, .. } =
        verified.map_err(|error| Refused::new(error.reason(), error.client_text()))?;
    let caller = Rc::new(Caller::of(token, claims, late));
    if !by_grace {
        worker.tokens.put(credential, &caller, leeway, now);
    }
    Ok(caller)
}

fn missing() -> Refused {
    Refused::new(
        Reason::TokenMissing,
        "No token came with the call. Call spark.stop(), then connect with the string that `berth token <session>` prints.",
    )
}
