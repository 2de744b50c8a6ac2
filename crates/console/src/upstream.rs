//! Channels to the gRPC APIs: each credential has its own, so that no caller
//! uses up the streams or the flow control of another's connection.
//!
//! A credential that no call has accepted yet uses a shared channel. Channels
//! carry no decisions: every call has the caller's credential, and the APIs
//! authorize it.

use crate::credential::{Credential, CredentialId};
use crate::metrics::Metrics;
use anyhow::{Context, Result};
use parking_lot::Mutex;
use service_kit::grpc::{ClientConfig, channel};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;

/// Maximum number of credentials with channels of their own; more share.
const MAX_CREDENTIALS: usize = 2000;
/// Time after the last use of a credential's channels until they are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// The gRPC APIs.
#[derive(Debug)]
pub(crate) struct Upstream {
    manager: ClientConfig,
    issuer: ClientConfig,
    shared: Channels,
    own: Mutex<HashMap<CredentialId, Own>>,
    metrics: Arc<Metrics>,
}

/// The channels of one credential.
#[derive(Debug, Clone)]
pub(crate) struct Channels {
    /// To session-manager.
    pub(crate) manager: Channel,
    /// To token-issuer.
    pub(crate) issuer: Channel,
}

#[derive(Debug)]
struct Own {
    channels: Channels,
    used: Instant,
}

impl Upstream {
    /// The APIs at these addresses. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// An address or certificate that cannot be used.
    pub(crate) fn new(manager: &ClientConfig, issuer: &ClientConfig, metrics: Arc<Metrics>) -> Result<Self> {
        Ok(Self {
            shared: connect(manager, issuer)?,
            manager: manager.clone(),
            issuer: issuer.clone(),
            own: Mutex::default(),
            metrics,
        })
    }

    /// The channels of a credential.
    pub(crate) fn channels(&self, credential: &Credential) -> Channels {
        let mut own = self.own.lock();
        match own.get_mut(&credential.id()) {
            Some(own) => {
                own.used = Instant::now();
                own.channels.clone()
            }
            None => self.shared.clone(),
        }
    }

    /// Gives a credential that an API accepted channels of its own.
    pub(crate) fn accepted(&self, credential: &Credential) {
        let now = Instant::now();
        let mut own = self.own.lock();
        if own.contains_key(&credential.id()) {
            return;
        }
        own.retain(|_, own| now.duration_since(own.used) < IDLE_TIMEOUT);
        if own.len() < MAX_CREDENTIALS
            && let Ok(channels) = connect(&self.manager, &self.issuer)
        {
            own.insert(credential.id(), Own { channels, used: now });
        }
        self.metrics
            .channels
            .set(i64::try_from(own.len()).unwrap_or(i64::MAX));
    }
}

fn connect(manager: &ClientConfig, issuer: &ClientConfig) -> Result<Channels> {
    Ok(Channels {
        manager: channel(manager).context("manager")?,
        issuer: channel(issuer).context("issuer")?,
    })
}
