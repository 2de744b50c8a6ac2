//! What clients count: calls, calls made again, and calls that failed for good.

use super::Plan;
use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use session_proto::error::reason_of;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// As PySpark 4 retries by default: after 50 ms, four times as long each time, at most 60 s, 15
/// times.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const FACTOR: u32 = 4;
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const RETRIES: u32 = 15;

/// The counts of all clients together.
#[derive(Debug)]
pub(super) struct Tally {
    begun: Instant,
    pub(super) plan: Plan,
    calls: AtomicU64,
    /// By the cause.
    retried: Mutex<BTreeMap<String, u64>>,
    failed: Mutex<Vec<String>>,
    /// What was done, by its name.
    done: Mutex<BTreeMap<&'static str, u64>>,
    /// The signing keys of the tokens.
    signed_by: Mutex<BTreeSet<String>>,
    over: CancellationToken,
}

impl Tally {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            begun: Instant::now(),
            plan,
            calls: AtomicU64::new(0),
            retried: Mutex::default(),
            failed: Mutex::default(),
            done: Mutex::default(),
            signed_by: Mutex::default(),
            over: CancellationToken::new(),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn end(&self) {
        self.over.cancel();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits, but not beyond the end.
    pub(super) async fn pause(&self, time: Duration) {
        self.over.run_until_cancelled(tokio::time::sleep(time)).await;
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn did(&self, what: &'static str) {
        *self.done.lock().entry(what).or_default() += 1;
    }

    /// Notes the key that signed a token.
    pub(super) fn issued(&self, token: &str) {
        self.did("tokens");
        let head = token.split('.').next().unwrap_or_default();
        let head = URL_SAFE_NO_PAD.decode(head).unwrap_or_default();
        let head: serde_json::Value = serde_json::from_slice(&head).unwrap_or_default();
        let key = head["kid"].as_str().unwrap_or_default();
        self.signed_by.lock().insert(key.to_owned());
    }

    pub(super) fn signed_by(&self) -> BTreeSet<String> {
        self.signed_by.lock().clone()
    }

    pub(super) fn failed(&self, what: &str, why: &str) {
        let text = format!("after {:.1?}: {what}: {why}", self.elapsed());
        println!("FAILED {text}");
        self.failed.lock().push(text);
    }

    pub(super) fn retried(&self, why: &str) {
        *self.retried.lock().entry(why.to_owned()).or_default() += 1;
    }

    pub(super) fn failures(&self) -> Vec<String> {
        self.failed.lock().clone()
    }

    pub(super) fn summary(&self) -> String {
        format!(
            "{} calls, {} failed; {} keys signed; made again: {:?}; {:?}",
            self.calls(),
            self.failed.lock().len(),
            self.signed_by.lock().len(),
            self.retried.lock(),
            self.done.lock()
        )
    }

    /// Makes a call until it is answered, as a client does. What it does not make again, or not any
    /// more, has failed.
    pub(super) async fn with_retries<T>(
        &self,
        what: &str,
        mut call: impl AsyncFnMut() -> Result<T, Status>,
    ) -> Option<T> {
        let mut pause = FIRST_RETRY;
        for retry in 0..=RETRIES {
            match call().await {
                Ok(answer) => {
                    self.called();
                    return Some(answer);
                }
                Err(status) if retry < RETRIES && passes(&status) => {
                    self.retried(&cause(&status));
                    tokio::time::sleep(pause).await;
                    pause = (pause * FACTOR).min(LONGEST_RETRY);
                }
                Err(status) => {
                    self.called();
                    self.failed(
                        what,
                        &format!("{:?} {}: {}", status.code(), cause(&status), status.message()),
                    );
                    return None;
                }
            }
        }
        None
    }
}

/// UNAVAILABLE, and what other gRPC clients show as that: a connection that ended.
fn passes(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_of_connection(status)
}

fn is_of_connection(status: &Status) -> bool {
    // A status that came over the wire has no source.
    std::error::Error::source(status).is_some()
}

fn cause(status: &Status) -> String {
    match reason_of(status) {
        Some(reason) => reason.as_str().to_owned(),
        None if is_of_connection(status) => {
            let text = format!("{status:?}");
            let known = [
                "ConnectError",
                "GoAway",
                "BrokenPipe",
                "ConnectionReset",
                "UnexpectedEof",
            ];
            let known = known.into_iter().find(|name| text.contains(name));
            known.unwrap_or("connection ended").to_owned()
        }
        None => "no reason".to_owned(),
    }
}
