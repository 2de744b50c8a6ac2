//! How a call ends before its response is complete.

use crate::grpc::reply::Vanished;
use crate::grpc::request_body::Broken;
use session_core::Reason;
use session_proto::error::Refused;
use tonic::Status;

/// Reason for an incomplete response.
pub(crate) enum Stop {
    /// Berth error.
    Refused(Refused),
    /// Engine error, translated for clients.
    Engine(Box<Status>),
    /// The client's deadline has passed.
    Deadline,
    /// The compute provably did not process the call.
    Untouched,
    /// The client disconnected.
    Vanished,
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused(refused) => Self::Refused(refused),
            Broken::Vanished => Self::Vanished,
        }
    }
}

impl From<Vanished> for Stop {
    fn from(Vanished: Vanished) -> Self {
        Self::Vanished
    }
}

pub(crate) fn draining() -> Refused {
    Refused::new(
        Reason::ProxyDraining,
        "This proxy is being replaced. Try again: another one will answer.",
    )
}

pub(crate) fn backend_unavailable() -> Refused {
    Refused::new(
        Reason::BackendUnavailable,
        "The session's compute does not accept calls at the moment; nothing was done. Try again in a little while.",
    )
}

pub(crate) fn backend_lost(what: &str) -> Refused {
    Refused::new(
        Reason::BackendLost,
        format!("{what} Whether the operation took effect is not known. Check before you run it again."),
    )
}
