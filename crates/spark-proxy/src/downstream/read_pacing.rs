//! Reads from a client in small turns until its first valid token.
//!
//! HTTP/2 decodes all readable data before the first request is taken, and a short header block can
//! decode to seventy times its size. h2 cannot raise its stream limit during a connection, so that
//! limit must suit authenticated clients. Pacing bounds the memory for unauthenticated ones: the
//! requests of one turn are answered before more is read.
//!
//! Frames that carry no part of a call have a rate limit at all times
//! ([`crate::downstream::frame_rate`]).

use crate::downstream::frame_rate::{Allowed, FrameBudget};
use crate::grpc::unsent::Unsent;
use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes of one turn; exceeded by one read at most.
const TURN_BYTES: usize = 16 * 1024;

/// Read permission, shared by the connection and its reader.
#[derive(Debug)]
pub(crate) struct ReadPacing {
    left: Cell<usize>,
    unlimited: Cell<bool>,
    is_flood: Cell<bool>,
    frames: RefCell<FrameBudget>,
    unsent: Rc<Unsent>,
}

impl ReadPacing {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            left: Cell::new(TURN_BYTES),
            unlimited: Cell::default(),
            is_flood: Cell::default(),
            frames: RefCell::new(FrameBudget::new(Instant::now())),
            unsent: Unsent::new(),
        })
    }

    /// Unsent response bytes of the connection.
    pub(crate) fn unsent(&self) -> &Rc<Unsent> {
        &self.unsent
    }

    /// Allows one more turn, after all received calls were taken and all possible data was sent.
    pub(crate) fn next_turn(&self) {
        self.unsent.settle();
        self.left.set(TURN_BYTES);
    }

    fn sent(&self, written: &Poll<io::Result<usize>>) {
        self.unsent.written(written);
        if let Poll::Ready(Ok(bytes)) = written {
            self.frames.borrow_mut().passed(*bytes);
        }
    }

    /// Whether the connection must be closed because of a flood of frames that carry no part of a
    /// call.
    pub(crate) fn is_flood(&self) -> bool {
        self.is_flood.get()
    }

    /// Removes the limit after the first valid token.
    pub(crate) fn lift(&self) {
        self.unlimited.set(true);
    }
}

/// A connection that is read in turns.
#[derive(Debug)]
pub(crate) struct PacedIo<S> {
    inner: S,
    pacing: Rc<ReadPacing>,
    /// Expires when more may be read.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> PacedIo<S> {
    pub(crate) fn new(inner: S, pacing: &Rc<ReadPacing>) -> Self {
        Self {
            inner,
            pacing: Rc::clone(pacing),
            pause: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PacedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, pacing, pause } = &mut *self;
        if pacing.is_flood() {
            // Nothing more is read while the connection is closed.
            return Poll::Pending;
        }
        if let Some(paused) = pause {
            ready!(paused.as_mut().poll(cx));
            *pause = None;
        }
        let limited = !pacing.unlimited.get();
        if limited && pacing.left.get() == 0 {
            // Polls the connection again after its calls.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let now = Instant::now();
        let max = match pacing.frames.borrow_mut().allowed(now) {
            Allowed::Bytes(max) => max,
            Allowed::After(at) => {
                let paused = pause.insert(Box::pin(sleep_until(at)));
                ready!(paused.as_mut().poll(cx));
                return Poll::Pending;
            }
            Allowed::Flood => {
                // The poller of the connection closes it.
                pacing.is_flood.set(true);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        };
        let before = buf.filled().len();
        let read = if max < buf.remaining() {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(max));
            let read = Pin::new(inner).poll_read(cx, &mut part);
            let count = part.filled().len();
            buf.advance(count);
            read
        } else {
            Pin::new(inner).poll_read(cx, buf)
        };
        let bytes = &buf.filled()[before..];
        pacing.frames.borrow_mut().read(bytes);
        if limited {
            pacing.left.set(pacing.left.get().saturating_sub(bytes.len()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PacedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.pacing.sent(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.pacing.sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn one_turn_is_read_until_the_next_begins() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        tokio::io::AsyncWriteExt::write_all(&mut near, &[7; 5 * TURN_BYTES])
            .await
            .unwrap();
        let pacing = ReadPacing::new();
        let mut paced = PacedIo::new(far, &pacing);
        let mut chunk = [0; 1000];
        let mut read = 0;
        // Reads until nothing more may be read.
        let mut drain = async |read: &mut usize, paced: &mut PacedIo<tokio::io::DuplexStream>| {
            while let Some(Ok(count)) = poll_fn(|cx| {
                let mut buf = ReadBuf::new(&mut chunk);
                Poll::Ready(match Pin::new(&mut *paced).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) => Some(Ok(buf.filled().len())),
                    Poll::Ready(Err(error)) => Some(Err(error)),
                    Poll::Pending => None,
                })
            })
            .await
            {
                *read += count;
            }
        };
        drain(&mut read, &mut paced).await;
        assert!((TURN_BYTES..TURN_BYTES + 1000).contains(&read), "{read}");
        pacing.next_turn();
        drain(&mut read, &mut paced).await;
        assert!(
            (2 * TURN_BYTES..2 * (TURN_BYTES + 1000)).contains(&read),
            "{read}"
        );
        pacing.lift();
        let mut rest = vec![0; 5 * TURN_BYTES - read];
        paced.read_exact(&mut rest).await.unwrap();
    }
}
