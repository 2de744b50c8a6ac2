//! Accepts connections and assigns each to the worker with the fewest.

use crate::worker::Shared;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Pause after a failed accept, mostly caused by a lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);

/// An accepted connection for a worker.
pub(crate) struct Accepted {
    pub(crate) tcp: std::net::TcpStream,
    pub(crate) remote: SocketAddr,
    /// Permits of all connections and of the worker's connections.
    pub(crate) permit: [OwnedSemaphorePermit; 2],
}

/// Accepts connections until the proxy stops; then closes the port.
pub(crate) async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Accepted>>,
) -> anyhow::Result<()> {
    let stopping = shared.stopping.clone();
    let limit = shared.config.limits.connections;
    let permits: Vec<Arc<Semaphore>> = workers.iter().map(|_| Arc::new(Semaphore::new(limit))).collect();
    let all = Arc::new(Semaphore::new(limit));
    let accepting = async {
        loop {
            // Connections beyond the limit wait in the kernel.
            let room = Arc::clone(&all).acquire_owned().await?;
            let (tcp, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            shared.metrics.connections.accepted.inc();
            let Ok(tcp) = tcp.into_std() else { continue };
            let least = (0..workers.len())
                .max_by_key(|&index| (permits[index].available_permits(), workers.len() - index));
            let Some(least) = least else { return Ok(()) };
            let permit = Arc::clone(&permits[least]).acquire_owned().await?;
            let accepted = Accepted {
                tcp,
                remote,
                permit: [room, permit],
            };
            if workers[least].send(accepted).is_err() {
                anyhow::bail!("a worker has stopped");
            }
        }
    };
    stopping.run_until_cancelled(accepting).await.unwrap_or(Ok(()))
}
