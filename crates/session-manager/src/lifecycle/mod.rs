//! The lifecycle of sessions.
//!
//! ```text
//! activity_reports ─▶ reconciler ◀─ due queue, changes of compute
//!        │               │ effects: start and release compute
//! report_freshness ──────┤ idle timeouts are deferred while reports are missing
//! orphan_collection: compute that belongs to no session    retention: ended sessions
//! warm_pools: compute that is kept ready without sessions
//! disabling: sessions and tokens of disabled principals and organizations
//! ```

pub(crate) mod activity_reports;
pub(crate) mod disabling;
pub(crate) mod orphan_collection;
pub(crate) mod reconciler;
pub(crate) mod report_freshness;
pub(crate) mod retention;
pub(crate) mod warm_pools;
