//! [`Reason`] as a gRPC status, and back.
//!
//! Two rules follow from PySpark's behaviour (docs/errors.md): a final error carries ErrorInfo with
//! an error class, so that it is shown as a clean SparkException; a temporary error, or the loss of
//! a backend, carries none, because PySpark 4 makes one more call after any ErrorInfo before it
//! shows the error or retries.

use crate::trailers;
pub use crate::trailers::REASON_TRAILER;
use session_core::Reason;
use std::collections::HashMap;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `ErrorInfo.domain` of all Berth errors.
pub const DOMAIN: &str = "berth";
const DEFAULT_RETRY: Duration = Duration::from_secs(2);

/// The status code of `reason`.
pub const fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::TokenMissing
        | Reason::TokenMalformed
        | Reason::TokenExpired
        | Reason::TokenRevoked
        | Reason::TokenInvalid
        | Reason::HeaderMissing
        | Reason::CallerUnknown => Code::Unauthenticated,
        Reason::HeaderDuplicate | Reason::MalformedMessage | Reason::InvalidArgument => Code::InvalidArgument,
        Reason::SessionMismatch | Reason::SparkSessionTaken | Reason::NotAuthorized | Reason::OrgDisabled => {
            Code::PermissionDenied
        }
        Reason::SessionClosed
        | Reason::SessionFailed
        | Reason::ComputeReleased
        | Reason::CatalogUnavailable
        | Reason::ClusterNotActive
        | Reason::TlsRequired
        | Reason::InUse
        | Reason::ManagedByConfig => Code::FailedPrecondition,
        Reason::SessionWarming
        | Reason::ProxyDraining
        | Reason::BackendUnavailable
        | Reason::ControlPlaneUnavailable => Code::Unavailable,
        Reason::QuotaExceeded | Reason::RateLimited | Reason::TooManyWaiting => Code::ResourceExhausted,
        Reason::CompressedRequest | Reason::UnknownMethod => Code::Unimplemented,
        Reason::BackendLost | Reason::OperationLost | Reason::Conflict => Code::Aborted,
        Reason::RequestIdReused | Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Internal => Code::Internal,
    }
}

/// Whether the error carries ErrorInfo.
const fn has_error_info(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::SessionWarming
            | Reason::ProxyDraining
            | Reason::BackendUnavailable
            | Reason::ControlPlaneUnavailable
            | Reason::BackendLost
            | Reason::OperationLost
    )
}

/// A Berth error.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Reason of the error.
    pub reason: Reason,
    /// What happened and the fix, without address, stack or secret.
    pub message: String,
    /// Retry delay.
    pub retry_after: Option<Duration>,
    /// Details for programs, such as the invalid field.
    pub metadata: Vec<(&'static str, String)>,
}

impl Refused {
    /// Creates an error with a text.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after = matches!(code_of(reason), Code::Unavailable).then_some(DEFAULT_RETRY);
        Self {
            reason,
            message: message.into(),
            retry_after,
            metadata: Vec::new(),
        }
    }

    /// A field of the request is invalid.
    pub fn field(field: &'static str, problem: impl std::fmt::Display) -> Self {
        let mut refused = Self::new(Reason::InvalidArgument, format!("{field}: {problem}"));
        refused.metadata.push(("field", field.to_owned()));
        refused
    }

    /// The object belongs to another owner or does not exist; both have the same error.
    pub fn not_authorized() -> Self {
        Self::new(
            Reason::NotAuthorized,
            "You have no access to this, or it does not exist. Check the name, and that you use the right account.",
        )
    }

    /// An API call came without a usable key.
    pub fn no_key(problem: impl std::fmt::Display) -> Self {
        Self::new(
            Reason::CallerUnknown,
            format!(
                "{problem}. Send your key or token as `authorization: Bearer …`; the berth command reads it from BERTH_KEY or BERTH_TOKEN."
            ),
        )
    }

    /// The headers of an API call exceed `most` bytes; they have `bytes`, of which the credential
    /// has `credential`.
    pub fn head_too_large(bytes: usize, credential: usize, most: usize) -> Self {
        let refused = if credential > most / 2 {
            Self::new(
                Reason::CallerUnknown,
                format!(
                    "The token is too large: it has {credential} bytes, and a call may have {most} bytes of headers in all. \
                     Ask your identity provider for a token with fewer groups or claims."
                ),
            )
        } else {
            Self::field(
                "headers",
                format_args!("they have {bytes} bytes, and a call may have {most}. Send less metadata."),
            )
        };
        refused.with("limit", most.to_string())
    }

    /// Sets the retry delay.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds a detail for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }

    /// Converts the error to a gRPC status with details and the reason trailer, cut to the size
    /// that gRPC clients accept.
    pub fn into_status(self) -> Status {
        let mut details = ErrorDetails::new();
        if has_error_info(self.reason) {
            let mut metadata: HashMap<String, String> = self
                .metadata
                .into_iter()
                .map(|(key, mut value)| {
                    trailers::cut_at_char(&mut value, trailers::MAX_METADATA_VALUE);
                    (key.to_owned(), value)
                })
                .collect();
            metadata.insert(
                "classes".to_owned(),
                r#"["org.apache.spark.SparkException"]"#.to_owned(),
            );
            metadata.insert("errorClass".to_owned(), format!("BERTH.{}", self.reason));
            metadata.insert("sqlState".to_owned(), "08003".to_owned());
            details.set_error_info(self.reason.as_str(), DOMAIN, metadata);
        }
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        let text = trailers::short_text(&self.message);
        let mut status = Status::with_error_details(code_of(self.reason), text, details);
        status
            .metadata_mut()
            .insert(REASON_TRAILER, MetadataValue::from_static(self.reason.as_str()));
        status
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        refused.into_status()
    }
}

/// Returns the reason in a status of Berth.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let from_info = status
        .get_details_error_info()
        .filter(|info| info.domain == DOMAIN)
        .map(|info| info.reason);
    let text = match from_info {
        Some(text) => text,
        None => status.metadata().get(REASON_TRAILER)?.to_str().ok()?.to_owned(),
    };
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_way_there_and_back() {
        for &reason in Reason::ALL {
            let status = Refused::new(reason, "text").into_status();
            assert_eq!(status.code(), code_of(reason));
            assert_eq!(reason_of(&status), Some(reason));
            assert!(
                !status.details().is_empty() || matches!(status.code(), Code::Aborted),
                "{reason}"
            );
        }
    }

    #[test]
    fn what_passes_says_when_to_retry_and_shows_no_error_info() {
        let status = Refused::new(Reason::SessionWarming, "text").into_status();
        assert!(status.get_details_error_info().is_none());
        assert_eq!(
            status.get_details_retry_info().unwrap().retry_delay,
            Some(DEFAULT_RETRY)
        );
    }

    #[test]
    fn final_errors_are_spark_exceptions() {
        let info = Refused::new(Reason::SessionClosed, "text")
            .into_status()
            .get_details_error_info()
            .unwrap();
        assert_eq!(info.metadata["errorClass"], "BERTH.SESSION_CLOSED");
        assert_eq!(info.metadata["classes"], r#"["org.apache.spark.SparkException"]"#);
    }

    #[test]
    fn only_transient_reasons_are_unavailable() {
        // PySpark retries UNAVAILABLE for ten minutes: only temporary errors may use it.
        let unavailable: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| code_of(**reason) == Code::Unavailable)
            .collect();
        assert_eq!(unavailable.len(), 4);
    }
}
