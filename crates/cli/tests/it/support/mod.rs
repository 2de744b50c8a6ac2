//! Shared by the tests: the command, the services, broken peers, an identity
//! provider.

mod berth;
pub(crate) mod grpc_between;
pub(crate) mod grpc_peer;
pub(crate) mod provider;
mod stack;
pub(crate) mod tcp_peer;

pub(crate) use berth::{Berth, ended, script};
pub(crate) use stack::{Stack, free_address};

use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// Waits for a condition with a time limit; panics at the limit.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future)
        .await
        .unwrap_or_else(|_| panic!("not within {LONG:?}: {what}"))
}
