//! Resolution of host names: the trait, and the resolver of this machine.

use futures::future::BoxFuture;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

/// Time limit of a resolution, so that the resolution of a route still ends in time.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Resolves host names.
pub trait Resolve: Send + Sync + fmt::Debug + 'static {
    /// All addresses of a host, the preferred one first.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// The resolver of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let found = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port)))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(found.collect())
        })
    }
}
