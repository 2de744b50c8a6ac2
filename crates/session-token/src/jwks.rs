//! Public keys as a JSON Web Key Set.
//!
//! Only ES256 signing keys are supported. Other keys in a set are skipped, so
//! that an issuer can publish new key types before verifiers support them.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

const MAX_SET_BYTES: usize = 64 * 1024;
const MAX_KEYS: usize = 64;
const COORDINATE: usize = 32;

/// A text that is not a valid key set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Exceeds the size limits.
    #[error("the key set is larger than {MAX_SET_BYTES} bytes or {MAX_KEYS} keys")]
    TooLarge,
    /// Not `{"keys": [...]}`.
    #[error("the key set is not a JSON object with an array \"keys\"")]
    NotAKeySet,
}

/// One ES256 public key. Its `kid` is always its own thumbprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Jwk {
    kty: &'static str,
    crv: &'static str,
    alg: &'static str,
    #[serde(rename = "use")]
    use_: &'static str,
    kid: String,
    x: String,
    y: String,
}

/// A member of a foreign key set, before validation.
#[derive(Deserialize)]
struct Candidate {
    kty: String,
    crv: String,
    x: String,
    y: String,
    kid: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    use_: Option<String>,
}

impl Jwk {
    /// Parses an uncompressed point (`04 || x || y`), the format of crypto
    /// libraries.
    pub(crate) fn from_point(point: &[u8]) -> Option<Self> {
        let (&4, coordinates) = point.split_first()? else {
            return None;
        };
        if coordinates.len() != 2 * COORDINATE {
            return None;
        }
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()?;
        let (x, y) = coordinates.split_at(COORDINATE);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let kid = thumbprint(&x, &y);
        Some(Self {
            kty: "EC",
            crv: "P-256",
            alg: "ES256",
            use_: "sig",
            kid,
            x,
            y,
        })
    }

    fn from_json(value: serde_json::Value) -> Option<Self> {
        let key: Candidate = serde_json::from_value(value).ok()?;
        let ours = key.kty == "EC"
            && key.crv == "P-256"
            && key.alg.is_none_or(|alg| alg == "ES256")
            && key.use_.is_none_or(|use_| use_ == "sig");
        if !ours {
            return None;
        }
        let mut point = vec![4];
        point.extend(URL_SAFE_NO_PAD.decode(&key.x).ok()?);
        point.extend(URL_SAFE_NO_PAD.decode(&key.y).ok()?);
        Self::from_point(&point).filter(|jwk| jwk.kid == key.kid)
    }

    /// The key id: the RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) fn coordinates(&self) -> (&str, &str) {
        (&self.x, &self.y)
    }
}

/// RFC 7638: SHA-256 over the required members in lexical order, no spaces.
fn thumbprint(x: &str, y: &str) -> String {
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()))
}

/// A set of public keys, in the order of publication.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Jwks {
    keys: Vec<Jwk>,
}

impl Jwks {
    /// A set of these keys without duplicates.
    pub fn new(keys: impl IntoIterator<Item = Jwk>) -> Self {
        let mut set = Self::default();
        for key in keys {
            if !set.keys.iter().any(|known| known.kid == key.kid) {
                set.keys.push(key);
            }
        }
        set
    }

    /// Parses a set. A key that is not an ES256 signing key, or whose `kid` is
    /// not its own thumbprint, is skipped.
    pub fn from_json(text: &str) -> Result<Self, JwksError> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<serde_json::Value>,
        }
        if text.len() > MAX_SET_BYTES {
            return Err(JwksError::TooLarge);
        }
        let raw: Raw = serde_json::from_str(text).map_err(|_| JwksError::NotAKeySet)?;
        if raw.keys.len() > MAX_KEYS {
            return Err(JwksError::TooLarge);
        }
        Ok(Self::new(raw.keys.into_iter().filter_map(Jwk::from_json)))
    }

    /// The document at `/.well-known/jwks.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| r#"{"keys":[]}"#.to_owned())
    }

    /// A strong HTTP entity tag of [`Self::to_json`], quotes included.
    pub fn etag(&self) -> String {
        let hash = digest(&SHA256, self.to_json().as_bytes());
        format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..16]))
    }

    /// The keys.
    pub fn keys(&self) -> &[Jwk] {
        &self.keys
    }

    /// Whether the set has no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl<'de> Deserialize<'de> for Jwks {
    /// The same rules as [`Jwks::from_json`], without its size limits.
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<serde_json::Value>,
        }
        let raw = Raw::deserialize(de)?;
        Ok(Self::new(raw.keys.into_iter().filter_map(Jwk::from_json)))
    }
}
