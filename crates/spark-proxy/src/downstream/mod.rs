//! Client connections, from accept to their last call.
//!
//! ```text
//! acceptor ── TCP ──▶ run_loop (a worker) ──▶ connection
//!                                              │ proxy_protocol: client IP
//!                                              │ TLS, HTTP/2
//!                                              │ read_pacing: small reads until a valid token
//!                                              │ LingeringIo: the close waits for the client
//!                                              ▼
//!                                           call::handle, one task per call
//! ```

pub(crate) mod acceptor;
pub(crate) mod connection;
mod frame_rate;
mod proxy_protocol;
mod read_pacing;
