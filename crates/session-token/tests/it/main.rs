//! The integration tests of session-token: one program, one module per subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accepted;
mod common;
mod differential;
mod external_jwt;
mod rejected;
