//! Response bytes are sent within the client's flow-control window. Bytes beyond it are not passed to
//! HTTP/2, which would buffer them beyond the end of the call.

use crate::activity::SessionUsage;
use crate::call_error::CallError;
use crate::config::LimitConfig;
use crate::grpc::reply::ClientStream;
use crate::resource_limits::{LevelLimits, LimitExceeded, Reservation};
use bytes::Bytes;
use session_core::Reason;
use session_proto::error::Refused;
use std::pin::pin;
use std::time::Duration;

/// Interval at which unread response bytes are counted: starts short, because most data arrives at
/// once, and doubles. Not a `Backoff`: there is no peer to protect by jitter, and its random
/// generator would be a part of every stalled call.
pub(crate) const MIN_UNREAD_INTERVAL: Duration = Duration::from_millis(10);
const MAX_UNREAD_INTERVAL: Duration = Duration::from_millis(250);

/// The interval after this one.
pub(crate) fn next_unread_interval(interval: Duration) -> Duration {
    (2 * interval).min(MAX_UNREAD_INTERVAL)
}

/// Where unread bytes of a call are counted.
#[derive(Clone, Copy)]
pub(crate) struct Unread<'a> {
    limits: &'a LimitConfig,
    usage: &'a SessionUsage,
}

impl<'a> Unread<'a> {
    pub(crate) fn new(limits: &'a LimitConfig, usage: &'a SessionUsage) -> Self {
        Self { limits, usage }
    }

    /// Creates a use of zero.
    pub(crate) fn reserve(self) -> Reservation {
        let limits = self.limits;
        Reservation::new(
            self.usage.levels(),
            |level| &level.unread_bytes,
            LevelLimits([
                (limits.unread_bytes_per_session, "limits.unread_bytes_per_session"),
                (limits.unread_bytes_per_org, "limits.unread_bytes_per_org"),
                (limits.unread_bytes, "limits.unread_bytes"),
            ]),
        )
    }
}

/// Sends bytes of the response as the client takes them. `buffered` is the number of bytes that were
/// received and not released.
pub(crate) async fn send_data(
    unread: Unread<'_>,
    mut buffered: impl FnMut() -> usize,
    client: &ClientStream,
    mut data: Bytes,
) -> Result<(), CallError> {
    while !data.is_empty() {
        let room = wait_for_capacity(unread, &mut buffered, client, data.len()).await?;
        client.data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

/// Waits until the client takes more of `len` available bytes; returns how many. Bytes held
/// meanwhile are counted.
async fn wait_for_capacity(
    unread: Unread<'_>,
    buffered: &mut impl FnMut() -> usize,
    client: &ClientStream,
    len: usize,
) -> Result<usize, CallError> {
    let mut taken = pin!(client.capacity(len));
    tokio::select! {
        biased;
        taken = &mut taken => return Ok(taken?),
        () = std::future::ready(()) => {}
    }
    let mut unread = unread.reserve();
    let mut interval = MIN_UNREAD_INTERVAL;
    loop {
        unread.raise_to(buffered().max(len)).map_err(too_much_unread)?;
        tokio::select! {
            biased;
            taken = &mut taken => return Ok(taken?),
            () = tokio::time::sleep(interval) => {}
        }
        interval = next_unread_interval(interval);
    }
}

pub(crate) fn too_much_unread(exceeded: LimitExceeded) -> Refused {
    let whose = exceeded.whose;
    exceeded.refused(
        Reason::QuotaExceeded,
        format_args!("Too many bytes of responses {whose} wait for clients that do not read them, so this call was ended"),
    )
}
