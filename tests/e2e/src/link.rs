//! A connection between two processes that can be stopped or cut. Afterwards it continues:
//! bytes arrive late, not never.

use anyhow::Result;
use parking_lot::Mutex;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkMode {
    /// Everything passes.
    Open,
    /// Nothing passes; connections stay.
    Still,
    /// Connections end, and new ones too.
    Broken,
}

type Modes = watch::Receiver<LinkMode>;

/// The way; it ends when dropped.
#[derive(Debug)]
pub struct Link {
    /// Where it begins.
    pub address: SocketAddr,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    mode: watch::Sender<LinkMode>,
    task: JoinHandle<()>,
}

impl Link {
    /// Each new connection leads to the next of these that can be reached.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn to(targets: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (targets, mode) = (Arc::new(Mutex::new(targets)), watch::Sender::new(LinkMode::Open));
        let (to, modes) = (Arc::clone(&targets), mode.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let to = {
                    let mut targets = to.lock();
                    if !targets.is_empty() {
                        targets.rotate_left(1);
                    }
                    targets.clone()
                };
                tokio::spawn(carry(client, to, modes.subscribe()));
            }
        });
        Ok(Self {
            address,
            targets,
            mode,
            task,
        })
    }

    /// New connections lead to these from now on.
    pub fn point_at(&self, targets: Vec<SocketAddr>) {
        *self.targets.lock() = targets;
    }

    /// How it is from now on.
    pub fn set(&self, mode: LinkMode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, targets: Vec<SocketAddr>, mut modes: Modes) {
    let mut breaks = modes.clone();
    let connection = async {
        modes.wait_for(|mode| *mode != LinkMode::Still).await.ok()?;
        let server = connect(targets).await?;
        // Calls are small; Nagle's algorithm would add to each.
        client.set_nodelay(true).ok()?;
        server.set_nodelay(true).ok()?;
        let (client, server) = (client.into_split(), server.into_split());
        tokio::join!(
            pump(client.0, server.1, modes.clone()),
            pump(server.0, client.1, modes.clone())
        );
        Some(())
    };
    tokio::select! {
        _ = connection => {}
        _ = breaks.wait_for(|mode| *mode == LinkMode::Broken) => {}
    }
}

async fn connect(targets: Vec<SocketAddr>) -> Option<TcpStream> {
    for target in targets {
        if let Ok(stream) = TcpStream::connect(target).await {
            return Some(stream);
        }
    }
    None
}

/// Passes bytes until the end of one side, then ends the other.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut modes: Modes) {
    let mut bytes = vec![0; 32 << 10];
    while let Ok(read) = from.read(&mut bytes).await {
        if modes.wait_for(|mode| *mode != LinkMode::Still).await.is_err() {
            return;
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            break;
        }
    }
    // The other side may be gone already.
    let _ = to.shutdown().await;
}
