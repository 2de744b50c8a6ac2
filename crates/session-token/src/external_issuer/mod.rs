//! Tokens of external issuers: OpenID Connect providers and Kubernetes.
//!
//! The form is checked as strictly as that of session tokens: one encoding, no
//! duplicate member at any depth, no header that carries or locates a key or
//! changes the signed text, and an algorithm that both the key and the
//! configuration allow. Members that a recipient must ignore are ignored (RFC
//! 7515 section 4, RFC 7517 section 5, RFC 7519 section 4). The module uses no
//! network.

mod json;
mod keys;
mod numeric_date;

pub use keys::{ExternalAlgorithm, ExternalKeys};

use crate::{TOKEN_TYPE, jws};
use arc_swap::ArcSwap;
use numeric_date::NumericDate;
use serde_json::{Map, Value};
use session_core::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Maximum size of an external token in bytes. Group lists make tokens long;
/// all headers of a call together may have 64 KiB.
pub const MAX_EXTERNAL_TOKEN_BYTES: usize = 48 * 1024;
/// Maximum nesting of the payload.
const MAX_DEPTH: usize = 8;
/// Keycloak lists each client for which the caller has a role.
const MAX_AUDIENCES: usize = 500;
const MAX_KID_BYTES: usize = 256;
const MAX_SUBJECT_BYTES: usize = 200;

/// Header members that a token must not have: `crit` requires an extension, and
/// none is implemented; the others carry or locate a key, or change the
/// encoding of the payload. Other unknown members are ignored, as RFC 7515
/// requires; providers send `x5t`, `pi.atm`, `cty`, `ver`, `nonce`.
const REJECTED_HEADERS: [&str; 10] = [
    "crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc", "epk", "apu",
];
/// Claims that a header may repeat. They must be equal (RFC 7519 section 5.3).
const REPEATED_CLAIMS: [&str; 3] = ["iss", "sub", "aud"];
/// Accepted `typ` values, case-insensitive. Other types are tokens for another
/// purpose (RFC 8725 section 3.11), such as `logout+jwt` or `dpop+jwt`.
const TYPES: [&str; 4] = ["jwt", "application/jwt", "at+jwt", "application/at+jwt"];
/// Claims that name the client, in order of preference: OpenID Connect, RFC
/// 9068, Entra ID's tokens of version 1, Okta.
const PARTY_CLAIMS: [&str; 4] = ["azp", "client_id", "appid", "cid"];

/// Requirements for the tokens of one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalRules {
    /// Required `iss`.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// Whether `aud` may contain other audiences. Each of those services could
    /// use the token here.
    pub other_audiences: bool,
    /// If not empty, the client of the token must be one of these: `azp`, or
    /// else `client_id`, `appid` or `cid`.
    pub authorized_parties: Vec<String>,
    /// Allowed algorithms, in addition to the limits of each key.
    pub algorithms: Vec<ExternalAlgorithm>,
    /// Maximum difference between clocks.
    pub leeway: Duration,
    /// Maximum of `exp - iat`. Without `iat` it counts from `nbf`, and without
    /// both from the current time.
    pub max_ttl: Duration,
}

/// Reasons for the rejection of an external token. The texts are fixed and
/// contain no byte of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExternalError {
    /// A Berth session token, which this verifier does not accept.
    #[error("it is a Berth session token")]
    SessionToken,
    /// The text does not have the form of a token.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// The token violates the requirements.
    #[error("it is not valid here: {0}")]
    Invalid(&'static str),
    /// Correctly signed, but expired.
    #[error("it expired at {at}")]
    Expired {
        /// Time of the expiry.
        at: Timestamp,
    },
    /// Well-formed, but its key is not in the set; justifies one refetch of the
    /// set.
    #[error("its signing key is not known")]
    UnknownKid,
}

/// A verified external token.
#[derive(Debug, Clone, PartialEq)]
pub struct ExternalClaims {
    /// `sub`: 1 to 200 bytes, all of them [`printable`].
    pub subject: String,
    /// `exp`.
    pub expires_at: Timestamp,
    /// All claims.
    pub all: Map<String, Value>,
}

/// Verifier for the tokens of one issuer, with its published keys.
pub struct ExternalVerifier {
    rules: ExternalRules,
    keys: ArcSwap<ExternalKeys>,
}

struct Parts<'t> {
    algorithm: &'t str,
    kid: &'t str,
    claims: Map<String, Value>,
    message: &'t [u8],
    signature: Vec<u8>,
}

impl ExternalVerifier {
    /// A verifier without keys.
    pub fn new(rules: ExternalRules) -> Self {
        Self {
            rules,
            keys: ArcSwap::default(),
        }
    }

    /// The requirements.
    pub fn rules(&self) -> &ExternalRules {
        &self.rules
    }

    /// Replaces all keys.
    pub fn replace(&self, keys: ExternalKeys) {
        self.keys.store(Arc::new(keys));
    }

    /// Whether it has no key; then it accepts no token.
    pub fn is_empty(&self) -> bool {
        self.keys.load().is_empty()
    }

    /// Checks form, header, claims, signature and expiry, in this order, as
    /// [`crate::Verifier`] does.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<ExternalClaims, ExternalError> {
        let header = header(token)?;
        let parts = parts(token, &header)?;
        let (subject, expires_at) = self.check_claims(&parts.claims, now)?;
        let algorithm = parts
            .algorithm
            .parse()
            .ok()
            .filter(|algorithm| self.rules.algorithms.contains(algorithm))
            .ok_or(ExternalError::Invalid("its alg is not allowed"))?;
        match self
            .keys
            .load()
            .verify(parts.kid, algorithm, parts.message, &parts.signature)
        {
            Some(Ok(())) => {}
            Some(Err(why)) => return Err(ExternalError::Invalid(why)),
            None => return Err(ExternalError::UnknownKid),
        }
        if now >= expires_at.after(self.rules.leeway) {
            return Err(ExternalError::Expired { at: expires_at });
        }
        Ok(ExternalClaims {
            subject,
            expires_at,
            all: parts.claims,
        })
    }

    fn check_claims(
        &self,
        claims: &Map<String, Value>,
        now: Timestamp,
    ) -> Result<(String, Timestamp), ExternalError> {
        if text(claims, "iss")? != Some(self.rules.issuer.as_str()) {
            return Err(ExternalError::Invalid("another iss"));
        }
        self.check_audience(claims)?;
        self.check_party(claims)?;
        let subject = text(claims, "sub")?.ok_or(ExternalError::Invalid("no sub"))?;
        if subject.is_empty() || subject.len() > MAX_SUBJECT_BYTES || !printable::all_printable(subject) {
            return Err(ExternalError::Invalid(
                "its sub is empty, too long or has control or invisible characters",
            ));
        }
        let exp = self.check_times(claims, now)?;
        Ok((subject.to_owned(), exp))
    }

    /// Checks `exp`, `iat` and `nbf`, each rounded to the strict side, and
    /// returns when the token expires.
    fn check_times(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Timestamp, ExternalError> {
        let exp = date(claims, "exp")?.ok_or(ExternalError::Invalid("no exp"))?;
        let (iat, nbf) = (date(claims, "iat")?, date(claims, "nbf")?);
        let ttl = match iat.or(nbf) {
            Some(begin) => exp.since(begin).filter(|ttl| !ttl.is_zero()),
            // The expiry is reported only for a correctly signed token.
            None => Some(
                exp.since(NumericDate::from_millis(now.as_millis()))
                    .unwrap_or_default(),
            ),
        };
        match ttl {
            None => return Err(ExternalError::Invalid("exp is not after iat")),
            Some(ttl) if ttl > self.rules.max_ttl => {
                return Err(ExternalError::Invalid("exp is too far from iat"));
            }
            Some(_) => {}
        }
        let soon = now.after(self.rules.leeway);
        let future = |date: Option<NumericDate>| date.is_some_and(|date| date.rounded_up() > soon);
        if future(iat) {
            return Err(ExternalError::Invalid("iat is in the future"));
        }
        if future(nbf) {
            return Err(ExternalError::Invalid("nbf is in the future"));
        }
        Ok(exp.rounded_down())
    }

    /// One of the configured audiences must be in `aud`. With additional
    /// audiences the token would also be valid at those services, and each of
    /// them could use it here.
    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), ExternalError> {
        let wrong = ExternalError::Invalid("another aud");
        let named: Vec<&str> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) if !many.is_empty() && many.len() <= MAX_AUDIENCES => many
                .iter()
                .map(|one| one.as_str().ok_or(wrong))
                .collect::<Result<_, _>>()?,
            Some(_) | None => return Err(wrong),
        };
        let ours = |name: &&str| self.rules.audiences.iter().any(|audience| audience == name);
        if !named.iter().any(ours) {
            return Err(wrong);
        }
        if !self.rules.other_audiences && !named.iter().all(ours) {
            return Err(ExternalError::Invalid(
                "its aud has other audiences besides Berth",
            ));
        }
        Ok(())
    }

    fn check_party(&self, claims: &Map<String, Value>) -> Result<(), ExternalError> {
        let mut party = None;
        for name in PARTY_CLAIMS {
            party = party.or(text(claims, name)?);
        }
        let allowed = &self.rules.authorized_parties;
        if allowed.is_empty() || party.is_some_and(|party| allowed.iter().any(|one| one == party)) {
            Ok(())
        } else {
            Err(ExternalError::Invalid("its azp is another client"))
        }
    }
}

/// The issuer in an unverified token, which selects the requirements.
pub fn external_issuer_of(token: &str) -> Result<String, ExternalError> {
    let header = header(token)?;
    let parts = parts(token, &header)?;
    text(&parts.claims, "iss")?
        .map(str::to_owned)
        .ok_or(ExternalError::Invalid("no iss"))
}

fn header(token: &str) -> Result<Map<String, Value>, ExternalError> {
    if token.len() > MAX_EXTERNAL_TOKEN_BYTES {
        return Err(ExternalError::Malformed("too long"));
    }
    let (header, _) = token
        .split_once('.')
        .ok_or(ExternalError::Malformed("not three parts"))?;
    let header = object(header)?;
    // A session token is detected first, so that the error explains the mix-up.
    if header.get("typ").is_some_and(|typ| typ == TOKEN_TYPE) {
        return Err(ExternalError::SessionToken);
    }
    if header
        .keys()
        .any(|name| REJECTED_HEADERS.contains(&name.as_str()))
    {
        return Err(ExternalError::Invalid(
            "its header has a rejected member, such as crit, jwk, jku, x5u or x5c",
        ));
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if TYPES.iter().any(|known| typ.eq_ignore_ascii_case(known)) => {}
        Some(_) => return Err(ExternalError::Invalid("another typ")),
    }
    Ok(header)
}

fn parts<'t>(token: &'t str, header: &'t Map<String, Value>) -> Result<Parts<'t>, ExternalError> {
    let jws::RawParts {
        payload,
        message,
        signature,
        ..
    } = jws::RawParts::split(token).ok_or(ExternalError::Malformed("not three parts"))?;
    let algorithm = text(header, "alg")?.ok_or(ExternalError::Invalid("no alg"))?;
    let kid = text(header, "kid")?.ok_or(ExternalError::Invalid("no kid"))?;
    if kid.is_empty() || kid.len() > MAX_KID_BYTES {
        return Err(ExternalError::Invalid("its kid is empty or too long"));
    }
    let claims = object(payload)?;
    let repeated = |name: &&str| {
        header
            .get(*name)
            .is_none_or(|value| claims.get(*name) == Some(value))
    };
    if !REPEATED_CLAIMS.iter().all(repeated) {
        return Err(ExternalError::Invalid(
            "its header repeats a claim with another value",
        ));
    }
    Ok(Parts {
        algorithm,
        kid,
        claims,
        message,
        signature: decoded(signature)?,
    })
}

fn decoded(part: &str) -> Result<Vec<u8>, ExternalError> {
    jws::base64url(part).ok_or(ExternalError::Malformed("a part is not base64url"))
}

fn object(part: &str) -> Result<Map<String, Value>, ExternalError> {
    json::object(&decoded(part)?, MAX_DEPTH).ok_or(ExternalError::Malformed(
        "a part is not a JSON object, has a duplicate member, or is nested too deeply",
    ))
}

/// A string member, if present.
fn text<'m>(members: &'m Map<String, Value>, name: &str) -> Result<Option<&'m str>, ExternalError> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ExternalError::Invalid("a member is not a string")),
    }
}

/// A date member, if present.
fn date(members: &Map<String, Value>, name: &str) -> Result<Option<NumericDate>, ExternalError> {
    match members.get(name) {
        None => Ok(None),
        Some(value) => NumericDate::from_json(value)
            .map(Some)
            .ok_or(ExternalError::Invalid("a time is not a number of seconds")),
    }
}

impl fmt::Debug for ExternalVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalVerifier")
            .field("issuer", &self.rules.issuer)
            .finish_non_exhaustive()
    }
}
