//! `session-manager`: the lifecycle of sessions. Only this service opens the
//! state store and controls compute.
//!
//! [`run`] is the whole service; `main` and the tests call it.

mod admission;
mod api;
mod audit;
mod caller;
mod change_feed;
pub mod config;
mod definitions;
mod error;
#[cfg(test)]
mod fixtures;
mod gauges;
mod inspect;
mod lifecycle;
mod metrics;
mod providers;
mod server;
mod service;
#[cfg(test)]
mod simulation;
mod spark_sessions;
mod startup;

pub use config::Config;
pub use inspect::inspect;
pub use providers::registry::{Providers, StorePlacements};
pub use server::Listeners;
pub use service::{open_store, run, run_with};
