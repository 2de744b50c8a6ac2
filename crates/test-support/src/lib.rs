//! Test helpers: servers that stand for the environment of Berth, usual definitions
//! and sessions, and checks of documents. No shipped crate depends on them.

pub mod documentation;
pub mod fake_routes;
pub mod fake_spark;
pub mod fixtures;
pub mod ports;
pub mod redis;
