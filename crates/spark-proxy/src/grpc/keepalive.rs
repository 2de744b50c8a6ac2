//! Keepalive: detects dead connections. A silent peer is pinged; if then no byte arrives, neither a
//! pong nor other data, the connection is lost. Silence means that no bytes arrive from the socket:
//! a peer with a full flow-control window sends no data, but pongs still arrive.

use h2::{Ping, PingPong};
use std::cell::Cell;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Intervals of pings and their time limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepaliveConfig {
    /// Silence before a ping on a connection with calls.
    pub(crate) busy: Duration,
    /// The same without calls; at least as long. `None`: no pings then.
    pub(crate) idle: Option<Duration>,
    /// Minimum interval between two pings.
    pub(crate) min_interval: Duration,
    /// Time limit for any byte after a ping.
    pub(crate) timeout: Duration,
}

/// Last read and pending ping of one connection.
#[derive(Debug)]
pub(crate) struct KeepaliveState {
    last_read_at: Cell<Instant>,
    /// Time of the last change from no calls to one: silence before that is normal.
    call_began_at: Cell<Option<Instant>>,
    pinged_at: Cell<Option<Instant>>,
}

/// A connection that records when bytes arrive.
#[derive(Debug)]
pub(crate) struct TrackedIo<T> {
    io: T,
    state: Rc<KeepaliveState>,
}

/// Keepalive of one connection.
pub(crate) struct Keepalive {
    config: KeepaliveConfig,
    state: Rc<KeepaliveState>,
    pings: Option<PingPong>,
    last_ping: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// Result of a keepalive check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeepaliveAction {
    /// Check again at this time.
    Wait(Instant),
    /// Send a ping, and check again at this time.
    Ping(Instant),
    /// The connection is lost.
    Lost,
}

impl KeepaliveState {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            last_read_at: Cell::new(Instant::now()),
            call_began_at: Cell::default(),
            pinged_at: Cell::default(),
        })
    }

    /// Records the start of the first call.
    pub(crate) fn call_began(&self) {
        self.call_began_at.set(Some(Instant::now()));
    }

    /// Whether a ping was sent and nothing arrived since.
    pub(crate) fn is_ping_pending(&self) -> bool {
        self.pinged_at
            .get()
            .is_some_and(|pinged_at| self.last_read_at.get() <= pinged_at)
    }
}

impl<T> TrackedIo<T> {
    pub(crate) fn new(io: T, state: &Rc<KeepaliveState>) -> Self {
        Self {
            io,
            state: Rc::clone(state),
        }
    }
}

impl Keepalive {
    pub(crate) fn new(config: KeepaliveConfig, state: Rc<KeepaliveState>, pings: Option<PingPong>) -> Self {
        let timer = Box::pin(tokio::time::sleep(config.busy));
        Self {
            config,
            state,
            pings,
            last_ping: None,
            timer,
        }
    }

    /// Waits for the next check and performs it. Cancel-safe: the only await is the timer.
    pub(crate) async fn next(&mut self, is_busy: impl Fn() -> bool) -> KeepaliveAction {
        std::future::poll_fn(|cx| self.timer.as_mut().poll(cx)).await;
        let action = self.check(Instant::now(), is_busy());
        match action {
            KeepaliveAction::Wait(at) => self.timer.as_mut().reset(at),
            KeepaliveAction::Ping(at) => {
                self.ping();
                self.timer.as_mut().reset(at);
            }
            KeepaliveAction::Lost => {}
        }
        action
    }

    fn ping(&mut self) {
        if let Some(pings) = &mut self.pings {
            // h2 stores one pong until it is taken. No wakeup is needed: its bytes were recorded as
            // a read.
            let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
            // Fails while an older ping is pending, which serves the same purpose.
            let _ = pings.send_ping(Ping::opaque());
        }
    }

    fn check(&mut self, now: Instant, busy: bool) -> KeepaliveAction {
        let last_read_at = self.state.last_read_at.get();
        if let Some(pinged_at) = self.state.pinged_at.get() {
            if last_read_at <= pinged_at {
                let until = pinged_at + self.config.timeout;
                return if now < until {
                    // Sooner, so that the next ping is not late if this one is answered.
                    KeepaliveAction::Wait(until.min(now + self.config.busy))
                } else {
                    KeepaliveAction::Lost
                };
            }
            self.state.pinged_at.set(None);
        }
        let silent_since = self
            .state
            .call_began_at
            .get()
            .map_or(last_read_at, |call_began_at| call_began_at.max(last_read_at));
        let max_silence = if busy {
            Some(self.config.busy)
        } else {
            self.config.idle
        };
        let is_silent = max_silence.is_some_and(|max_silence| silent_since + max_silence <= now);
        let may_ping = self
            .last_ping
            .is_none_or(|last_ping| last_ping + self.config.min_interval <= now);
        if is_silent && may_ping {
            self.state.pinged_at.set(Some(now));
            self.last_ping = Some(now);
            return KeepaliveAction::Ping(now + self.config.timeout.min(self.config.busy));
        }
        // A call can begin without notice to this timer, so it checks as often as a busy connection
        // needs.
        let next = silent_since + self.config.busy;
        KeepaliveAction::Wait(if next > now { next } else { now + self.config.busy })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TrackedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.state.last_read_at.set(Instant::now());
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TrackedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const SAIL: KeepaliveConfig = KeepaliveConfig {
        busy: secs(30),
        idle: Some(secs(30)),
        min_interval: secs(30),
        timeout: secs(20),
    };
    const SPARK: KeepaliveConfig = KeepaliveConfig {
        busy: secs(30),
        idle: None,
        min_interval: secs(300),
        timeout: secs(20),
    };
    const CLIENT: KeepaliveConfig = KeepaliveConfig {
        busy: secs(15),
        idle: Some(secs(120)),
        min_interval: secs(15),
        timeout: secs(20),
    };

    /// Simulates `total` seconds with a peer that answers pings or not; returns the times of pings
    /// and of the loss.
    fn live(
        config: KeepaliveConfig,
        total: u64,
        busy: impl Fn(u64) -> bool,
        answers: bool,
    ) -> (Vec<u64>, Option<u64>) {
        let mut keepalive = Keepalive::new(config, KeepaliveState::new(), None);
        let start = keepalive.state.last_read_at.get();
        let (mut at, mut pings) = (start + config.busy, Vec::new());
        while at <= start + secs(total) {
            let second = (at - start).as_secs();
            match keepalive.check(at, busy(second)) {
                KeepaliveAction::Wait(next) => {
                    assert!(next > at);
                    at = next;
                }
                KeepaliveAction::Ping(next) => {
                    pings.push(second);
                    if answers {
                        keepalive.state.last_read_at.set(at + Duration::from_millis(1));
                    }
                    at = next;
                }
                KeepaliveAction::Lost => return (pings, Some(second)),
            }
        }
        (pings, None)
    }

    #[tokio::test]
    async fn unanswered_pings_lose_the_connection_and_answered_ones_keep_it() {
        assert_eq!(live(CLIENT, 1000, |_| true, false), (vec![15], Some(35)));
        assert_eq!(live(SAIL, 1000, |_| true, false), (vec![30], Some(50)));
        assert_eq!(live(SPARK, 1000, |_| true, false), (vec![30], Some(50)));
        let (pings, lost) = live(CLIENT, 100, |_| true, true);
        assert_eq!((pings, lost), (vec![15, 30, 45, 60, 75, 90], None));
    }

    #[tokio::test]
    async fn spark_is_pinged_with_calls_only_and_5_minutes_apart() {
        let (pings, lost) = live(SPARK, 3600, |_| true, true);
        assert!(pings.len() > 9 && lost.is_none(), "{pings:?}");
        assert!(pings.windows(2).all(|pair| pair[1] - pair[0] >= 300), "{pings:?}");
        assert_eq!(live(SPARK, 3600, |_| false, false), (vec![], None));
        // A call after long silence: pinged within one period.
        let (pings, lost) = live(SPARK, 3600, |second| second > 1000, false);
        assert!((1000..=1060).contains(&pings[0]), "{pings:?}");
        assert_eq!(lost, Some(pings[0] + 20));
    }

    #[tokio::test]
    async fn a_client_without_calls_is_pinged_seldom() {
        let (pings, lost) = live(CLIENT, 1200, |_| false, true);
        assert_eq!(lost, None);
        assert!(
            pings
                .windows(2)
                .all(|pair| (120..140).contains(&(pair[1] - pair[0]))),
            "{pings:?}"
        );
    }

    #[tokio::test]
    async fn silence_before_a_call_does_not_count() {
        let mut keepalive = Keepalive::new(SPARK, KeepaliveState::new(), None);
        let call = keepalive.state.last_read_at.get() + secs(1000);
        keepalive.state.call_began_at.set(Some(call));
        let look = call + secs(1);
        assert_eq!(
            keepalive.check(look, true),
            KeepaliveAction::Wait(call + secs(30))
        );
        let look = call + secs(30);
        assert_eq!(
            keepalive.check(look, true),
            KeepaliveAction::Ping(look + secs(20))
        );
        assert_eq!(keepalive.check(look + secs(20), true), KeepaliveAction::Lost);
    }

    #[tokio::test]
    async fn any_received_byte_answers_a_ping() {
        let (near, mut far) = tokio::io::duplex(64);
        let state = KeepaliveState::new();
        let mut io = TrackedIo::new(near, &state);
        state.pinged_at.set(Some(Instant::now()));
        io.write_all(b"ping").await.unwrap();
        assert!(state.is_ping_pending());
        far.write_all(b"x").await.unwrap();
        io.read_u8().await.unwrap();
        assert!(!state.is_ping_pending());
    }
}
