//! The close of a client connection waits for its client.
//!
//! A socket that is closed while received bytes are unread resets the connection, and the kernel
//! drops what it has not delivered yet. A client that still receives the end of a response sends
//! window updates for its beginning, which HTTP/2 no longer reads. So after the end was sent, the
//! bytes of the client are read and dropped until it ends the connection too.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::transport::server::Connected;

/// Time without bytes of the client after which the connection is closed.
const MAX_SILENCE: Duration = Duration::from_secs(1);
/// Maximum time of all.
const MAX_LINGER: Duration = Duration::from_secs(30);
/// Maximum number of dropped bytes: the window updates of some 80 MB.
const MAX_DROPPED: usize = 64 * 1024;

/// A connection whose `poll_shutdown` waits for the client's end.
#[derive(Debug)]
pub struct LingeringIo<S> {
    inner: S,
    linger: Option<Box<Linger>>,
}

/// The wait after the end was sent.
#[derive(Debug)]
struct Linger {
    ends_at: Instant,
    timer: Pin<Box<Sleep>>,
    dropped: usize,
}

impl Linger {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            ends_at: now + MAX_LINGER,
            timer: Box::pin(sleep_until(now + MAX_SILENCE)),
            dropped: 0,
        }
    }

    /// Reads and drops bytes until the client's end, an error or a limit.
    fn poll_end(&mut self, inner: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<()> {
        let mut buf = [0; 4096];
        while self.dropped < MAX_DROPPED {
            let mut buf = ReadBuf::new(&mut buf);
            match Pin::new(&mut *inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.dropped += buf.filled().len();
                    let silent_at = Instant::now() + MAX_SILENCE;
                    self.timer.as_mut().reset(silent_at.min(self.ends_at));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl<S> LingeringIo<S> {
    /// A connection whose end was not sent yet.
    pub fn new(inner: S) -> Self {
        Self { inner, linger: None }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Connected> Connected for LingeringIo<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.inner.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LingeringIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LingeringIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, linger } = &mut *self;
        let linger = match linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut *inner).poll_shutdown(cx))?;
                linger.insert(Box::new(Linger::new()))
            }
        };
        linger.poll_end(inner, cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::task::JoinHandle;

    /// The client's end of a connection that is closed, and how long that takes.
    fn closing() -> (DuplexStream, JoinHandle<Duration>) {
        let (client, server) = tokio::io::duplex(256 * 1024);
        let closing = tokio::spawn(async move {
            let begun = Instant::now();
            LingeringIo::new(server).shutdown().await.unwrap();
            begun.elapsed()
        });
        (client, closing)
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_ends_with_the_client() {
        let (mut client, closing) = closing();
        for _ in 0..10 {
            tokio::time::sleep(MAX_SILENCE / 2).await;
            client.write_all(&[0; 13]).await.unwrap();
        }
        // The client has received the end.
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!(!closing.is_finished());
        drop(client);
        assert_eq!(closing.await.unwrap(), 5 * MAX_SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_waits_a_limited_time_for_a_limited_number_of_bytes() {
        let (_silent, closed) = closing();
        assert_eq!(closed.await.unwrap(), MAX_SILENCE);

        let (mut flood, closed) = closing();
        flood.write_all(&vec![0; MAX_DROPPED]).await.unwrap();
        assert_eq!(closed.await.unwrap(), Duration::ZERO);

        let (mut slow, closed) = closing();
        while slow.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(MAX_SILENCE / 2).await;
        }
        assert_eq!(closed.await.unwrap(), MAX_LINGER);
    }
}
