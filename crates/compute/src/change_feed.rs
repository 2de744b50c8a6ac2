//! Telling whoever listens that some compute changed.

use crate::ComputeChanged;
use futures::StreamExt;
use futures::stream::BoxStream;
use session_core::SessionKey;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// So many unread changes per listener; older ones are lost, which
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
    pub(crate) fn tell(&self, key: &SessionKey, generation: u64) {
        // Nobody may be listening.
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
