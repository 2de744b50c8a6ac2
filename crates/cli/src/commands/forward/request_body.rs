//! The request of a call, frame by frame. Its first bytes are kept, so that a call that spark-proxy
//! did not process can be sent again.

use super::reply::ClientGone;
use bytes::Bytes;
use h2::RecvStream;

/// Maximum size of the kept bytes of a call. A longer request cannot be sent again.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// Request bytes, and whether they are the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) data: Bytes,
    pub(super) is_last: bool,
    /// Bytes of the client's window that sending this part gives back.
    window: usize,
}

pub(super) struct RequestBody {
    client: RecvStream,
    /// All parts so far; `None` once they exceed the limit.
    kept: Option<Vec<Part>>,
    kept_bytes: usize,
    /// Number of kept parts that were sent in this attempt.
    sent: usize,
    is_ended: bool,
}

impl RequestBody {
    pub(super) fn new(client: RecvStream) -> Self {
        Self {
            client,
            kept: Some(Vec::new()),
            kept_bytes: 0,
            sent: 0,
            is_ended: false,
        }
    }

    /// Starts from the beginning; false if the beginning is no longer kept.
    pub(super) fn rewind(&mut self) -> bool {
        self.sent = 0;
        self.kept.is_some()
    }

    /// The next part; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, ClientGone> {
        if let Some(part) = self.kept.as_ref().and_then(|kept| kept.get(self.sent)) {
            self.sent += 1;
            return Ok(Some(Part {
                window: 0,
                ..part.clone()
            }));
        }
        if self.is_ended {
            return Ok(None);
        }
        let part = match self.client.data().await {
            Some(data) => {
                let data = data.map_err(|_| ClientGone)?;
                Part {
                    is_last: self.client.is_end_stream(),
                    window: data.len(),
                    data,
                }
            }
            None => Part {
                data: Bytes::new(),
                is_last: true,
                window: 0,
            },
        };
        self.is_ended = part.is_last;
        self.keep(&part);
        Ok(Some(part))
    }

    fn keep(&mut self, part: &Part) {
        self.kept_bytes += part.data.len();
        if self.kept_bytes > MAX_KEPT_BYTES {
            self.kept = None;
        }
        if let Some(kept) = &mut self.kept {
            kept.push(part.clone());
            self.sent = kept.len();
        }
    }

    /// Lets the client send as much again as `part` has.
    pub(super) fn release(&mut self, part: &Part) {
        // Fails only if the client is gone.
        let _ = self.client.flow_control().release_capacity(part.window);
    }
}
