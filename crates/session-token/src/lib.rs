//! Session tokens: what they say, who signs them, and the one verifier that
//! every part of Berth uses.
//!
//! A token is a JWT of type `berth-session+jwt`, signed ES256, whose `kid` is
//! the key's RFC 7638 thumbprint. Nothing here touches the network, the
//! clock or a file: keys, the time and key sets come in as values.
//!
//! [`Signer`] makes tokens, [`Jwks`] publishes public keys, [`Keyring`] holds
//! the ones a verifier trusts now, and [`Verifier`] decides. [`key_rotation`] says
//! which key signs. Tokens that others signed are [`ForeignVerifier`]'s.

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
    ForeignAlgorithm, ForeignClaims, ForeignError, ForeignKeys, ForeignRules, ForeignVerifier,
    MAX_FOREIGN_BYTES, foreign_issuer,
};
pub use jwks::{Jwk, Jwks, JwksError};
pub use keyring::{Keyring, UpdateError};
pub use signer::{KeyError, Signer, generate_key_pem};
pub use verifier::{Grace, Verified, Verifier, VerifierConfig};

/// The exact `typ` of every session token.
pub const TOKEN_TYPE: &str = "berth-session+jwt";

/// The largest text that is looked at; real tokens stay under 600 bytes.
pub const MAX_TOKEN_BYTES: usize = 4096;
