//! The integration tests of session-manager: one program, one module per subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod api;
mod audit;
mod audit_api;
mod authentication;
mod bindings_on_sail;
mod client_advice;
mod clusters;
mod compute_calls;
mod connections;
mod deadlines;
mod documentation;
mod existence_oracle;
mod idle;
mod internal_port;
mod lifecycle;
mod logs;
mod organizations;
mod process_trust;
mod profiles;
mod server_addresses;
mod service_account_tokens;
mod spark_session_bindings;
mod startup;
mod support;
mod tenant_isolation;
mod tokens;
mod waiting;
mod watch;
