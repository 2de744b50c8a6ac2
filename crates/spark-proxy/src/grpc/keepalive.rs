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
pub(crate) struct Rules {
    /// Silence before a ping on a connection with calls.
    pub(crate) busy: Duration,
    /// The same without calls; at least as long. `None`: no pings then.
    pub(crate) idle: Option<Duration>,
    /// Minimum interval between two pings.
    pub(crate) apart: Duration,
    /// Time limit for any byte after a ping.
    pub(crate) timeout: Duration,
}

/// Last read and pending ping of one connection.
#[derive(Debug)]
pub(crate) struct Ear {
    heard: Cell<Instant>,
    /// Time of the last change from no calls to one: silence before that is normal.
    began: Cell<Option<Instant>>,
    asked: Cell<Option<Instant>>,
}

/// A connection that records when bytes arrive.
#[derive(Debug)]
pub(crate) struct Heard<T> {
    io: T,
    ear: Rc<Ear>,
}

/// Keepalive of one connection.
pub(crate) struct Pulse {
    rules: Rules,
    ear: Rc<Ear>,
    pings: Option<PingPong>,
    last_ping: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// Result of a keepalive check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Check again at this time.
    Wait(Instant),
    /// Send a ping, and check again at this time.
    Ping(Instant),
    /// The connection is lost.
    Lost,
}

impl Ear {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            heard: Cell::new(Instant::now()),
            began: Cell::default(),
            asked: Cell::default(),
        })
    }

    /// Records the start of the first call.
    pub(crate) fn begin(&self) {
        self.began.set(Some(Instant::now()));
    }

    /// Whether a ping was sent and nothing arrived since.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.asked.get().is_some_and(|asked| self.heard.get() <= asked)
    }
}

impl<T> Heard<T> {
    pub(crate) fn new(io: T, ear: &Rc<Ear>) -> Self {
        Self {
            io,
            ear: Rc::clone(ear),
        }
    }
}

impl Pulse {
    pub(crate) fn new(rules: Rules, ear: Rc<Ear>, pings: Option<PingPong>) -> Self {
        let timer = Box::pin(tokio::time::sleep(rules.busy));
        Self {
            rules,
            ear,
            pings,
            last_ping: None,
            timer,
        }
    }

    /// Waits for the next check and performs it. Cancel-safe: the only await is the timer.
    pub(crate) async fn next(&mut self, is_busy: impl Fn() -> bool) -> Beat {
        std::future::poll_fn(|cx| self.timer.as_mut().poll(cx)).await;
        let beat = self.look(Instant::now(), is_busy());
        match beat {
            Beat::Wait(at) => self.timer.as_mut().reset(at),
            Beat::Ping(at) => {
                self.ping();
                self.timer.as_mut().reset(at);
            }
            Beat::Lost => {}
        }
        beat
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

    fn look(&mut self, now: Instant, busy: bool) -> Beat {
        let heard = self.ear.heard.get();
        if let Some(asked) = self.ear.asked.get() {
            if heard <= asked {
                let until = asked + self.rules.timeout;
                return if now < until {
                    // Sooner, so that the next ping is not late if this one is answered.
                    Beat::Wait(until.min(now + self.rules.busy))
                } else {
                    Beat::Lost
                };
            }
            self.ear.asked.set(None);
        }
        let silent_since = self.ear.began.get().map_or(heard, |began| began.max(heard));
        let bearable = if busy {
            Some(self.rules.busy)
        } else {
            self.rules.idle
        };
        let silent = bearable.is_some_and(|bearable| silent_since + bearable <= now);
        let apart = self
            .last_ping
            .is_none_or(|last_ping| last_ping + self.rules.apart <= now);
        if silent && apart {
            self.ear.asked.set(Some(now));
            self.last_ping = Some(now);
            return Beat::Ping(now + self.rules.timeout.min(self.rules.busy));
        }
        // A call can begin without notice to this timer, so it checks as often as a busy connection
        // needs.
        let next = silent_since + self.rules.busy;
        Beat::Wait(if next > now { next } else { now + self.rules.busy })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.ear.heard.set(Instant::now());
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
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

    const SAIL: Rules = Rules {
        busy: secs(30),
        idle: Some(secs(30)),
        apart: secs(30),
        timeout: secs(20),
    };
    const SPARK: Rules = Rules {
        busy: secs(30),
        idle: None,
        apart: secs(300),
        timeout: secs(20),
    };
    const CLIENT: Rules = Rules {
        busy: secs(15),
        idle: Some(secs(120)),
        apart: secs(15),
        timeout: secs(20),
    };

    /// Simulates `total` seconds with a peer that answers pings or not; returns the times of pings
    /// and of the loss.
    fn live(rules: Rules, total: u64, busy: impl Fn(u64) -> bool, answers: bool) -> (Vec<u64>, Option<u64>) {
        let mut pulse = Pulse::new(rules, Ear::new(), None);
        let start = pulse.ear.heard.get();
        let (mut at, mut pings) = (start + rules.busy, Vec::new());
        while at <= start + secs(total) {
            let second = (at - start).as_secs();
            match pulse.look(at, busy(second)) {
                Beat::Wait(next) => {
                    assert!(next > at);
                    at = next;
                }
                Beat::Ping(next) => {
                    pings.push(second);
                    if answers {
                        pulse.ear.heard.set(at + Duration::from_millis(1));
                    }
                    at = next;
                }
                Beat::Lost => return (pings, Some(second)),
            }
        }
        (pings, None)
    }

    #[tokio::test]
    async fn who_does_not_answer_is_given_up_and_who_does_is_not() {
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
    async fn silence_before_a_call_is_not_held_against_it() {
        let mut pulse = Pulse::new(SPARK, Ear::new(), None);
        let call = pulse.ear.heard.get() + secs(1000);
        pulse.ear.began.set(Some(call));
        let look = call + secs(1);
        assert_eq!(pulse.look(look, true), Beat::Wait(call + secs(30)));
        let look = call + secs(30);
        assert_eq!(pulse.look(look, true), Beat::Ping(look + secs(20)));
        assert_eq!(pulse.look(look + secs(20), true), Beat::Lost);
    }

    #[tokio::test]
    async fn any_byte_is_a_sign_of_life() {
        let (near, mut far) = tokio::io::duplex(64);
        let ear = Ear::new();
        let mut io = Heard::new(near, &ear);
        ear.asked.set(Some(Instant::now()));
        io.write_all(b"ping").await.unwrap();
        assert!(ear.is_in_doubt());
        far.write_all(b"x").await.unwrap();
        io.read_u8().await.unwrap();
        assert!(!ear.is_in_doubt());
    }
}
