//! Public keys of an external issuer, by `kid`.
//!
//! The type of a key limits its algorithms: an RSA key never verifies an ES256
//! token, and a public key is never used as a secret.

use crate::jwks::JwksError;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm, ParsedPublicKey,
};
use jsonwebtoken::{Algorithm, DecodingKey, crypto::aws_lc};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

const MAX_SET_BYTES: usize = 256 * 1024;
const MAX_KEYS: usize = 128;
/// Maximum number of keys per `kid` that are tried, which bounds the cost of an
/// invalid token.
const MAX_CANDIDATES: usize = 4;
/// Size of RSA moduli in bytes. Shorter keys are weak, longer ones are slow.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

macro_rules! algorithms {
    ($($(#[$doc:meta])* $variant:ident => $text:literal),+ $(,)?) => {
        /// Signature algorithms of external tokens. `none` and HMAC are not
        /// included.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ExternalAlgorithm { $($(#[$doc])* $variant),+ }

        impl ExternalAlgorithm {
            /// Every algorithm.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The JOSE name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

algorithms! {
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256 => "RS256",
    /// RSA PKCS#1 v1.5 with SHA-384.
    Rs384 => "RS384",
    /// RSA PKCS#1 v1.5 with SHA-512.
    Rs512 => "RS512",
    /// RSA PSS with SHA-256.
    Ps256 => "PS256",
    /// RSA PSS with SHA-384.
    Ps384 => "PS384",
    /// RSA PSS with SHA-512.
    Ps512 => "PS512",
    /// ECDSA on P-256.
    Es256 => "ES256",
    /// ECDSA on P-384.
    Es384 => "ES384",
    /// Ed25519.
    EdDsa => "EdDSA",
}

impl FromStr for ExternalAlgorithm {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .iter()
            .copied()
            .find(|one| one.as_str() == text)
            .ok_or(())
    }
}

impl ExternalAlgorithm {
    const fn family(self) -> Family {
        match self {
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => Family::Rsa,
            Self::Es256 => Family::P256,
            Self::Es384 => Family::P384,
            Self::EdDsa => Family::Ed25519,
        }
    }

    const fn library(self) -> Algorithm {
        match self {
            Self::Rs256 => Algorithm::RS256,
            Self::Rs384 => Algorithm::RS384,
            Self::Rs512 => Algorithm::RS512,
            Self::Ps256 => Algorithm::PS256,
            Self::Ps384 => Algorithm::PS384,
            Self::Ps512 => Algorithm::PS512,
            Self::Es256 => Algorithm::ES256,
            Self::Es384 => Algorithm::ES384,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

struct Key {
    family: Family,
    /// The only allowed algorithm, if the key has an `alg`.
    only: Option<ExternalAlgorithm>,
    decoding: DecodingKey,
}

/// Public keys by `kid`. RFC 7517 allows several keys with one `kid`: providers
/// publish one RSA key per algorithm that way.
#[derive(Default)]
pub struct ExternalKeys {
    keys: HashMap<String, Vec<Key>>,
}

#[derive(Deserialize)]
struct Candidate {
    kty: String,
    kid: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    use_: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl ExternalKeys {
    /// Parses a key set. Keys without a `kid`, encryption keys, secrets and
    /// unknown key types are skipped without an error; unknown members are
    /// ignored.
    ///
    /// # Errors
    /// When the text is not a key set, or exceeds the size limits.
    pub fn from_json(text: &str) -> Result<Self, JwksError> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<Value>,
        }
        if text.len() > MAX_SET_BYTES {
            return Err(JwksError::TooLarge);
        }
        let raw: Raw = serde_json::from_str(text).map_err(|_| JwksError::NotAKeySet)?;
        if raw.keys.len() > MAX_KEYS {
            return Err(JwksError::TooLarge);
        }
        let mut keys: HashMap<String, Vec<Key>> = HashMap::new();
        for (kid, key) in raw.keys.into_iter().filter_map(Key::from_json) {
            keys.entry(kid).or_default().push(key);
        }
        Ok(Self { keys })
    }

    /// Whether the set has no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key with this `kid` signed `message`; `None` without such a
    /// key. With several keys, those that fit the algorithm are tried.
    pub(super) fn verify(
        &self,
        kid: &str,
        algorithm: ExternalAlgorithm,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> Option<Result<(), &'static str>> {
        let keys = self.keys.get(kid)?;
        let mut fitting = keys.iter().filter(|key| key.fits(algorithm)).peekable();
        if fitting.peek().is_none() {
            return Some(Err("its alg does not match its key"));
        }
        let good = fitting
            .take(MAX_CANDIDATES)
            .any(|key| key.verify(algorithm, message, signature));
        Some(good.then_some(()).ok_or("the signature does not match"))
    }
}

impl Key {
    fn fits(&self, algorithm: ExternalAlgorithm) -> bool {
        self.family == algorithm.family() && self.only.is_none_or(|only| only == algorithm)
    }

    fn verify(&self, algorithm: ExternalAlgorithm, message: &[u8], signature: &Vec<u8>) -> bool {
        (aws_lc::DEFAULT_PROVIDER.verifier_factory)(&algorithm.library(), &self.decoding)
            .is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }

    fn from_json(value: Value) -> Option<(String, Self)> {
        let key: Candidate = serde_json::from_value(value).ok()?;
        let to_verify = key.use_.as_deref().is_none_or(|use_| use_ == "sig")
            && key
                .key_ops
                .as_ref()
                .is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !to_verify {
            return None;
        }
        let only = match key.alg.as_deref() {
            None => None,
            Some(alg) => Some(alg.parse::<ExternalAlgorithm>().ok()?),
        };
        let (family, decoding) = match (key.kty.as_str(), key.crv.as_deref()) {
            ("RSA", _) => (Family::Rsa, rsa(&key.n?, &key.e?)?),
            ("EC", Some("P-256")) => (Family::P256, ec(&ECDSA_P256_SHA256_FIXED, 32, &key.x?, &key.y?)?),
            ("EC", Some("P-384")) => (Family::P384, ec(&ECDSA_P384_SHA384_FIXED, 48, &key.x?, &key.y?)?),
            ("OKP", Some("Ed25519")) => (Family::Ed25519, ed25519(&key.x?)?),
            // Other key types are skipped.
            (_, _) => return None,
        };
        if only.is_some_and(|only| only.family() != family) {
            return None;
        }
        Some((
            key.kid,
            Self {
                family,
                only,
                decoding,
            },
        ))
    }
}

fn rsa(n: &str, e: &str) -> Option<DecodingKey> {
    let modulus = crate::jws::base64url(n)?;
    let exponent = crate::jws::base64url(e)?;
    let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
    let odd = exponent.last().is_some_and(|byte| byte & 1 == 1);
    let sane = RSA_BYTES.contains(&significant) && exponent.len() <= 4 && odd && exponent != [1];
    sane.then(|| DecodingKey::from_rsa_components(n, e).ok())
        .flatten()
}

fn ec(algorithm: &'static EcdsaVerificationAlgorithm, size: usize, x: &str, y: &str) -> Option<DecodingKey> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let bytes = crate::jws::base64url(coordinate)?;
        if bytes.len() != size {
            return None;
        }
        point.extend(bytes);
    }
    ParsedPublicKey::new(algorithm, &point).ok()?;
    DecodingKey::from_ec_components(x, y).ok()
}

fn ed25519(x: &str) -> Option<DecodingKey> {
    if crate::jws::base64url(x)?.len() != 32 {
        return None;
    }
    DecodingKey::from_ed_components(x).ok()
}

impl fmt::Debug for ExternalKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalKeys")
            .field("kids", &self.keys.keys().collect::<Vec<_>>())
            .finish()
    }
}
