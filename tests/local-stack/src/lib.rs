//! Berth on this machine, for `berth-dev` and the tests: processes that end
//! with their owner, the services and a Redis among them, their
//! configuration files, keys, and the `berth` command.
//!
//! `make run` compiles this crate, so it depends on nothing that the services
//! do not depend on.

pub mod berth;
pub mod config;
pub mod http;
pub mod paths;
mod process;
pub mod redis;
mod service;
pub mod wait;

pub use process::{Process, Signal, until_ready};
pub use service::Service;
