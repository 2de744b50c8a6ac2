//! Access to internals for benchmarks. Not a public interface.

use crate::routes::is_expired;
use crate::worker::tokens::{Caller, VerifiedTokens, hash_of};
use http::HeaderValue;
use service_kit::grpc::bearer_of;
use session_core::Timestamp;
use session_core::time::ManualClock;
use session_token::Claims;
use std::time::Duration;

/// A worker's cache of verified tokens.
#[derive(Default)]
pub struct TokenCache(VerifiedTokens);

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCache").finish_non_exhaustive()
    }
}

impl TokenCache {
    /// Caches a verified and admitted token.
    pub fn put(&self, token: &str, claims: Claims, now: Timestamp) {
        let caller = Caller::cacheable(token, claims, 0).into();
        let _ = self
            .0
            .admitted(&caller, Duration::from_secs(30), &ManualClock::at(now));
    }

    /// Whether the token is cached, so that its signature need not be verified: the first step of
    /// each call.
    pub fn contains(&self, authorization: &HeaderValue, now: Timestamp) -> bool {
        bearer_of(authorization)
            .ok()
            .and_then(|token| self.0.get(&hash_of(token), 0))
            .is_some_and(|caller| !is_expired(&caller.claims, Duration::from_secs(30), now))
    }
}
