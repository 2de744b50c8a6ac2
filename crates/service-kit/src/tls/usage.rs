//! When a connection of an API ends because nobody uses it.
//!
//! A connection and its calls share a [`ConnectionUse`]. One on which no caller
//! was known in time ends, whatever is open on it; any other ends when it has
//! had no call for a while. An open stream counts as a call.

use parking_lot::{Mutex, MutexGuard};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How long a connection stays that is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleLimits {
    /// Until its first call of a known caller.
    pub unknown_caller: Duration,
    /// After its last call.
    pub idle: Duration,
}

/// What is known of a connection's use.
#[derive(Debug, Clone)]
pub struct ConnectionUse(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Its beginning, or the end of its last call.
    since: Instant,
    open: usize,
    caller_known: bool,
}

/// A call of this connection; ends when dropped.
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
    /// A call begins.
    pub fn begin(&self) -> OpenCall {
        self.state().open += 1;
        OpenCall(self.clone())
    }

    /// Its caller is known.
    pub fn caller_known(&self) {
        self.state().caller_known = true;
    }

    /// When it ends if nothing more happens.
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

/// The clock of one connection.
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

    /// Is the connection over? If not, the task is woken to ask again.
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
