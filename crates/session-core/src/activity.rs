//! What is known of a session's use, from the proxies' reports.

use crate::time::Timestamp;

/// The state of a session's use at one moment. Only `Quiet` lets an idle
/// clock run: not knowing is never taken for silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Some proxy has not reported since an outage; idle clocks are frozen.
    Unknown,
    /// A proxy holds a busy lease: a call is in flight.
    Busy,
    /// Every proxy has reported and nothing is in flight.
    Quiet {
        /// The end of the last operation.
        last_activity_at: Timestamp,
    },
}
