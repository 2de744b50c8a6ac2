//! A load balancer as simple as can be: each new connection goes to the next
//! of where it points at that moment that takes it. It can also cut what it
//! carries.

use anyhow::Result;
use parking_lot::Mutex;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The relay; it ends when dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    cuts: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts, pointing at `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::start_on(0, target).await
    }

    /// Starts on a port of its own choice, for clients with an address in their code.
    ///
    /// # Errors
    /// When the port is in use.
    pub async fn start_on(port: u16, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let targets = Arc::new(Mutex::new(vec![target]));
        let cuts = watch::Sender::new(0);
        let (to, cut) = (Arc::clone(&targets), cuts.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                // Fails only on a lost connection.
                let _ = client.set_nodelay(true);
                let to = {
                    let mut targets = to.lock();
                    targets.rotate_left(1);
                    targets.clone()
                };
                let mut cut = cut.subscribe();
                tokio::spawn(async move {
                    let Some(mut server) = first_that_answers(to).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Ok(Self {
            address,
            targets,
            cuts,
            task,
        })
    }

    /// New connections go there from now on.
    pub fn point_at(&self, target: SocketAddr) {
        self.balance(vec![target]);
    }

    /// New connections go to these in turn from now on, past those that are away.
    pub fn balance(&self, targets: Vec<SocketAddr>) {
        *self.targets.lock() = targets;
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}

async fn first_that_answers(targets: Vec<SocketAddr>) -> Option<TcpStream> {
    for target in targets {
        if let Ok(stream) = TcpStream::connect(target).await {
            // Fails only on a lost connection.
            let _ = stream.set_nodelay(true);
            return Some(stream);
        }
    }
    None
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
