//! Tests of the workspace's structure.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod directions;
mod modules;
