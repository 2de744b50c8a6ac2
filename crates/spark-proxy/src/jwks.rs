//! The public keys that verify tokens: a polled document, used for a day while it cannot be read.

use crate::config::TokenConfig;
use crate::metrics::Metrics;
use service_kit::polled_document::Document;
use session_core::Clock;
use session_token::Keyring;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Size of the signature cache. It serves tokens that are rejected for another reason, or accepted
/// within grace: these are checked again on each call.
const MAX_SIGNATURES: usize = 4096;

/// The key set of token-issuer.
pub(crate) struct Keys {
    held: Arc<Held>,
    document: Arc<Document>,
    keep: Duration,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// The current keys.
#[derive(Default)]
struct Held {
    ring: Keyring,
    /// Rises when the set changes, so that cached tokens are verified again.
    generation: AtomicU64,
    some: watch::Sender<bool>,
}

/// The key set could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

impl Keys {
    pub(crate) fn new(
        config: &TokenConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Arc<Self>> {
        let held = Arc::new(Held {
            ring: Keyring::with_signature_cache(MAX_SIGNATURES),
            ..Held::default()
        });
        let (accepting, now) = (Arc::clone(&held), Arc::clone(&clock));
        let document = Document::new(&config.keys, move |fetched| {
            if accepting.ring.update(fetched.new_text(), now.now())? {
                tracing::info!(keys = accepting.ring.len(), "key set changed");
                accepting.changed();
            }
            Ok(())
        })?;
        Ok(Arc::new(Self {
            held,
            document,
            keep: config.keep_keys,
            clock,
            metrics,
        }))
    }

    pub(crate) fn ring(&self) -> &Keyring {
        &self.held.ring
    }

    pub(crate) fn generation(&self) -> u64 {
        self.held.generation.load(Ordering::Acquire)
    }

    /// Waits for the first key.
    pub(crate) async fn first(&self) {
        let mut some = self.held.some.subscribe();
        // The sender lives as long as `self`.
        let _ = some.wait_for(|some| *some).await;
    }

    /// Polls the key set until `stop`.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let document = Arc::clone(&self.document);
        document.keep_fresh(move || self.unread(), stop).await;
    }

    fn unread(&self) {
        self.metrics.key_fetches_failed.inc();
        if self.ring().expire(self.keep, self.clock.now()) {
            tracing::error!(
                "key set expired: reading failed for longer than tokens.keep_keys; all tokens are rejected"
            );
            self.held.changed();
        }
    }

    /// Reads the set again after a token named an unknown key, unless it was just read. Concurrent
    /// callers share one read.
    pub(crate) async fn look_again(&self) -> Result<(), Unreadable> {
        self.document.fetch_again().await.map(|_| ()).map_err(|error| {
            self.metrics.key_fetches_failed.inc();
            tracing::warn!(error = format!("{error:#}"), "reading the key set failed");
            Unreadable
        })
    }
}

impl Held {
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.some.send_replace(!self.ring.is_empty());
    }
}
