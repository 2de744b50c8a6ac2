//! The integration tests of session-store: one program, one module per subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod contract;
mod idle_model;
mod memory_clock;
mod model;
mod record_dictionary;
mod redis_acl;
mod redis_cluster;
mod redis_memory;
mod redis_outages;
mod redis_rejections;
mod redis_sentinel;
mod redis_server;
mod redis_tls;
mod retention;
