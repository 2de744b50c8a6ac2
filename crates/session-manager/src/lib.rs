//! `session-manager`: the life of sessions, and the only part of Berth that
//! opens the store or drives compute.
//!
//! [`run`] is the whole service: tests and `main` start the same function.

mod admission;
mod api;
mod audit;
mod caller;
mod change_feed;
pub mod config;
mod definitions;
mod error;
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
pub use inspect::show;
pub use providers::registry::{Providers, StorePlacements};
pub use server::Listeners;
pub use service::{open_store, run, run_with};
