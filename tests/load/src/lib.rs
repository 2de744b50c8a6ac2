//! The load rig: Berth's data path beside a direct connection, Envoy, nginx and
//! haproxy, in one interleaved run on one machine.
//!
//! The backend ([`backend`]), the load generator ([`generate`]) and every proxy
//! are processes of their own; the driver starts them, hands out jobs in turn
//! and compares what came back.

pub mod backend;
pub mod callers;
pub mod driver;
pub mod generate;
pub mod inspect;
pub mod proc;
pub mod protocol;
pub mod wire;
