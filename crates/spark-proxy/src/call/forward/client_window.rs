//! Response bytes are sent within the client's flow-control window. Bytes beyond it are not passed to
//! HTTP/2, which would buffer them beyond the end of the call.

use super::Exchange;
use crate::call_error::CallError;
use crate::grpc::reply::ClientStream;
use crate::resource_limits::{LevelLimits, LimitExceeded, Reservation};
use crate::upstream::Body;
use bytes::Bytes;
use session_core::Reason;
use session_proto::error::Refused;
use std::pin::pin;
use std::time::Duration;

/// Interval at which unread response bytes are counted: starts short, because most data arrives at
/// once, and doubles. Not a `Backoff`: there is no peer to protect by jitter, and its random
/// generator would be a part of every stalled call.
const MIN_UNREAD_INTERVAL: Duration = Duration::from_millis(10);
const MAX_UNREAD_INTERVAL: Duration = Duration::from_millis(250);

/// Sends bytes of the response as the client takes them.
pub(super) async fn send_data(
    exchange: &Exchange<'_>,
    body: &mut Body,
    client: &ClientStream,
    mut data: Bytes,
) -> Result<(), CallError> {
    while !data.is_empty() {
        let room = wait_for_capacity(exchange, body, client, data.len()).await?;
        client.data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

/// Waits until the client takes more of `len` available bytes; returns how many. Bytes held
/// meanwhile are counted.
async fn wait_for_capacity(
    exchange: &Exchange<'_>,
    body: &mut Body,
    client: &ClientStream,
    len: usize,
) -> Result<usize, CallError> {
    let mut taken = pin!(client.capacity(len));
    tokio::select! {
        biased;
        taken = &mut taken => return Ok(taken?),
        () = std::future::ready(()) => {}
    }
    let limits = &exchange.worker.shared.config.limits;
    let mut unread = Reservation::new(
        exchange.open.usage().levels(),
        |level| &level.unread_bytes,
        LevelLimits([
            (limits.unread_bytes_per_session, "limits.unread_bytes_per_session"),
            (limits.unread_bytes_per_org, "limits.unread_bytes_per_org"),
            (limits.unread_bytes, "limits.unread_bytes"),
        ]),
    );
    let mut interval = MIN_UNREAD_INTERVAL;
    loop {
        unread
            .raise_to(body.flow_control().used_capacity().max(len))
            .map_err(too_much_unread)?;
        tokio::select! {
            biased;
            taken = &mut taken => return Ok(taken?),
            () = tokio::time::sleep(interval) => {}
        }
        interval = (2 * interval).min(MAX_UNREAD_INTERVAL);
    }
}

fn too_much_unread(exceeded: LimitExceeded) -> Refused {
    let whose = exceeded.whose;
    exceeded.refused(
        Reason::QuotaExceeded,
        format_args!("Too many bytes of responses {whose} wait for clients that do not read them, so this call was ended"),
    )
}
