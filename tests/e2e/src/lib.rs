//! The whole of Berth on real parts, for the end-to-end tests: the services
//! as the processes that ship, a private Redis, Sail and Apache Spark, the
//! `berth` command, and PySpark and Scala clients in several releases.

pub mod collector;
mod forwarder;
mod gate;
mod link;
mod marked_table;
mod oidc;
mod python;
mod relay;
mod requests;
mod server;
mod stack;

pub use forwarder::{Forwarder, signal_child};
pub use gate::Gate;
pub use link::{Link, LinkMode};
pub use local_stack::config::Tls;
pub use local_stack::paths::{binary, home, installed, repo};
pub use local_stack::{Service, http, wait};
pub use marked_table::MarkedTable;
pub use oidc::OidcProvider;
pub use python::{Client, Repl, RunningClient, java};
pub use relay::Relay;
pub use requests::authorized;
pub use server::Server;
pub use stack::{AnotherIssuer, AnotherManager, Engine, Stack, StackOptions, shared_sail_without_limits};
pub use test_support::ports::free_port;
