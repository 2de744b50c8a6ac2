//! Safety of acknowledged writes through fail-overs and restores.
//!
//! ```text
//! replication: writes that a replica must have    epoch: detection of lost writes
//! monitor: repeats both checks in the background
//! ```

pub(super) mod epoch;
pub(super) mod monitor;
pub(super) mod replication;
