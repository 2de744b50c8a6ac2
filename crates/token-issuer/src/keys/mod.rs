//! The signing keys, read periodically from their files.
//!
//! Each poll reads the files, publishes new keys, reports them to the ledger,
//! receives the state of all issuers, and applies
//! [`session_token::key_rotation`]. The key of a deleted file is withdrawn at
//! once, even without the ledger, so that an operator can remove a key in an
//! emergency. An unusable file leaves its last valid key in place; the last key
//! is never withdrawn.

mod document;
mod files;

use crate::config::KeysConfig;
use crate::metrics::Metrics;
use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use document::Document;
use files::{Found, KeyFiles};
use service_kit::service_account_token::ServiceChannel;
use session_core::Timestamp;
use session_proto::convert::from_timestamp;
use session_proto::internal::ReportKeysRequest;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use session_token::key_rotation::{Candidate, Plan, Windows, plan};
use session_token::{Jwks, Signer};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two polls of the files: a withdrawn key must be rejected within a second.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two reports of the same keys to the ledger.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum age of a confirmed plan for signing; with an older plan the keys may
/// have changed on other issuers.
const MAX_PLAN_AGE: Duration = Duration::from_secs(60);
/// Interval of polls until the first report succeeds.
const FIRST_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Shortest interval of polls.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time for which a caller waits for the first report.
const PLAN_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit of a report to the ledger.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The current signer and the published document.
#[derive(Debug, Default)]
pub(crate) struct Now {
    signer: Option<Arc<Signer>>,
    pub(crate) document: Arc<Document>,
    /// When the ledger last confirmed it.
    confirmed: Option<Instant>,
}

/// The keys of this issuer.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    now: ArcSwap<Now>,
    confirmed: Notify,
}

/// The plan is too old, or does not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoPlan;

impl Keys {
    pub(crate) fn current(&self) -> Arc<Now> {
        self.now.load_full()
    }

    /// The signing key; waits briefly for the first reply of the ledger.
    pub(crate) async fn signer(&self) -> Result<Arc<Signer>, NoPlan> {
        let found = async {
            loop {
                let confirmed = self.confirmed.notified();
                if let Some(signer) = self.fresh_signer() {
                    return signer;
                }
                confirmed.await;
            }
        };
        tokio::time::timeout(PLAN_TIMEOUT, found)
            .await
            .map_err(|_| NoPlan)
    }

    fn fresh_signer(&self) -> Option<Arc<Signer>> {
        let now = self.now.load();
        let fresh = now.confirmed.is_some_and(|at| at.elapsed() < MAX_PLAN_AGE);
        now.signer.clone().filter(|_| fresh)
    }

    fn set(&self, now: Now) {
        self.now.store(Arc::new(now));
        self.confirmed.notify_waiters();
    }
}

/// Follows the files; the only writer of [`Keys`].
#[derive(Debug)]
pub(crate) struct Follower {
    config: KeysConfig,
    ledger: TokenLedgerClient<ServiceChannel>,
    metrics: Arc<Metrics>,
    keys: Arc<Keys>,
    files: KeyFiles,
    /// Start of the publication of each key by this process.
    published_since: HashMap<String, Instant>,
    /// Keys that were published before the first report of this process.
    known_at_start: HashSet<String>,
    ledger_state: Option<LedgerState>,
    retired: HashSet<String>,
}

/// The last reply of the ledger.
#[derive(Debug)]
struct LedgerState {
    now: Timestamp,
    at: Instant,
    keys: HashMap<String, (Timestamp, Option<Timestamp>)>,
    reported: ReportKeysRequest,
}

impl Follower {
    /// Reads the files and publishes the keys; fails without a key.
    ///
    /// # Errors
    /// The unusable file.
    pub(crate) fn start(
        config: &KeysConfig,
        ledger: TokenLedgerClient<ServiceChannel>,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let mut files = KeyFiles::default();
        let found = files.read(config);
        if let Some(problem) = found.problems.first() {
            anyhow::bail!("{problem}");
        }
        anyhow::ensure!(!found.candidates.is_empty(), "there is no key to sign with");
        let mut follower = Self {
            config: config.clone(),
            ledger,
            metrics,
            keys: Arc::default(),
            files,
            published_since: HashMap::new(),
            known_at_start: HashSet::new(),
            ledger_state: None,
            retired: HashSet::new(),
        };
        follower.publish(&found, None);
        Ok(follower)
    }

    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let interval = POLL_INTERVAL.min(self.config.publish_before_signing / 10);
        loop {
            self.poll().await;
            let wait = if self.ledger_state.is_some() {
                interval
            } else {
                interval.min(FIRST_POLL_INTERVAL)
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait.max(MIN_POLL_INTERVAL)) => {}
            }
        }
    }

    async fn poll(&mut self) {
        let mut files = std::mem::take(&mut self.files);
        let config = self.config.clone();
        let read = tokio::task::spawn_blocking(move || {
            let found = files.read(&config);
            (files, found)
        });
        let Ok((files, found)) = read.await else { return };
        self.files = files;
        for problem in &found.problems {
            tracing::error!(%problem, "loading key file failed");
        }
        if found.candidates.is_empty() {
            return;
        }
        // A key is published before it is reported as published.
        self.decide(&found);
        let request = self.report_request(&found);
        if !self.is_report_due(&request) {
            return;
        }
        match self.report(request).await {
            Ok(()) => self.decide(&found),
            Err(error) => {
                self.metrics.key_reports_failed.at(()).inc();
                tracing::debug!(error = format!("{error:#}"), "key report failed");
            }
        }
    }

    /// Whether the ledger has not yet confirmed this report, or long ago.
    fn is_report_due(&self, request: &ReportKeysRequest) -> bool {
        let interval = REPORT_INTERVAL.min(self.config.publish_before_signing / 10);
        self.ledger_state
            .as_ref()
            .is_none_or(|ledger| ledger.reported != *request || ledger.at.elapsed() >= interval)
    }

    /// The published keys and the signing key.
    fn report_request(&self, found: &Found) -> ReportKeysRequest {
        let published: Vec<String> = found
            .candidates
            .iter()
            .map(|signer| signer.kid().to_owned())
            .filter(|kid| !self.retired.contains(kid))
            .collect();
        let current = self.keys.current();
        let signing = current.signer.as_ref().map(|signer| signer.kid().to_owned());
        ReportKeysRequest {
            signing: signing
                .filter(|kid| self.ledger_state.is_some() && published.contains(kid))
                .unwrap_or_default(),
            published,
        }
    }

    /// Reports published keys and the signing key to the ledger, and stores the
    /// state of all issuers from the reply.
    async fn report(&mut self, request: ReportKeysRequest) -> Result<()> {
        let reported = request.clone();
        let request_size = request.published.len();
        let sent = Instant::now();
        let reply = tokio::time::timeout(REPORT_TIMEOUT, self.ledger.report_keys(request)).await;
        let reply = reply.context("timed out")??.into_inner();
        let now = reply.now.as_ref().map(from_timestamp).context("no time")?;
        let keys: HashMap<_, _> = reply
            .keys
            .into_iter()
            .filter_map(|key| {
                let since = key.published_since.as_ref().map(from_timestamp)?;
                Some((key.key_id, (since, key.signed_at.as_ref().map(from_timestamp))))
            })
            .collect();
        if self.ledger_state.is_none() {
            self.known_at_start = keys
                .iter()
                .filter(|(_, (since, _))| *since < now)
                .map(|(kid, _)| kid.clone())
                .collect();
        }
        let missing = request_size - keys.len().min(request_size);
        if missing > 0 {
            tracing::warn!(
                missing,
                "ledger rejected keys: its limit is reached; they cannot sign"
            );
        }
        self.ledger_state = Some(LedgerState {
            now,
            at: sent,
            keys,
            reported,
        });
        Ok(())
    }

    /// Applies the key rotation to the current state.
    fn decide(&mut self, found: &Found) {
        let Some(ledger) = &self.ledger_state else {
            self.publish(found, None);
            return;
        };
        let present: HashSet<&str> = found.candidates.iter().map(|signer| signer.kid()).collect();
        self.published_since
            .retain(|kid, _| present.contains(kid.as_str()));
        self.known_at_start.retain(|kid| present.contains(kid.as_str()));
        self.retired.retain(|kid| present.contains(kid.as_str()));
        let candidates: Vec<Candidate> = found
            .candidates
            .iter()
            .map(|signer| {
                let kid = signer.kid();
                let known = ledger.keys.get(kid);
                let published = self.published_since.get(kid);
                Candidate {
                    kid: kid.to_owned(),
                    published_since: known.map(|(since, _)| *since),
                    signed_at: known.and_then(|(_, signed)| *signed),
                    published_here: published.map(Instant::elapsed).unwrap_or_default(),
                    known_at_start: self.known_at_start.contains(kid),
                }
            })
            .collect();
        let current = self
            .keys
            .current()
            .signer
            .as_ref()
            .map(|signer| signer.kid().to_owned());
        let windows = Windows {
            before_signing: self.config.publish_before_signing,
            after_signing: self.config.publish_after_signing,
        };
        let now = ledger.now.after(ledger.at.elapsed());
        let plan = plan(&candidates, current.as_deref(), now, windows);
        self.publish(found, Some(&plan));
    }

    /// Publishes the keys that are not retired and sets the signing key of the plan.
    fn publish(&mut self, found: &Found, plan: Option<&Plan>) {
        for signer in &found.candidates {
            self.published_since
                .entry(signer.kid().to_owned())
                .or_insert_with(Instant::now);
        }
        let signer = plan
            .and_then(|plan| plan.signing)
            .map(|index| &found.candidates[index]);
        let before = self.keys.current();
        if let (Some(signer), Some(plan)) = (signer, plan) {
            self.note_signer(signer, before.signer.as_deref(), plan.premature);
        }
        self.retire(found, plan);
        let published = found
            .candidates
            .iter()
            .filter(|signer| !self.retired.contains(signer.kid()));
        // The order does not depend on the signing key, because verifiers
        // discard their cache when the set changes.
        let jwks = Jwks::new(
            published
                .chain(&found.published)
                .map(|signer| signer.public_jwk()),
        );
        let confirmed = self.ledger_state.as_ref().map(|ledger| ledger.at);
        if before.document.contains(&jwks)
            && signer.map(|s| s.kid()) == before.signer.as_ref().map(|s| s.kid())
        {
            self.keys.set(Now {
                signer: before.signer.clone(),
                document: Arc::clone(&before.document),
                confirmed,
            });
            return;
        }
        let document = Document::new(&jwks);
        tracing::info!(keys = jwks.keys().len(), "key set changed");
        self.keys.set(Now {
            signer: signer.cloned(),
            document: Arc::new(document),
            confirmed,
        });
    }

    /// Counts and logs a change of the signing key. A retired key that signs again,
    /// because no other is available, is published again.
    fn note_signer(&mut self, signer: &Signer, last: Option<&Signer>, premature: bool) {
        let kid = signer.kid();
        self.retired.remove(kid);
        if last.is_some_and(|last| last.kid() == kid) {
            return;
        }
        self.metrics.signing_key_changes.at(()).inc();
        if premature {
            tracing::warn!(
                kid,
                "signing key changed before the end of its publication window: no other key is available"
            );
        } else {
            tracing::info!(kid, "signing key changed");
        }
    }

    fn retire(&mut self, found: &Found, plan: Option<&Plan>) {
        let retired = plan.map(|plan| plan.retired.as_slice()).unwrap_or_default();
        for index in retired {
            let kid = found.candidates[*index].kid();
            if self.retired.insert(kid.to_owned()) {
                tracing::info!(kid, "signing key retired; its file can be removed");
            }
        }
    }
}
