//! Metrics of token-issuer.

use service_kit::metrics::{Counter, Family, Registry};
use std::sync::Arc;

service_kit::labels! {
    /// Outcome of a request for a token.
    pub enum Outcome("outcome") {
        /// A token was issued.
        Issued => "issued",
        /// The request was rejected, or signing failed.
        Rejected => "rejected",
    }
}

service_kit::labels! {
    /// Outcome of admission, or of the authentication by session-manager.
    pub(crate) enum AdmissionOutcome("outcome") {
        /// Admitted.
        Admitted => "admitted",
        /// Rejected: rate limit of the address.
        RateLimited => "rate_limited",
        /// Rejected: too many failed authentications from the address.
        FailureLimited => "failure_limited",
        /// Rejected: limit of concurrent calls.
        ConcurrencyLimited => "concurrency_limited",
        /// The credential is unknown.
        Unauthenticated => "unauthenticated",
    }
}

/// All metrics of the service.
#[derive(Debug)]
pub(crate) struct Metrics {
    issues: Arc<Family<Outcome, Counter>>,
    calls: Arc<Family<AdmissionOutcome, Counter>>,
    pub(crate) key_reports_failed: Arc<Family<(), Counter>>,
    pub(crate) signing_key_changes: Arc<Family<(), Counter>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            issues: registry.counter(
                "token_issuer_token_requests_total",
                "Requests for a session token.",
            ),
            calls: registry.counter(
                "token_issuer_calls_total",
                "Calls of the token API, by admission outcome.",
            ),
            key_reports_failed: registry.counter(
                "token_issuer_key_reports_failed_total",
                "Key reports to session-manager that failed.",
            ),
            signing_key_changes: registry.counter(
                "token_issuer_signing_key_changes_total",
                "Changes of the signing key.",
            ),
        }
    }

    pub(crate) fn admission(&self, outcome: AdmissionOutcome) {
        self.calls.at(outcome).inc();
    }

    pub(crate) fn count_issue(&self, issued: bool) {
        self.issues
            .at(if issued {
                Outcome::Issued
            } else {
                Outcome::Rejected
            })
            .inc();
    }
}
