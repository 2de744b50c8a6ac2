//! The backend: Spark Connect in shape, on raw HTTP/2, as cheap as possible.
//!
//! It is a process of its own. One thread per core runs a runtime of its own;
//! connections are dealt out in turn. It has one port that takes any message
//! and as many as asked for that look for the right identity in every message.
//! What to answer is in the request itself, so it passes every proxy.

use crate::inspect::{Tally, Walker};
use crate::protocol::{Addresses, Counts};
use crate::wire::{self, Method, Shape};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::Request;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

/// One for the port that takes anything, one for those that look.
#[derive(Debug, Default)]
struct Tallies {
    open: Tally,
    asserting: Tally,
}

impl Tallies {
    fn of(&self, expect: bool) -> &Tally {
        if expect { &self.asserting } else { &self.open }
    }
}

/// A connection on its way to a thread.
struct Accepted {
    tcp: std::net::TcpStream,
    expect: bool,
}

/// What the calls of one thread share.
struct Server {
    tallies: Arc<Tallies>,
    /// Messages of results, made once: by session and size.
    batches: RefCell<HashMap<(u64, usize), Bytes>>,
}

/// Runs the backend until its standard input ends. Says where it listens, and
/// at every line that comes in what it counted.
///
/// # Errors
/// A port or thread that cannot be had.
pub fn run(asserting: usize, threads: usize) -> Result<()> {
    let tallies = Arc::new(Tallies::default());
    let workers = (0..threads)
        .map(|index| spawn_worker(index, Arc::clone(&tallies)))
        .collect::<Result<Vec<_>>>()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async move {
            let mut addresses = Vec::new();
            for port in 0..=asserting {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                addresses.push(listener.local_addr()?);
                tokio::spawn(deal(listener, port > 0, workers.clone()));
            }
            let open = addresses.remove(0);
            println!(
                "{}",
                serde_json::to_string(&Addresses {
                    open,
                    asserting: addresses
                })?
            );
            let mut lines = BufReader::new(tokio::io::stdin()).lines();
            while lines.next_line().await?.is_some() {
                let tally = tallies.of(true);
                let counts = Counts {
                    messages: tally.messages.load(Relaxed),
                    strangers: tally.strangers.load(Relaxed),
                    broken: tally.broken.load(Relaxed),
                };
                println!("{}", serde_json::to_string(&counts)?);
            }
            Ok(())
        })
}

async fn deal(listener: TcpListener, expect: bool, workers: Vec<mpsc::UnboundedSender<Accepted>>) {
    let mut next = 0;
    while let Ok((tcp, _)) = listener.accept().await {
        let Ok(tcp) = tcp.into_std() else { continue };
        let _ = workers[next % workers.len()].send(Accepted { tcp, expect });
        next += 1;
    }
}

fn spawn_worker(index: usize, tallies: Arc<Tallies>) -> Result<mpsc::UnboundedSender<Accepted>> {
    let (sender, mut accepted) = mpsc::unbounded_channel::<Accepted>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name(format!("backend-{index}"))
        .spawn(move || {
            let server = Rc::new(Server {
                tallies,
                batches: RefCell::default(),
            });
            LocalSet::new().block_on(&runtime, async move {
                while let Some(Accepted { tcp, expect }) = accepted.recv().await {
                    let server = Rc::clone(&server);
                    spawn_local(async move {
                        // A connection that breaks is the business of who made it.
                        let _ = connection(server, tcp, expect).await;
                    });
                }
            });
        })
        .context("a thread")?;
    Ok(sender)
}

async fn connection(server: Rc<Server>, tcp: std::net::TcpStream, expect: bool) -> Result<()> {
    let tcp = tokio::net::TcpStream::from_std(tcp)?;
    tcp.set_nodelay(true)?;
    let mut http = h2::server::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(256 << 10)
        .max_concurrent_streams(1024)
        .max_send_buffer_size(1 << 20)
        .handshake(tcp)
        .await?;
    while let Some(call) = http.accept().await {
        let (request, respond) = call?;
        let server = Rc::clone(&server);
        spawn_local(async move {
            if let Err(error) = server.serve(request, respond, expect).await {
                // Calls that the other side gave up are not broken.
                if !error.is::<h2::Error>() {
                    server.tallies.of(expect).broken.fetch_add(1, Relaxed);
                }
            }
        });
    }
    Ok(())
}

impl Server {
    async fn serve(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        expect: bool,
    ) -> Result<()> {
        let method = Method::of(request.uri().path()).context("an unknown method")?;
        let mut body = request.into_body();
        let mut walker = Walker::default();
        // Queries are small and needed whole; uploads pass by.
        let mut whole = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            walker
                .feed(&data, expect, self.tallies.of(expect))
                .ok()
                .context("not a message")?;
            if method == Method::Execute {
                whole.extend_from_slice(&data);
            }
            let _ = body.flow_control().release_capacity(data.len());
        }
        anyhow::ensure!(walker.is_between_messages(), "half a message");
        let session = String::from_utf8(walker.session().to_vec())?;
        let mut stream = respond.send_response(wire::response_headers(), false)?;
        if method == Method::Execute {
            let shape = whole
                .get(5..)
                .and_then(Shape::asked)
                .context("a query without its shape")?;
            let index = crate::callers::index_of(session.as_bytes()).context("an unknown session")?;
            let message = self.batch(index, shape.size);
            for _ in 0..shape.count {
                send(&mut stream, message.clone()).await?;
            }
            send(&mut stream, wire::complete(index)).await?;
        } else {
            stream.send_data(wire::answer(method, session), false)?;
        }
        stream.send_trailers(wire::trailers())?;
        Ok(())
    }

    fn batch(&self, index: u64, size: usize) -> Bytes {
        self.batches
            .borrow_mut()
            .entry((index, size))
            .or_insert_with(|| wire::batch(index, size))
            .clone()
    }
}

/// Sends as the window allows.
pub(crate) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(granted) => granted?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        stream.send_data(piece, false)?;
    }
    Ok(())
}
