//! The integration tests of compute: one program, one module per subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod hostile_definitions;
mod kubernetes;
mod process_sail;
mod process_spark;
mod shared_servers;
mod static_servers;
mod supervisor;
mod support;
