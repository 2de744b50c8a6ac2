//! The integration tests of service-kit: one program, a module a subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admin;
mod client_certificates;
mod config;
mod lingering;
mod service;
mod service_accounts;
mod tls;
