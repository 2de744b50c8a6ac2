//! Compute providers as this manager uses them.
//!
//! ```text
//! registry ── static servers, shared by sessions
//!          └─ leader_lease ── processes of this machine, by the manager that holds the lease
//! configured: the section [compute] of the configuration, and the providers it turns on
//! installation: the id that tells this installation's compute from another's
//! ```

pub(crate) mod configured;
pub(crate) mod installation;
pub(crate) mod leader_lease;
pub(crate) mod registry;
