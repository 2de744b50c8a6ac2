//! The integration tests of spark-proxy: one program, one module per subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod activity;
mod auth;
mod client_connections;
mod client_versions;
mod common;
mod compressed_requests;
mod concurrent_calls;
mod control_plane;
mod dns_rebinding;
mod documentation;
mod drain;
mod expired_tokens;
mod first_token;
mod forwarding;
mod h2spec;
mod held_stream_limits;
mod held_streams;
mod hostile_clients;
mod identity;
mod key_set;
mod local_replies;
mod logs;
mod memory;
mod replaced_compute;
mod retained_results;
mod retries;
mod revocation;
mod rotation;
mod routes;
mod shared_servers;
mod tls;
mod token_corpus;
mod traces;
mod upstream_connections;
