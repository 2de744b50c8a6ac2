//! A signed-in browser: the credential in its cookie.

use super::keys::{CookieKeys, Purpose};
use anyhow::Result;
use flate2::Compression;
use flate2::read::{DeflateDecoder, DeflateEncoder};
use serde::{Deserialize, Serialize};
use session_core::Timestamp;
use std::fmt;
use std::io::Read as _;
use std::time::Duration;

/// Maximum size of an opened cookie in bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// Remaining validity at which a credential is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(120);
/// Method of a sign-in with a service-account key.
pub(crate) const KEY_METHOD: &str = "key";

/// What the cookie of a signed-in browser contains. Times are seconds since the
/// epoch.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignedIn {
    /// What the gRPC APIs receive as bearer credential.
    #[serde(rename = "c")]
    pub(crate) credential: String,
    /// [`KEY_METHOD`], or the id of an identity provider.
    #[serde(rename = "m")]
    pub(crate) method: String,
    /// With which the identity provider issues the next credential.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_token: Option<String>,
    /// When the credential expires; none if only the APIs know.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    /// From when on the credential should be renewed.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    renew_at: Option<u64>,
    /// Subject of the first ID token; those that follow must have the same.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<String>,
    /// When the person must sign in again.
    #[serde(rename = "e")]
    ends_at: u64,
}

impl SignedIn {
    /// A sign-in at `now` that lasts at most `max_age`.
    pub(crate) fn new(credential: String, method: &str, now: Timestamp, max_age: Duration) -> Self {
        Self {
            credential,
            method: method.to_owned(),
            refresh_token: None,
            expires_at: None,
            renew_at: None,
            subject: None,
            ends_at: now.after(max_age).as_secs(),
        }
    }

    /// With the end of the validity of the credential, which was issued at `now`. A short-lived one
    /// is renewed after half of its life, or every request would renew it.
    pub(crate) fn expiring(mut self, at: Option<Timestamp>, now: Timestamp) -> Self {
        self.expires_at = at.map(Timestamp::as_secs);
        self.renew_at = at.map(|at| at.before(RENEW_BEFORE.min(at.since(now) / 2)).as_secs());
        self
    }

    /// With the subject of its ID token.
    pub(crate) fn of_subject(mut self, subject: String) -> Self {
        self.subject = Some(subject);
        self
    }

    /// With a refresh token.
    pub(crate) fn refreshable(mut self, token: Option<String>) -> Self {
        self.refresh_token = token;
        self
    }

    /// The same sign-in with the next credential. A provider that issues no new
    /// refresh token lets the last one be used again.
    pub(crate) fn renewed(
        &self,
        credential: String,
        refresh_token: Option<String>,
        at: Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        let next = Self {
            credential,
            refresh_token: refresh_token.or_else(|| self.refresh_token.clone()),
            ..self.clone()
        };
        next.expiring(at, now)
    }

    /// When the browser is signed out unless the credential is renewed.
    pub(crate) fn expires_at(&self) -> Timestamp {
        let credential = self.expires_at.unwrap_or(self.ends_at);
        match self.refresh_token {
            Some(_) => Timestamp::from_secs(self.ends_at),
            None => Timestamp::from_secs(credential.min(self.ends_at)),
        }
    }

    /// Whether the credential can be used at `now`.
    pub(crate) fn is_usable(&self, now: Timestamp) -> bool {
        now.as_secs() < self.ends_at && self.expires_at.is_none_or(|at| now.as_secs() < at)
    }

    /// Whether the credential should be renewed at `now`, and can be.
    pub(crate) fn needs_renewal(&self, now: Timestamp) -> bool {
        self.refresh_token.is_some()
            && now.as_secs() < self.ends_at
            && self.renewal_is_due_at().is_some_and(|at| at <= now.as_secs())
    }

    /// Cookies of an earlier release have no `renew_at`.
    fn renewal_is_due_at(&self) -> Option<u64> {
        let before_end = self
            .expires_at
            .map(|at| at.saturating_sub(RENEW_BEFORE.as_secs()));
        self.renew_at.or(before_end)
    }

    /// The sealed value of the cookie.
    ///
    /// # Errors
    /// When it cannot be sealed.
    pub(crate) fn seal(&self, keys: &CookieKeys) -> Result<String> {
        let json = serde_json::to_vec(self)?;
        // The base64 of a token becomes a quarter shorter.
        let mut packed = Vec::new();
        DeflateEncoder::new(json.as_slice(), Compression::fast()).read_to_end(&mut packed)?;
        keys.seal(Purpose::Session, &packed)
    }

    /// Opens the value of a cookie; none if it is not from this console.
    pub(crate) fn open(sealed: &str, keys: &CookieKeys) -> Option<Self> {
        let packed = keys.unseal(Purpose::Session, sealed)?;
        let mut json = Vec::new();
        let unpacked = DeflateDecoder::new(packed.as_slice()).take(MAX_BYTES);
        { unpacked }.read_to_end(&mut json).ok()?;
        serde_json::from_slice(&json).ok()
    }
}

impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedIn")
            .field("method", &self.method)
            .field("expires_at", &self.expires_at)
            .field("ends_at", &self.ends_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_796_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Timestamp {
        START.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_sealed_sign_in_comes_back_and_shows_no_secret() {
        let keys = CookieKeys::open(None).unwrap();
        let signed_in = SignedIn::new("sec-ret".repeat(5000), "corp", START, HOUR)
            .refreshable(Some("ref-resh".to_owned()))
            .expiring(Some(at(600)), START);
        let sealed = signed_in.seal(&keys).unwrap();
        assert!(sealed.len() < 10_000, "{}", sealed.len());
        assert_eq!(SignedIn::open(&sealed, &keys).unwrap(), signed_in);
        assert_eq!(SignedIn::open(&sealed[1..], &keys), None);
        let shown = format!("{signed_in:?}");
        assert!(
            !shown.contains("sec-ret") && !shown.contains("ref-resh"),
            "{shown}"
        );
    }

    #[test]
    fn a_credential_is_renewed_before_it_expires_and_never_beyond_the_sign_in() {
        let key = SignedIn::new("k".to_owned(), KEY_METHOD, START, HOUR);
        assert!(key.is_usable(at(3599)) && !key.is_usable(at(3600)));
        assert!(!key.needs_renewal(at(3599)));
        assert_eq!(key.expires_at(), at(3600));

        let plain = key.clone().expiring(Some(at(600)), START);
        assert!(plain.is_usable(at(599)) && !plain.is_usable(at(600)));
        assert!(!plain.needs_renewal(at(599)));
        assert_eq!(plain.expires_at(), at(600));

        let renewable = plain.refreshable(Some("r".to_owned()));
        assert!(!renewable.needs_renewal(at(479)) && renewable.needs_renewal(at(480)));
        assert!(renewable.needs_renewal(at(3599)) && !renewable.needs_renewal(at(3600)));
        assert_eq!(renewable.expires_at(), at(3600));
        let next = renewable.renewed("n".to_owned(), None, Some(at(1200)), at(600));
        assert_eq!(next.refresh_token.as_deref(), Some("r"));
        assert!(next.is_usable(at(1199)) && !next.is_usable(at(1200)));
        assert_eq!(next.expires_at(), at(3600));

        let of_earlier_release = SignedIn {
            renew_at: None,
            ..next.clone()
        };
        assert!(!of_earlier_release.needs_renewal(at(1079)) && of_earlier_release.needs_renewal(at(1080)));

        let short = next.renewed("s".to_owned(), None, Some(at(1260)), at(1200));
        assert!(!short.needs_renewal(at(1229)) && short.needs_renewal(at(1230)));
    }
}
