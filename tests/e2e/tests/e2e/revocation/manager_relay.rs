//! A way to session-manager's internal API on which the watches of routes can be cut while every
//! other call passes.

use anyhow::Result;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use parking_lot::Mutex;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The only method that is cut.
const WATCH: &str = "/WatchRoutes";
const WINDOW: u32 = 16 << 20;

/// The relay; it ends when dropped.
#[derive(Debug)]
pub(super) struct ManagerRelay {
    /// Where it listens.
    pub(super) address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    is_cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ManagerRelay {
    /// Starts; it leads nowhere until it points at session-manager.
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let target = Arc::new(Mutex::new(address));
        let is_cut = watch::Sender::new(false);
        let (to, cuts) = (Arc::clone(&target), is_cut.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, cuts) = (*to.lock(), cuts.subscribe());
                // The peers see how a connection ends.
                tokio::spawn(async move { drop(serve(client, to, cuts).await) });
            }
        });
        Ok(Self {
            address,
            target,
            is_cut,
            task,
        })
    }

    /// Connections lead there from now on.
    pub(super) fn point_at(&self, target: SocketAddr) {
        *self.target.lock() = target;
    }

    /// Cuts the watches: running ones and new ones carry nothing and do not end. Or lets them pass
    /// again: those that were cut end.
    pub(super) fn cut_watches(&self, cut: bool) {
        self.is_cut.send_replace(cut);
    }
}

impl Drop for ManagerRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, target: SocketAddr, cuts: watch::Receiver<bool>) -> Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    let mut from = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(client)
        .await?;
    let (to, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(server)
        .await?;
    let mut connection = tokio::spawn(connection);
    loop {
        let call = tokio::select! {
            call = from.accept() => call,
            _ = &mut connection => return Ok(()),
        };
        let Some(call) = call else { break };
        let (request, respond) = call?;
        let (to, cuts) = (to.clone(), cuts.clone());
        // A dropped stream is reset.
        tokio::spawn(async move { drop(pass(request, respond, to, cuts).await) });
    }
    connection.abort();
    Ok(())
}

/// Passes one call, until it ends or, if it is a watch, was cut.
async fn pass(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    to: SendRequest<Bytes>,
    mut cuts: watch::Receiver<bool>,
) -> Result<()> {
    if !request.uri().path().ends_with(WATCH) {
        return forward(request, respond, to).await;
    }
    let mut forwarding = Box::pin(forward(request, respond, to));
    if !*cuts.borrow() {
        tokio::select! {
            ended = &mut forwarding => return ended,
            _ = cuts.wait_for(|cut| *cut) => {}
        }
    }
    // Nothing passes until the end of the cut.
    cuts.wait_for(|cut| !*cut).await?;
    Ok(())
}

async fn forward(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    to: SendRequest<Bytes>,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    let (response, mut upload) = to
        .ready()
        .await?
        .send_request(Request::from_parts(head, ()), false)?;
    let uploading = async {
        // Whoever has answered may read no more.
        if let Ok(false) = copy(&mut body, &mut upload).await {
            let _ = upload.send_data(Bytes::new(), true);
        }
        std::future::pending::<Result<()>>().await
    };
    let downloading = async {
        let (head, mut body) = response.await?.into_parts();
        let ended = body.is_end_stream();
        let mut download = respond.send_response(Response::from_parts(head, ()), ended)?;
        if ended {
            return Ok(());
        }
        if copy(&mut body, &mut download).await? {
            return Ok(());
        }
        match body.trailers().await? {
            Some(trailers) => download.send_trailers(trailers)?,
            None => download.send_data(Bytes::new(), true)?,
        }
        Ok(())
    };
    tokio::select! {
        ended = downloading => ended,
        failed = uploading => failed,
    }
}

/// Copies all data of a stream; messages of session-manager are small, so they wait for no window.
/// Returns whether the last of it ended the stream: HTTP/2 counts empty frames as a flood.
async fn copy(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<bool> {
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        let ended = from.is_end_stream();
        to.send_data(data, ended)?;
        if ended {
            return Ok(true);
        }
    }
    Ok(false)
}
