//! Reasons for the rejection of a token: a reason for the caller, a kind for
//! metrics, and a text that contains no unverified byte of the token.

use session_core::{Reason, SessionId, Timestamp};
use std::fmt;

/// A rejected token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// The text does not have the form of a session token.
    Malformed(&'static str),
    /// The token and the applicable grace have expired.
    Expired {
        /// Time of the expiry.
        at: Timestamp,
        /// The session of the token; only after the signature was verified.
        session: Option<SessionId>,
    },
    /// Not issued by this installation, or not for this use.
    Invalid(&'static str),
    /// Well-formed, but signed with a key that is not in this keyring. It
    /// justifies one refetch of the key set; rejected like [`Self::Invalid`].
    UnknownKid,
}

/// Kind of a [`TokenError`], as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenErrorKind {
    /// See [`TokenError::Malformed`].
    Malformed,
    /// See [`TokenError::Expired`].
    Expired,
    /// See [`TokenError::Invalid`].
    Invalid,
    /// See [`TokenError::UnknownKid`].
    UnknownKid,
}

impl TokenError {
    /// The reason in the reply.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::TokenMalformed,
            Self::Expired { .. } => Reason::TokenExpired,
            Self::Invalid(_) | Self::UnknownKid => Reason::TokenInvalid,
        }
    }

    /// The kind, for metrics.
    pub fn kind(&self) -> TokenErrorKind {
        match self {
            Self::Malformed(_) => TokenErrorKind::Malformed,
            Self::Expired { .. } => TokenErrorKind::Expired,
            Self::Invalid(_) => TokenErrorKind::Invalid,
            Self::UnknownKid => TokenErrorKind::UnknownKid,
        }
    }

    /// The text in the reply: what happened and what to do. `spark.stop()`
    /// comes first because PySpark's `getOrCreate()` otherwise returns the old
    /// Spark session, even with another connection string.
    pub fn client_text(&self) -> String {
        match self {
            Self::Malformed(_) => {
                "The credential is not a Berth session token. Call spark.stop(), then connect with one: `berth token <session>`"
                    .to_owned()
            }
            Self::Expired { at, session } => {
                let session = session.as_ref().map_or("<session>", SessionId::as_str);
                format!("The token expired at {at}. Call spark.stop(), then connect with a new one: `berth token {session}`")
            }
            Self::Invalid(_) | Self::UnknownKid => {
                "The token is not valid here. Call spark.stop(), then connect with a new one: `berth token <session>`".to_owned()
            }
        }
    }
}

/// For logs: the failed check, from a closed list of texts.
impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "malformed token: {why}"),
            Self::Expired { at, .. } => write!(f, "token expired at {at}"),
            Self::Invalid(why) => write!(f, "invalid token: {why}"),
            Self::UnknownKid => f.write_str("invalid token: unknown signing key"),
        }
    }
}

impl std::error::Error for TokenError {}
