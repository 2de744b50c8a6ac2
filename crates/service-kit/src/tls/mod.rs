//! TLS by rustls with aws-lc-rs. The provider is passed explicitly instead of
//! the process default, so that no dependency can change the algorithms.
//!
//! [`ServerTls`] and [`ClientTls`] follow their files: certificates are
//! replaced without a restart, and an invalid replacement leaves the last valid
//! one in use.

mod client;
mod files;
mod server;

pub use client::{ClientTls, ClientTlsFiles};
pub(crate) use files::must_be_file;
pub use files::{TlsError, TlsFiles};
pub use server::ServerTls;

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

/// ALPN of gRPC.
pub const H2: &[&[u8]] = &[b"h2"];
/// ALPN of plain HTTP/1.1.
pub const HTTP1: &[&[u8]] = &[b"http/1.1"];
/// ALPN of web pages and JSON.
pub const H2_HTTP1: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The crypto provider of the program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
