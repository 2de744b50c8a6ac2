//! The compute providers of this manager.
//!
//! ```text
//! registry ── static servers, shared by sessions
//!          └─ leader_lease ── processes of this machine, only on the leader
//! configured: the configuration section [compute] and the providers that it enables
//! installation: the id on all compute of this installation
//! ```

pub(crate) mod configured;
pub(crate) mod installation;
pub(crate) mod leader_lease;
pub(crate) mod registry;
