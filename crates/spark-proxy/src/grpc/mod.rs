//! gRPC over HTTP/2 on the wire, without policy: nothing here decides who may call.
//!
//! ```text
//! request  ── method, headers ── request_body ── identity (user and Spark session ids) ──▶
//! response ◀── reply
//! keepalive: pings of one connection, downstream or upstream
//! ```

pub(crate) mod headers;
pub(crate) mod identity;
pub(crate) mod keepalive;
pub(crate) mod method;
pub(crate) mod reply;
pub(crate) mod request_body;
pub(crate) mod unsent;
