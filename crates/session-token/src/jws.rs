//! Strict parser of the three parts of a token.
//!
//! JWT libraries skip unknown header members, take the last of duplicate keys
//! and accept several encodings of the same text. All three have been used in
//! attacks, so this parser accepts exactly one spelling of a token.

use crate::error::TokenError;
use crate::{MAX_TOKEN_BYTES, claims::Claims};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

const SIGNATURE_BYTES: usize = 64;

/// The only three allowed header members. `crit`, `jwk`, `jku`, `x5u`, `x5c`,
/// `x5t`, `b64`, `zip`, `cty` and all others are unknown fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) alg: String,
    pub(crate) typ: String,
    pub(crate) kid: String,
}

pub(crate) struct Parts<'t> {
    pub(crate) header: Header,
    pub(crate) claims: Claims,
    /// The signed text: the first two parts with their dot.
    pub(crate) message: &'t [u8],
    pub(crate) signature: Vec<u8>,
}

/// The parts of a token, not decoded.
pub(crate) struct RawParts<'t> {
    pub(crate) header: &'t str,
    pub(crate) payload: &'t str,
    /// The first two parts with their dot.
    pub(crate) message: &'t [u8],
    pub(crate) signature: &'t str,
}

impl<'t> RawParts<'t> {
    /// Splits a text that has exactly three parts.
    pub(crate) fn split(token: &'t str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        (!payload.contains('.')).then_some(Self {
            header,
            payload,
            message: message.as_bytes(),
            signature,
        })
    }
}

/// Base64url without padding, whitespace or non-zero trailing bits.
pub(crate) fn base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

pub(crate) fn parse(token: &str) -> Result<Parts<'_>, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed("too long"));
    }
    let RawParts {
        header,
        payload,
        message,
        signature,
    } = RawParts::split(token).ok_or(TokenError::Malformed("not three parts"))?;
    let header = object(&decode(header)?, "the header is not exactly alg, typ and kid")?;
    let claims = object(
        &decode(payload)?,
        "the claims are not exactly the ten of a session token",
    )?;
    let signature = decode(signature)?;
    if signature.len() != SIGNATURE_BYTES {
        return Err(TokenError::Malformed("the signature has the wrong length"));
    }
    Ok(Parts {
        header,
        claims,
        message,
        signature,
    })
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    base64url(part).ok_or(TokenError::Malformed("a part is not base64url"))
}

/// A JSON object as a struct that rejects unknown and duplicate members. The
/// first byte is checked because serde would also fill a struct from an array.
/// Every member is a string or an integer, so nesting is impossible.
fn object<T: DeserializeOwned>(json: &[u8], why: &'static str) -> Result<T, TokenError> {
    if json.first() != Some(&b'{') {
        return Err(TokenError::Malformed(why));
    }
    serde_json::from_slice(json).map_err(|_| TokenError::Malformed(why))
}
