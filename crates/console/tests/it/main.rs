//! The integration tests of console: one program, a module a subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod conditions;
mod documentation;
mod examples;
mod limits;
mod parity;
mod routes;
mod schemathesis;
mod sign_in;
mod support;
mod watch;
