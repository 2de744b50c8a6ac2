//! gRPC over HTTP/2 on the wire, without policy: nothing here decides who may call.
//!
//! ```text
//! request  ── method, headers ── request_body ── identity (user and Spark session ids) ──▶
//!                                └ gzip_requests (compressed messages become plain)
//! response ◀── reply (encoding; response ids are in identity)
//! keepalive: pings of one connection, downstream or upstream
//! ```

pub(crate) mod encoding;
pub(crate) mod gzip_requests;
pub(crate) mod headers;
pub(crate) mod identity;
pub(crate) mod keepalive;
pub(crate) mod method;
pub(crate) mod reply;
pub(crate) mod request_body;
pub(crate) mod response_scanner;
pub(crate) mod spark_error;
pub(crate) mod unsent;

use bytes::{BufMut as _, Bytes, BytesMut};
use identity::GRPC_PREFIX;
use prost::Message;

/// The content of a message with its flag and length; `None` if these are incomplete.
pub(crate) fn payload(message: &[u8]) -> Option<&[u8]> {
    message.get(GRPC_PREFIX..)
}

/// An uncompressed message with its flag and length.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(GRPC_PREFIX + len);
    out.put_u8(0);
    // The messages that the proxy makes are short.
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // The buffer grows, so this cannot fail.
    let _ = message.encode(&mut out);
    out.freeze()
}
