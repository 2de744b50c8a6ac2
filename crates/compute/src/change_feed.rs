//! Broadcast of changes of compute.

use crate::ComputeChanged;
use futures::StreamExt;
use futures::stream::BoxStream;
use session_core::SessionKey;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// Unread changes per subscriber; older ones are lost, which
/// [`crate::ComputeProvider::watch`] permits.
const BACKLOG: usize = 1024;

#[derive(Debug)]
pub(crate) struct Changes(broadcast::Sender<ComputeChanged>);

impl Default for Changes {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Changes {
    pub(crate) fn publish(&self, key: &SessionKey, generation: u64) {
        // Fails only without subscribers.
        let _ = self.0.send(ComputeChanged {
            key: key.clone(),
            generation,
        });
    }

    pub(crate) fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        BroadcastStream::new(self.0.subscribe())
            .filter_map(|change| async { change.ok() })
            .boxed()
    }
}
