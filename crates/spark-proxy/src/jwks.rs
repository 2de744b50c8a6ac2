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
pub(crate) struct KeySet {
    current: Arc<CurrentKeys>,
    document: Arc<Document>,
    keep: Duration,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// The current keys.
#[derive(Default)]
struct CurrentKeys {
    ring: Keyring,
    /// Rises when the set changes, so that cached tokens are verified again.
    generation: AtomicU64,
    has_keys: watch::Sender<bool>,
}

/// The key set could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeySetUnavailable;

impl KeySet {
    pub(crate) fn new(
        config: &TokenConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Arc<Self>> {
        let current = Arc::new(CurrentKeys {
            ring: Keyring::with_signature_cache(MAX_SIGNATURES),
            ..CurrentKeys::default()
        });
        let (accepting, now) = (Arc::clone(&current), Arc::clone(&clock));
        let document = Document::new(&config.keys, move |fetched| {
            if accepting.ring.update(fetched.new_text(), now.now())? {
                tracing::info!(keys = accepting.ring.len(), "key set changed");
                accepting.changed();
            }
            Ok(())
        })?;
        Ok(Arc::new(Self {
            current,
            document,
            keep: config.keep_keys,
            clock,
            metrics,
        }))
    }

    pub(crate) fn ring(&self) -> &Keyring {
        &self.current.ring
    }

    pub(crate) fn generation(&self) -> u64 {
        self.current.generation.load(Ordering::Acquire)
    }

    /// Waits for the first key.
    pub(crate) async fn wait_for_key(&self) {
        let mut has_keys = self.current.has_keys.subscribe();
        // The sender lives as long as `self`.
        let _ = has_keys.wait_for(|has_keys| *has_keys).await;
    }

    /// Receives every change of the set.
    pub(crate) fn changes(&self) -> watch::Receiver<bool> {
        self.current.has_keys.subscribe()
    }

    /// Polls the key set until `stop`.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let document = Arc::clone(&self.document);
        document.keep_fresh(move || self.read_failed(), stop).await;
    }

    fn read_failed(&self) {
        self.metrics.control.key_fetches_failed.inc();
        if self.ring().expire(self.keep, self.clock.now()) {
            tracing::error!(
                "key set expired: reading failed for longer than tokens.keep_keys; all tokens are rejected"
            );
            self.current.changed();
        }
    }

    /// Reads the set again after a token named an unknown key, unless it was just read. Concurrent
    /// callers share one read.
    pub(crate) async fn refresh(&self) -> Result<(), KeySetUnavailable> {
        self.document.fetch_again().await.map(|_| ()).map_err(|error| {
            self.metrics.control.key_fetches_failed.inc();
            tracing::warn!(error = format!("{error:#}"), "reading the key set failed");
            KeySetUnavailable
        })
    }
}

impl CurrentKeys {
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.has_keys.send_replace(!self.ring.is_empty());
    }
}
