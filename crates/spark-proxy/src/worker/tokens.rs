//! Session tokens verified by one worker, cached by their SHA-256.
//!
//! A token is cached once its session admitted it, until it expires or the key set changes. Epoch,
//! denylist and session state are checked on every call, elsewhere.

use crate::routes::is_expired;
use aws_lc_rs::digest::{SHA256, digest};
use foldhash::fast::RandomState;
use http::HeaderValue;
use session_core::Clock;
use session_proto::error::Refused;
use session_token::Claims;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum number of cached tokens per worker.
const MAX_TOKENS: usize = 4096;
/// Maximum total size of cached tokens. One token of Berth has half a kilobyte.
const MAX_TOKENS_BYTES: usize = 8 * 1024 * 1024;
/// Overhead of a cached token beyond its text and claims.
const TOKEN_OVERHEAD: usize = 512;

/// SHA-256 of a token, independent of the spelling of its header.
type TokenHash = [u8; 32];

/// A caller with a verified token.
pub(crate) struct Caller {
    pub(crate) token: Arc<str>,
    pub(crate) claims: Claims,
    /// The token is within its grace; this is the error unless the call only continues an existing
    /// operation (ADR 0011).
    pub(crate) expired_in_grace: Option<Refused>,
    /// Key in the cache, and the generation of the key set that verified the token; `None` if it
    /// must be verified each time.
    cache_key: Option<(TokenHash, u64)>,
    /// Has been cached; it may have been dropped from the cache since.
    was_cached: Cell<bool>,
    /// Time of the last recorded use.
    reported: Cell<Option<Instant>>,
}

/// Interval at which the use of a token is recorded.
const USE_REPORT_INTERVAL: Duration = Duration::from_secs(10);

impl Caller {
    pub(crate) fn new(token: &str, claims: Claims, expired_in_grace: Option<Refused>) -> Self {
        Self {
            token: token.into(),
            claims,
            expired_in_grace,
            cache_key: None,
            was_cached: Cell::default(),
            reported: Cell::default(),
        }
    }

    /// Creates a caller whose token was verified with this key set and may be cached.
    pub(crate) fn cacheable(token: &str, claims: Claims, generation: u64) -> Self {
        Self {
            cache_key: Some((hash_of(token), generation)),
            ..Self::new(token, claims, None)
        }
    }

    /// Size in the cache. The claims are a part of the token.
    fn weight(&self) -> usize {
        2 * self.token.len() + TOKEN_OVERHEAD
    }

    /// Whether this caller was verified with the key set of this generation and has this token. The
    /// time does not depend on how much of the token agrees.
    pub(crate) fn is_verified_as(&self, token: &[u8], generation: u64) -> bool {
        let is_current = self.cache_key.is_some_and(|(_, of)| of == generation);
        is_current && equal_in_constant_time(self.token.as_bytes(), token)
    }

    /// Whether the use of the token is due to be recorded; true once per interval.
    pub(crate) fn take_report_due(&self, now: Instant) -> bool {
        let is_due = self
            .reported
            .get()
            .is_none_or(|at| now.duration_since(at) >= USE_REPORT_INTERVAL);
        if is_due {
            self.reported.set(Some(now));
        }
        is_due
    }
}

/// How a credential begins, in any case of its letters.
const SCHEME: &[u8] = b"bearer ";

/// The caller that a session admitted last on a connection; most connections have one only.
#[derive(Default)]
pub(crate) struct LastAdmitted(RefCell<Option<Rc<Caller>>>);

impl LastAdmitted {
    /// The caller, if it was verified with the key set of `generation` and this header carries its
    /// token. The header needs no other check then: its bytes are those of an admitted token.
    pub(crate) fn with_header(&self, credential: &HeaderValue, generation: u64) -> Option<Rc<Caller>> {
        let (scheme, token) = credential.as_bytes().split_at_checked(SCHEME.len())?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return None;
        }
        let last = self.0.borrow();
        last.as_ref()
            .filter(|caller| caller.is_verified_as(token, generation))
            .cloned()
    }

    pub(crate) fn set(&self, caller: &Rc<Caller>) {
        let mut last = self.0.borrow_mut();
        if !last.as_ref().is_some_and(|known| Rc::ptr_eq(known, caller)) {
            *last = Some(Rc::clone(caller));
        }
    }

    /// Whether a call carried a token that its session admits.
    pub(crate) fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// The verified tokens of one worker.
#[derive(Default)]
pub(crate) struct VerifiedTokens {
    callers: RefCell<HashMap<TokenHash, Rc<Caller>, RandomState>>,
    bytes: Cell<usize>,
    generation: Cell<u64>,
}

impl VerifiedTokens {
    /// Returns the caller with this token, if it was admitted under the same key set.
    pub(crate) fn get(&self, hash: &TokenHash, generation: u64) -> Option<Rc<Caller>> {
        if self.generation.replace(generation) != generation {
            self.clear();
        }
        self.callers.borrow().get(hash).cloned()
    }

    /// Caches a caller that its session admitted. Returns the caller that is cached with its token,
    /// which may be one that was verified at the same time, or the given one.
    pub(crate) fn admitted(&self, caller: &Rc<Caller>, leeway: Duration, clock: &dyn Clock) -> Rc<Caller> {
        let Some((hash, generation)) = caller.cache_key else {
            return Rc::clone(caller);
        };
        if generation != self.generation.get() || caller.was_cached.replace(true) {
            return Rc::clone(caller);
        }
        if let Some(cached) = self.callers.borrow().get(&hash) {
            return Rc::clone(cached);
        }
        if self.is_full(caller) {
            let now = clock.now();
            let mut callers = self.callers.borrow_mut();
            callers.retain(|_, cached| !is_expired(&cached.claims, leeway, now));
            self.bytes
                .set(callers.values().map(|cached| cached.weight()).sum());
        }
        if self.is_full(caller) {
            self.clear();
        }
        self.bytes.set(self.bytes.get() + caller.weight());
        self.callers.borrow_mut().insert(hash, Rc::clone(caller));
        Rc::clone(caller)
    }

    fn is_full(&self, next: &Caller) -> bool {
        self.callers.borrow().len() >= MAX_TOKENS || self.bytes.get() + next.weight() > MAX_TOKENS_BYTES
    }

    fn clear(&self) {
        self.callers.borrow_mut().clear();
        self.bytes.set(0);
    }
}

/// Compares all bytes, whether or not the first ones differ.
fn equal_in_constant_time(one: &[u8], other: &[u8]) -> bool {
    let differing = one
        .iter()
        .zip(other)
        .fold(0, |differing, (one, other)| differing | (one ^ other));
    one.len() == other.len() && std::hint::black_box(differing) == 0
}

pub(crate) fn hash_of(token: &str) -> TokenHash {
    let mut hash = TokenHash::default();
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::time::ManualClock;
    use session_core::{SessionId, Timestamp, TokenId};

    const LEEWAY: Duration = Duration::from_secs(5);
    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn clock() -> ManualClock {
        ManualClock::at(NOW)
    }

    fn caller(number: u64, bytes: usize) -> Rc<Caller> {
        let token = format!("{number:0>bytes$}");
        let claims = Claims {
            iss: "berth".into(),
            aud: "berth".into(),
            sub: "sa|tester".parse().unwrap(),
            org: "acme".parse().unwrap(),
            sid: SessionId::generate(NOW, number),
            epoch: 1,
            iat: 1000,
            nbf: 1000,
            exp: 2000,
            jti: TokenId::generate(NOW, number),
        };
        Rc::new(Caller::cacheable(&token, claims, 0))
    }

    #[test]
    fn cached_tokens_are_bounded_in_number_and_bytes() {
        for bytes in [600, 4096] {
            let tokens = VerifiedTokens::default();
            for number in 0..3 * MAX_TOKENS as u64 {
                let caller = caller(number, bytes);
                tokens.admitted(&caller, LEEWAY, &clock());
                tokens.admitted(&caller, LEEWAY, &clock());
                assert!(tokens.get(&hash_of(&caller.token), 0).is_some());
                assert!(tokens.callers.borrow().len() <= MAX_TOKENS);
                assert!(tokens.bytes.get() <= MAX_TOKENS_BYTES);
            }
            let callers = tokens.callers.borrow();
            let held: usize = callers.values().map(|cached| cached.weight()).sum();
            assert_eq!(held, tokens.bytes.get());
        }
    }

    #[test]
    fn a_verified_caller_has_one_token_and_one_key_set() {
        let caller = caller(1, 600);
        assert!(caller.is_verified_as(caller.token.as_bytes(), 0));
        assert!(
            !caller.is_verified_as(caller.token.as_bytes(), 1),
            "another key set"
        );
        assert!(
            !caller.is_verified_as(&caller.token.as_bytes()[..599], 0),
            "a part of the token"
        );
        assert!(!caller.is_verified_as(format!("{}0", caller.token).as_bytes(), 0));
        for at in 0..caller.token.len() {
            let mut other = caller.token.as_bytes().to_vec();
            other[at] ^= 1;
            assert!(!caller.is_verified_as(&other, 0), "byte {at} differs");
        }
    }

    #[test]
    fn the_last_caller_of_a_connection_is_found_by_a_header_with_its_token() {
        let caller = Rc::new(caller(1, 600));
        let last = LastAdmitted::default();
        let find = |header: String| last.with_header(&HeaderValue::try_from(header).unwrap(), 0);
        let token = &caller.token;
        assert!(find(format!("Bearer {token}")).is_none(), "nobody was admitted");
        last.set(&caller);
        for scheme in ["Bearer", "bearer", "BEARER"] {
            assert!(find(format!("{scheme} {token}")).is_some(), "{scheme}");
        }
        for header in [
            format!("Basic {token}"),
            // As long as the right scheme.
            format!("Digest {token}"),
            format!("Bearer  {token}"),
            format!("Bearer {token},"),
            "Bearer".to_owned(),
        ] {
            assert!(find(header.clone()).is_none(), "{header}");
        }
    }

    #[test]
    fn a_token_of_an_older_key_set_is_not_cached() {
        let tokens = VerifiedTokens::default();
        let caller = caller(1, 600);
        tokens.admitted(&caller, LEEWAY, &clock());
        assert!(tokens.get(&hash_of(&caller.token), 1).is_none());
        tokens.admitted(&caller, LEEWAY, &clock());
        assert!(tokens.get(&hash_of(&caller.token), 1).is_none());
    }
}
