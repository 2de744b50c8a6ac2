//! What is measured, and when: a window that opens after the warm-up.

use crate::proc;
use crate::protocol::Outcome;
use anyhow::Result;
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// Measures while it is on.
pub(super) struct Meter {
    on: Cell<bool>,
    over: Cell<bool>,
    began: Cell<Option<Instant>>,
    watch: Vec<Vec<u32>>,
    before: RefCell<Vec<f64>>,
    latency: RefCell<Histogram<u64>>,
    outcome: RefCell<Outcome>,
}

impl Meter {
    pub(super) fn new(watch: Vec<Vec<u32>>) -> Self {
        Self {
            on: Cell::new(false),
            over: Cell::new(false),
            began: Cell::new(None),
            watch,
            before: RefCell::default(),
            // From 1 ns to a minute, to three digits: cannot be refused.
            latency: RefCell::new(
                Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap_or_else(|_| empty()),
            ),
            outcome: RefCell::default(),
        }
    }

    /// Opens the window after `warmup_ms` and closes it `millis` later.
    pub(super) async fn window(&self, warmup_ms: u64, millis: u64) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(warmup_ms)).await;
        self.start()?;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.stop()
    }

    pub(super) fn start(&self) -> Result<()> {
        *self.before.borrow_mut() = self.cpu()?;
        self.began.set(Some(Instant::now()));
        self.on.set(true);
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<()> {
        self.on.set(false);
        self.over.set(true);
        let mut outcome = self.outcome.borrow_mut();
        outcome.seconds = self
            .began
            .get()
            .map_or(0.0, |began| began.elapsed().as_secs_f64());
        let before = self.before.borrow();
        outcome.cpu = self
            .cpu()?
            .iter()
            .zip(&*before)
            .map(|(now, then)| now - then)
            .collect();
        Ok(())
    }

    /// Nothing new may begin.
    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// A call that began at this moment went well.
    pub(super) fn call(&self, began: Instant) {
        if self.on.get() && self.began.get().is_some_and(|start| began >= start) {
            self.latency
                .borrow_mut()
                .saturating_record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        if self.on.get() {
            self.outcome.borrow_mut().calls += 1;
        }
    }

    /// A call that was due at one moment and ended at another went well.
    pub(super) fn paced_call(&self, due: Instant, ended: Instant) {
        if self.began.get().is_some_and(|start| due >= start) {
            let nanos = ended.saturating_duration_since(due).as_nanos();
            self.latency
                .borrow_mut()
                .saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
            self.outcome.borrow_mut().calls += 1;
        }
    }

    pub(super) fn bytes(&self, count: usize) {
        if self.on.get() {
            self.outcome.borrow_mut().bytes += count as u64;
        }
    }

    pub(super) fn failed(&self, error: &anyhow::Error) {
        let mut outcome = self.outcome.borrow_mut();
        outcome.errors += 1;
        outcome.error.get_or_insert_with(|| format!("{error:#}"));
    }

    pub(super) fn outcome(&self) -> Outcome {
        let latency = self.latency.borrow();
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Outcome {
            p50: micros(latency.value_at_quantile(0.5)),
            p99: micros(latency.value_at_quantile(0.99)),
            max: micros(latency.max()),
            ..self.outcome.borrow().clone()
        }
    }

    fn cpu(&self) -> Result<Vec<f64>> {
        self.watch.iter().map(|pids| proc::cpu_seconds(pids)).collect()
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits are allowed"))
}
