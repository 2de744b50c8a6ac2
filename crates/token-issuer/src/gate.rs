//! The door of the token API: how much comes from one address, and how many
//! of its credentials were wrong. Who calls is for session-manager to say.

use service_kit::gate::{Doorkeeper, Pass};
use service_kit::limits::ByAddress;
use session_core::Reason;
use session_proto::error::Refused;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// Where a call comes from, for handlers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin(pub(crate) Option<IpAddr>);

/// The door.
#[derive(Debug)]
pub(crate) struct Door(pub(crate) ByAddress);

impl Doorkeeper for Door {
    async fn admit(&self, call: &mut http::request::Parts) -> Result<Pass, Status> {
        let origin = self.0.origin(call);
        let place = self.0.enter(origin, Instant::now());
        let place = place.map_err(|much| {
            Refused::new(
                Reason::RateLimited,
                format!("{much}. Wait a moment, and call less often."),
            )
            .retry_after(much.wait().max(Duration::from_millis(10)))
        })?;
        call.extensions.insert(Origin(origin.map(|origin| origin.ip())));
        Ok(Box::new(place))
    }

    fn origin(&self, call: &http::request::Parts) -> Option<SocketAddr> {
        self.0.origin(call)
    }

    fn answered(&self, peer: Option<SocketAddr>, code: Code) {
        if code == Code::Unauthenticated {
            self.0.failed(peer, Instant::now());
        }
    }
}
