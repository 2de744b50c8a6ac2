//! The whole of Berth on real parts, for the end-to-end tests: the services
//! as the processes that ship, a private Redis, Sail and Apache Spark, the
//! `berth` command, and PySpark and Scala clients in several releases.

pub mod collector;
mod gate;
pub mod http;
mod oidc;
mod paths;
mod ports;
mod process;
mod python;
mod relay;
mod server;
mod stack;
pub mod wait;

pub use gate::Gate;
pub use oidc::OidcProvider;
pub use paths::{binary, home, installed, repo};
pub use process::Service;
pub use python::{Client, Repl, RunningClient};
pub use relay::Relay;
pub use server::Server;
pub use stack::{AnotherManager, Engine, Stack, StackOptions, Tls};
