//! `console`: the web console and the REST/JSON API.
//!
//! It has no state and no privilege: every request becomes calls of the public
//! gRPC APIs with the credential of its caller, and those authorize it. Any
//! replica can answer any request. [`run`] is the whole service.

mod assets;
mod auth;
mod config;
mod credential;
mod front;
mod limits;
mod metrics;
mod pages;
mod problem;
mod rest;
mod server;
mod service;
mod sign_in;
mod state;
mod upstream;

pub use config::{Config, LimitsConfig, PublicConfig, SparkConnectConfig};
pub use rest::openapi::document as openapi;
pub use service::{Listeners, run};
pub use sign_in::{CredentialToken, ProviderConfig, SignInConfig};
