//! The program `berth-dev`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod mutants;
mod ports;
