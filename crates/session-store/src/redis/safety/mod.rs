//! What keeps acknowledged writes through fail-overs and restores.
//!
//! ```text
//! replication: writes that a replica must have    epoch: has this data been replaced?
//! monitor: asks both again, in the background
//! ```

pub(super) mod epoch;
pub(super) mod monitor;
pub(super) mod replication;
