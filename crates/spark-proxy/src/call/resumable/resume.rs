//! The call of a client that returned: receives the rest of the response from the task that owns the
//! stream, in this worker or another.

use super::outlet::{begin, deliver};
use crate::activity::sail_operations::StreamEvent;
use crate::call::forward::client_window::{Unread, send_data};
use crate::call_error::{CallError, backend_lost};
use crate::grpc::reply::ClientStream;
use crate::metrics::{Direction, Outcome};
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use std::time::Duration;
use tokio::sync::mpsc;

/// Time in which the event that ended the owner, such as the end of the session, ends this call with
/// its own error.
const OWN_ERROR_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends the events to the client until the response ends.
pub(crate) async fn resume(
    worker: &Worker,
    open: &OpenCall,
    mut events: mpsc::Receiver<StreamEvent>,
    client: &ClientStream,
) -> Result<Outcome, CallError> {
    let bytes = &worker.shared.metrics.calls.bytes;
    while let Some(event) = events.recv().await {
        match event {
            StreamEvent::Headers(headers) => begin(headers, client)?,
            StreamEvent::Data(data) => {
                let len = data.len();
                let unread = Unread::new(&worker.shared.config.limits, open.usage());
                send_data(unread, || 0, client, data).await?;
                bytes.at(Direction::ToClient).add(len as u64);
                open.usage().count_out(len);
            }
            StreamEvent::End(end) => return deliver(end, client),
        }
    }
    tokio::time::sleep(OWN_ERROR_TIMEOUT).await;
    Err(CallError::Refused(backend_lost(
        "The stream of the operation ended while the client received it.",
    )))
}
