//! A TCP relay that a test can freeze: both ends stay connected and nothing passes, as when a machine
//! or a network fails silently.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    frozen: Arc<watch::Sender<bool>>,
}

impl Relay {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = Arc::new(watch::Sender::new(false));
        let state = Arc::clone(&frozen);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else {
                    continue;
                };
                let frozen = state.subscribe();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::spawn(pass(near_read, far_write, frozen.clone()));
                tokio::spawn(pass(far_read, near_write, frozen));
            }
        });
        Self { address, frozen }
    }

    /// Freezes the existing connections. New ones work.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
        self.frozen.send_replace(false);
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = tokio::select! {
            biased;
            _ = frozen.changed() => {
                // Open until the end of the test; read bytes are dropped.
                tokio::time::sleep(Duration::from_secs(600)).await;
                return;
            }
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        if len == 0 || to.write_all(&buffer[..len]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
