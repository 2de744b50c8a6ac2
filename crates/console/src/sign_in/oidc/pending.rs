//! A sign-in that has not finished: what the callback must match. It is in a
//! sealed cookie of its own, so that any replica can finish it.

use crate::sign_in::keys::{CookieKeys, Purpose};
use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use session_core::Timestamp;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::time::Duration;

/// Time in which a sign-in must finish.
pub(crate) const PENDING_AGE: Duration = Duration::from_secs(600);

/// A sign-in that has not finished.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// Id of the provider.
    pub(crate) provider: String,
    /// Returned by the provider in the callback.
    pub(crate) state: String,
    /// Returned by the provider in the ID token.
    pub(crate) nonce: String,
    /// The secret of PKCE.
    pub(crate) verifier: String,
    /// The page after the sign-in; a local path.
    pub(crate) return_path: String,
    ends_at: u64,
}

impl Pending {
    /// A new sign-in at `now`.
    ///
    /// # Errors
    /// When the random generator of the system fails.
    pub(crate) fn new(provider: &str, return_path: String, now: Timestamp) -> Result<Self> {
        Ok(Self {
            provider: provider.to_owned(),
            state: random::<24>()?,
            nonce: random::<24>()?,
            verifier: random::<48>()?,
            return_path,
            ends_at: now.after(PENDING_AGE).as_secs(),
        })
    }

    /// The sealed value of its cookie.
    ///
    /// # Errors
    /// When it cannot be sealed.
    pub(crate) fn seal(&self, keys: &CookieKeys) -> Result<String> {
        keys.seal(Purpose::Login, &serde_json::to_vec(self)?)
    }

    /// Opens the cookie of the sign-in with this state; none if it is not from
    /// this console, of another state, or too old.
    pub(crate) fn open(sealed: &str, state: &str, keys: &CookieKeys, now: Timestamp) -> Option<Self> {
        let json = keys.unseal(Purpose::Login, sealed)?;
        let pending: Self = serde_json::from_slice(&json).ok()?;
        (pending.state == state && now.as_secs() < pending.ends_at).then_some(pending)
    }

    /// `code_challenge` of the method S256.
    pub(crate) fn code_challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.verifier.as_bytes()))
    }
}

fn random<const N: usize>() -> Result<String> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_state_opens_it_and_only_in_time() {
        let keys = CookieKeys::open(None).unwrap();
        let start = Timestamp::from_secs(1_796_000_000);
        let pending = Pending::new("corp", "/sessions".to_owned(), start).unwrap();
        let sealed = pending.seal(&keys).unwrap();
        let in_time = start.after(Duration::from_secs(599));
        assert_eq!(
            Pending::open(&sealed, &pending.state, &keys, in_time).as_ref(),
            Some(&pending)
        );
        let late = start.after(PENDING_AGE);
        assert_eq!(Pending::open(&sealed, &pending.state, &keys, late), None);
        let other = Pending::new("corp", "/".to_owned(), start).unwrap();
        assert_ne!(other.state, pending.state);
        assert_eq!(Pending::open(&sealed, &other.state, &keys, in_time), None);
        assert_eq!(Pending::open(&sealed, "", &keys, in_time), None);
    }

    #[test]
    fn the_challenge_is_that_of_rfc_7636() {
        let mut pending = Pending::new("corp", "/".to_owned(), Timestamp::ZERO).unwrap();
        pending.verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned();
        assert_eq!(
            pending.code_challenge(),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }
}
