//! Resolution of host names: the trait, and the resolver of this machine.

use futures::future::BoxFuture;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

/// A resolver may take this long, so that a resolve of a route still ends in time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks what a name stands for.
pub trait Lookup: Send + Sync + fmt::Debug + 'static {
    /// All its addresses, the best first.
    fn lookup<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// This machine's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let found = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, port)))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(found.collect())
        })
    }
}
