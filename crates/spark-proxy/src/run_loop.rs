//! The thread of a worker: serves connections, and closes them when the proxy stops.

use crate::downstream::acceptor::Accepted;
use crate::downstream::connection;
use crate::routes::cache::RouteEvent;
use crate::worker::{Shared, Worker};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::task::TaskTracker;

/// Time limit for sending the last errors after the drain.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Input of a worker. The end of `accepted` means that accepting has ended.
pub(crate) struct WorkerInput {
    pub(crate) accepted: mpsc::UnboundedReceiver<Accepted>,
    pub(crate) events: mpsc::UnboundedReceiver<RouteEvent>,
}

/// Runs a worker on this thread until its last connection is closed.
pub(crate) fn run(shared: Arc<Shared>, input: WorkerInput) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        serve(Rc::new(Worker::new(shared)), input).await;
    });
    Ok(())
}

async fn serve(worker: Rc<Worker>, input: WorkerInput) {
    let WorkerInput { mut accepted, events } = input;
    let housekeeping = spawn_local(Rc::clone(&worker).run_housekeeping(events));
    let connections = TaskTracker::new();
    while let Some(Accepted { tcp, remote, permit }) = accepted.recv().await {
        let worker = Rc::clone(&worker);
        connections.spawn_local(async move {
            let metrics = Arc::clone(&worker.shared.metrics);
            metrics.connections.open.add(1);
            connection::serve(worker, tcp, remote).await;
            metrics.connections.open.add(-1);
            drop(permit);
        });
    }
    connections.close();
    worker.resumed.close();
    let done = async {
        connections.wait().await;
        worker.resumed.wait().await;
    };
    tokio::select! {
        () = done => {}
        () = worker.shared.forced.cancelled() => {
            worker.end_all();
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, connections.wait()).await;
            worker.ending.cancel();
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, connections.wait()).await;
        }
    }
    housekeeping.abort();
}
