//! Signer of session tokens.

use crate::TOKEN_TYPE;
use crate::claims::Claims;
use crate::jwks::Jwk;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use std::fmt;

/// Errors of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No `BEGIN PRIVATE KEY` block.
    #[error(
        "no PKCS#8 \"BEGIN PRIVATE KEY\" block in the PEM text (convert with `openssl pkcs8 -topk8 -nocrypt`)"
    )]
    NotPkcs8Pem,
    /// The key is of another type, or damaged.
    #[error("the private key is not a usable EC P-256 key")]
    NotP256,
    /// The crypto library failed.
    #[error("the crypto library failed")]
    Crypto,
}

/// An ES256 private key that signs session tokens.
pub struct Signer {
    key: EcdsaKeyPair,
    public: Jwk,
    /// The encoded header, the same for every token of this key.
    header: String,
}

impl Signer {
    /// Parses a PKCS#8 PEM text.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::NotPkcs8Pem)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
            .map_err(|_| KeyError::NotP256)?;
        let public = Jwk::from_point(key.public_key().as_ref()).ok_or(KeyError::NotP256)?;
        let header = format!(
            r#"{{"alg":"ES256","typ":"{TOKEN_TYPE}","kid":"{}"}}"#,
            public.kid()
        );
        Ok(Self {
            key,
            header: URL_SAFE_NO_PAD.encode(header),
            public,
        })
    }

    /// The key id.
    pub fn kid(&self) -> &str {
        self.public.kid()
    }

    /// The public key, for publication.
    pub fn public_jwk(&self) -> Jwk {
        self.public.clone()
    }

    /// Signs a token with these `claims`. The caller is responsible for their
    /// content; the verifier checks it again.
    pub fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let payload = serde_json::to_vec(claims).map_err(|_| KeyError::Crypto)?;
        let message = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(payload));
        let signature = self
            .key
            .sign(&SystemRandom::new(), message.as_bytes())
            .map_err(|_| KeyError::Crypto)?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("kid", &self.kid())
            .finish_non_exhaustive()
    }
}

/// Generates a random signing key as PKCS#8 PEM, for setup tools and tests.
pub fn generate_key_pem() -> Result<String, KeyError> {
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .map_err(|_| KeyError::Crypto)?;
    let body = STANDARD.encode(der.as_ref());
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&byte| char::from(byte)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Ok(pem)
}
