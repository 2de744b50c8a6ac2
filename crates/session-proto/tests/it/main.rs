//! The integration tests of session-proto: one program, a module a subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access_table;
mod errors_doc;
