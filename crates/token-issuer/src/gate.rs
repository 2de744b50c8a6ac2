//! The door of the token API: how much comes from one address, and how many
//! of its credentials were wrong. Who calls is for session-manager to say.

use service_kit::gate::{Doorkeeper, Pass, remote};
use service_kit::limits::ByAddress;
use session_core::Reason;
use session_proto::error::Refused;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// The door.
#[derive(Debug)]
pub(crate) struct Door(pub(crate) ByAddress);

impl Doorkeeper for Door {
    async fn admit(&self, call: &mut http::request::Parts) -> Result<Pass, Status> {
        let place = self.0.enter(remote(call), Instant::now());
        let place = place.map_err(|much| {
            Refused::new(
                Reason::RateLimited,
                format!("{much}. Wait a moment, and call less often."),
            )
            .retry_after(much.wait().max(Duration::from_millis(10)))
        })?;
        Ok(Box::new(place))
    }

    fn answered(&self, peer: Option<SocketAddr>, code: Code) {
        if code == Code::Unauthenticated {
            self.0.failed(peer, Instant::now());
        }
    }
}
