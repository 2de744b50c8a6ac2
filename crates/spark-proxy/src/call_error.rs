//! How a call ends before its response is complete.

use crate::grpc::reply::ClientGone;
use crate::grpc::request_body::RequestError;
use session_core::Reason;
use session_proto::error::Refused;
use tonic::Status;

/// Reason for an incomplete response.
pub(crate) enum CallError {
    /// Berth error.
    Refused(Refused),
    /// Error in the form of an engine.
    Engine(Box<Status>),
    /// The client's deadline has passed.
    Deadline,
    /// The compute provably did not process the call.
    NotProcessed,
    /// The client disconnected.
    ClientGone,
}

impl From<Refused> for CallError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<RequestError> for CallError {
    fn from(broken: RequestError) -> Self {
        match broken {
            RequestError::Refused(refused) => Self::Refused(refused),
            RequestError::InvalidHandle(status) => Self::Engine(status),
            RequestError::ClientGone => Self::ClientGone,
        }
    }
}

impl From<ClientGone> for CallError {
    fn from(ClientGone: ClientGone) -> Self {
        Self::ClientGone
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
