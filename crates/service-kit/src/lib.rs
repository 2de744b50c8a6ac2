//! Plumbing that every service needs and no product word belongs in.
//!
//! A service's `main` reads its configuration ([`config`]), starts logs and
//! traces ([`telemetry`]), binds its ports ([`listen`]), and hands all of it
//! with a [`shutdown::Shutdown`] to its own `run`. [`admin`] serves health and
//! metrics, [`tls`] and [`grpc`] the connections, [`caller`] says who calls.

pub mod admin;
pub mod backoff;
pub mod caller;
pub mod config;
pub mod document;
pub mod grpc;
pub mod listen;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
