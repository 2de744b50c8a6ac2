//! Why a token was refused: a reason for the caller, a kind for metrics, and
//! a text that never contains a byte of the token that was not verified.

use session_core::{Reason, SessionId, Timestamp};
use std::fmt;

/// A refused token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// Not a session token by its form.
    Malformed(&'static str),
    /// Its time, and the grace that was asked for, are over.
    Expired {
        /// When it expired.
        at: Timestamp,
        /// The session it opened; known only when the signature was checked.
        session: Option<SessionId>,
    },
    /// Not one of ours, or not for this use.
    Invalid(&'static str),
    /// Well-formed, but signed with a key that this keyring does not have.
    /// Worth one refetch of the key set; refused the same as [`Self::Invalid`].
    UnknownKid,
}

/// [`TokenError`] without its details: a metric label.
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
    /// The reason a client is given.
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

    /// The text a client is shown: what happened and what to do next. `spark.stop()` comes first because
    /// PySpark's `getOrCreate()` returns the old Spark session otherwise, whatever the connection string says.
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

/// For logs: says which check failed, from a closed list of texts.
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
