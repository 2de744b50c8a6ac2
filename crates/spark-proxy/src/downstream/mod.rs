//! Clients' connections, from accept to the last call on them.
//!
//! ```text
//! acceptor ── TCP ──▶ run_loop (a worker) ──▶ connection
//!                                              │ proxy_protocol: the client's real address
//!                                              │ TLS, HTTP/2
//!                                              │ read_pacing: small reads until a good token
//!                                              ▼
//!                                           call::handle, one task per call
//! ```

pub(crate) mod acceptor;
pub(crate) mod connection;
mod frame_rate;
mod proxy_protocol;
mod read_pacing;
