//! token-issuer's metrics.

use service_kit::metrics::{Counter, Family, Registry};
use std::sync::Arc;

service_kit::labels! {
    /// How a request for a token ended.
    pub enum Outcome("outcome") {
        /// A token was handed out.
        Issued => "issued",
        /// It was refused, or could not be made.
        Refused => "refused",
    }
}

service_kit::labels! {
    /// What the door did with a call, or what session-manager said of its caller.
    pub(crate) enum Door("outcome") {
        /// Let it in.
        Open => "open",
        /// It came from an address that calls too often.
        TooOften => "too_often",
        /// It came from an address that showed too many wrong credentials.
        TooManyWrong => "too_many_wrong",
        /// Too much was under way.
        TooMuchAtOnce => "too_much_at_once",
        /// It showed no credential that is known.
        Unknown => "unknown",
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Metrics {
    issues: Arc<Family<Outcome, Counter>>,
    doors: Arc<Family<Door, Counter>>,
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
            doors: registry.counter(
                "token_issuer_calls_total",
                "Calls of the token API, by what was decided before they were looked at.",
            ),
            key_reports_failed: registry.counter(
                "token_issuer_key_reports_failed_total",
                "Reports of keys that session-manager did not take.",
            ),
            signing_key_changes: registry.counter(
                "token_issuer_signing_key_changes_total",
                "Times that another key began to sign.",
            ),
        }
    }

    pub(crate) fn door(&self, door: Door) {
        self.doors.at(door).inc();
    }

    pub(crate) fn count_issue(&self, issued: bool) {
        self.issues
            .at(if issued { Outcome::Issued } else { Outcome::Refused })
            .inc();
    }
}
