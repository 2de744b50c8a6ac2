//! Session usage, reported to session-manager: calls in flight, the end of the last call, running
//! operations, bytes and times.
//!
//! ```text
//! calls of all workers ──▶ usage (atomics per session) ──▶ reports ──▶ session-manager
//! running, sail_operations: operations to which clients may return
//! ```

pub(crate) mod reports;
pub(crate) mod running;
pub(crate) mod sail_operations;
mod usage;

pub(crate) use usage::{BusyGuard, OperationName, SessionUsage, UsageRegistry};
