//! Who calls. Everything about a caller follows from its index, so the backend
//! can tell from a message's Spark session id whom it must find in it.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use session_core::{SessionId, Timestamp, TokenId};
use session_token::{Claims, Signer};
use std::time::Duration;

/// `iss` of every token.
pub const ISSUER: &str = "https://tokens.load.example.com";
/// `aud` of every token.
pub const AUDIENCE: &str = "berth-spark-connect";
/// The organization of every session.
pub const ORG: &str = "acme";
/// When all sessions were made; any moment will do.
const BORN: Timestamp = Timestamp::from_millis(1_780_000_000_000);
const TTL: u64 = 6 * 3600;

/// Somebody with a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Caller {
    /// Which of them.
    pub index: u64,
    /// The Berth session.
    pub session: String,
    /// Its token.
    pub token: String,
}

/// The Spark session id that the client of session `index` uses.
pub fn spark_session(index: u64) -> String {
    format!("10ad0000-0000-4000-8000-{index:012x}")
}

/// The index in a Spark session id.
pub fn index_of(spark_session: &[u8]) -> Option<u64> {
    let tail = spark_session.strip_prefix(b"10ad0000-0000-4000-8000-")?;
    (tail.len() == 12)
        .then(|| u64::from_str_radix(std::str::from_utf8(tail).ok()?, 16).ok())
        .flatten()
}

/// The Berth session of an index.
pub fn session(index: u64) -> SessionId {
    SessionId::generate(BORN, index)
}

/// The subject of its tokens.
pub fn subject(index: u64) -> String {
    format!("sa|load-{index}")
}

/// Signs a token for session `index`; `serial` tells tokens of one session apart.
///
/// # Errors
/// When the library cannot sign.
pub fn caller(signer: &Signer, index: u64, serial: u64, now: Timestamp) -> Result<Caller> {
    let session = session(index);
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: subject(index).parse().context("a subject")?,
        org: ORG.parse().context("an organization")?,
        sid: session.clone(),
        epoch: 1,
        iat: now.as_secs(),
        nbf: now.as_secs(),
        exp: now.after(Duration::from_secs(TTL)).as_secs(),
        jti: TokenId::generate(now, serial),
    };
    Ok(Caller {
        index,
        session: session.as_str().to_owned(),
        token: signer.sign(&claims)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spark_session_names_its_index() {
        assert_eq!(index_of(spark_session(0xabc).as_bytes()), Some(0xabc));
        assert_eq!(index_of(b"01234567-89ab-cdef-0123-456789abcdef"), None);
        assert_eq!(spark_session(7).len(), 36);
    }
}
