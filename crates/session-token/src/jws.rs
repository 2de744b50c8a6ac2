//! Reading a token's three parts with no tolerance at all.
//!
//! JWT libraries skip unknown header members, take the last of doubled keys
//! and accept several encodings of the same text. Each of that has been an
//! attack on somebody, so here there is exactly one way to write a token.

use crate::error::TokenError;
use crate::{MAX_TOKEN_BYTES, claims::Claims};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

const SIGNATURE_BYTES: usize = 64;

/// The only three header members there are. `crit`, `jwk`, `jku`, `x5u`,
/// `x5c`, `x5t`, `b64`, `zip`, `cty` and the rest are unknown fields.
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
    /// What was signed: the first two parts with their dot.
    pub(crate) message: &'t [u8],
    pub(crate) signature: Vec<u8>,
}

/// A token's parts as they stand there.
pub(crate) struct Three<'t> {
    pub(crate) header: &'t str,
    pub(crate) payload: &'t str,
    /// The first two with their dot.
    pub(crate) message: &'t [u8],
    pub(crate) signature: &'t str,
}

impl<'t> Three<'t> {
    /// Exactly three parts.
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

/// Base64url without padding, whitespace or stray trailing bits.
pub(crate) fn base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

pub(crate) fn parse(token: &str) -> Result<Parts<'_>, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed("too long"));
    }
    let Three {
        header,
        payload,
        message,
        signature,
    } = Three::split(token).ok_or(TokenError::Malformed("not three parts"))?;
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

/// A JSON object, read into a struct that denies unknown and doubled members.
/// The first byte is checked because serde would also fill a struct from an
/// array. Every member is a text or an integer, so nothing can nest.
fn object<T: DeserializeOwned>(json: &[u8], why: &'static str) -> Result<T, TokenError> {
    if json.first() != Some(&b'{') {
        return Err(TokenError::Malformed(why));
    }
    serde_json::from_slice(json).map_err(|_| TokenError::Malformed(why))
}
