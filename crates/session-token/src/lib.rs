//! Session tokens: their claims and keys, the signer, and the one verifier that
//! every part of Berth uses.
//!
//! A token is a JWT of type `berth-session+jwt`, signed ES256, whose `kid` is
//! the key's RFC 7638 thumbprint. The crate uses no network, clock or file:
//! keys, the time and key sets are parameters.
//!
//! [`Signer`] makes tokens, [`Jwks`] publishes public keys, [`Keyring`] holds
//! the keys that a verifier currently trusts, and [`Verifier`] accepts or
//! rejects tokens. [`key_rotation`] selects the signing key.
//! [`ExternalVerifier`] verifies tokens of other issuers.

mod claims;
mod error;
mod external_issuer;
mod jwks;
mod jws;
pub mod key_rotation;
mod keyring;
mod signature_cache;
mod signer;

mod verifier;

pub use claims::Claims;
pub use error::{TokenError, TokenErrorKind};
pub use external_issuer::{
    ExternalAlgorithm, ExternalClaims, ExternalError, ExternalKeys, ExternalRules, ExternalVerifier,
    MAX_EXTERNAL_TOKEN_BYTES, external_issuer_of,
};
pub use jwks::{Jwk, Jwks, JwksError};
pub use keyring::{Keyring, UpdateError};
pub use signer::{KeyError, Signer, generate_key_pem};
pub use verifier::{Grace, Verified, Verifier, VerifierConfig};

/// The exact `typ` of every session token.
pub const TOKEN_TYPE: &str = "berth-session+jwt";

/// Maximum size of a token in bytes; real tokens have less than 600 bytes.
pub const MAX_TOKEN_BYTES: usize = 4096;
