//! Idle timeouts of API connections.
//!
//! A connection and its calls share a [`ConnectionUse`]. A connection without
//! an authenticated caller within the limit ends, even with open calls; any
//! other ends after a time without calls. An open stream counts as a call.

use parking_lot::{Mutex, MutexGuard};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Idle timeouts of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleLimits {
    /// Time until the first call of an authenticated caller.
    pub unknown_caller: Duration,
    /// Time after the last call.
    pub idle: Duration,
}

/// Usage of one connection.
#[derive(Debug, Clone)]
pub struct ConnectionUse(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Start of the connection, or end of its last call.
    since: Instant,
    open: usize,
    caller_known: bool,
}

/// An open call of a connection; ends on drop.
#[derive(Debug)]
pub struct OpenCall(ConnectionUse);

impl Default for ConnectionUse {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            since: Instant::now(),
            open: 0,
            caller_known: false,
        })))
    }
}

impl ConnectionUse {
    /// Starts a call.
    pub fn begin(&self) -> OpenCall {
        self.state().open += 1;
        OpenCall(self.clone())
    }

    /// Records that the caller is authenticated.
    pub fn caller_known(&self) {
        self.state().caller_known = true;
    }

    /// Time at which the connection ends without further calls.
    fn ends_at(&self, limits: &IdleLimits) -> Instant {
        let state = self.state();
        match *state {
            State {
                since,
                caller_known: false,
                ..
            } => since + limits.unknown_caller,
            State { since, open: 0, .. } => since + limits.idle,
            State { .. } => Instant::now() + limits.idle,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        if state.caller_known {
            state.since = Instant::now();
        }
    }
}

/// Idle timer of one connection.
#[derive(Debug)]
pub(super) struct IdleClock {
    limits: IdleLimits,
    timer: Pin<Box<Sleep>>,
}

impl IdleClock {
    pub(super) fn new(limits: IdleLimits) -> Self {
        let first = limits.unknown_caller.min(limits.idle);
        Self {
            limits,
            timer: Box::pin(tokio::time::sleep(first)),
        }
    }

    /// Whether the connection has ended. If not, the timer wakes the task for
    /// the next check.
    pub(super) fn is_over(&mut self, usage: &ConnectionUse, cx: &mut Context<'_>) -> bool {
        while let Poll::Ready(()) = self.timer.as_mut().poll(cx) {
            let at = usage.ends_at(&self.limits);
            if at <= Instant::now() {
                return true;
            }
            self.timer.as_mut().reset(at);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const LIMITS: IdleLimits = IdleLimits {
        unknown_caller: Duration::from_secs(30),
        idle: Duration::from_secs(300),
    };

    async fn over(clock: &mut IdleClock, usage: &ConnectionUse) -> Duration {
        let begun = Instant::now();
        poll_fn(|cx| match clock.is_over(usage, cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        begun.elapsed()
    }

    fn seconds(time: Duration) -> u64 {
        time.as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_caller_ends_whatever_is_open_on_it() {
        let usage = ConnectionUse::default();
        let mut clock = IdleClock::new(LIMITS);
        drop(usage.begin());
        let _open = usage.begin();
        assert_eq!(seconds(over(&mut clock, &usage).await), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_s_connection_ends_some_time_after_its_last_call() {
        let usage = ConnectionUse::default();
        let mut clock = IdleClock::new(LIMITS);
        usage.caller_known();
        let (first, second) = (usage.begin(), usage.begin());
        drop(first);
        let ended = tokio::spawn({
            let usage = usage.clone();
            async move { over(&mut clock, &usage).await }
        });
        tokio::time::sleep(Duration::from_secs(10_000)).await;
        assert!(!ended.is_finished(), "a call is open");
        drop(second);
        assert_eq!(seconds(ended.await.unwrap()), 10_300);
    }
}
