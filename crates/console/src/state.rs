//! What all handlers share.

use crate::assets::Assets;
use crate::config::Config;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::sign_in::SignIn;
use crate::upstream::Upstream;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What all handlers share: axum's state.
pub(crate) type AppState = Arc<App>;

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    /// The gRPC APIs.
    pub(crate) upstream: Upstream,
    /// Keys of cookies and identity providers.
    pub(crate) sign_in: SignIn,
    /// The front end.
    pub(crate) assets: Assets,
    /// Cancelled at the start of the shutdown: streams end.
    pub(crate) stopping: CancellationToken,
    /// Path before every path of this service, for links; see
    /// [`crate::PublicConfig::prefix`].
    pub(crate) prefix: String,
}
