//! Floods of HTTP/2 frames that are no calls: their effect on the latency of another client's calls
//! and on memory.

use crate::common;
use crate::common::raw::frame;
use crate::common::{Client, OwnProcess, Raw, flags, kinds, within};
use std::time::{Duration, Instant};
use test_support::fake_spark::request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

const EXECUTE: &str = "/spark.connect.SparkConnectService/ExecutePlan";
const INITIAL_WINDOW: u16 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
const FLOODING: Duration = Duration::from_secs(2);
/// What a busy machine adds to a call of a debug build, whoever else calls.
/// Before floods had a rate, they added 50 to 100 ms. A release build
/// (`make bench-floods`) has no allowance.
const NOISE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 20 } else { 0 });
const MAX_MORE_MIB: u64 = 64;
/// The p99 of a second is one of its five slowest calls, so the median of several counts.
const ROUNDS: usize = if cfg!(debug_assertions) { 1 } else { 3 };

async fn p99(client: &Client, proxy: &OwnProcess, time: Duration) -> Duration {
    let (mut times, began) = (Vec::new(), Instant::now());
    let rpc = proxy.rpc().body(request(b"other"));
    while began.elapsed() < time {
        let one = Instant::now();
        let reply = client.call(rpc.clone()).await;
        assert_eq!(reply.code(), Code::Ok, "{reply:?}");
        times.push(one.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    times.sort();
    times[times.len() * 99 / 100]
}

/// Sends the frames repeatedly on one connection, and reads the responses or not.
fn flood(address: std::net::SocketAddr, begin: Vec<u8>, frames: Vec<u8>, reads: bool) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let until = Instant::now() + FLOODING;
            while Instant::now() < until {
                let Ok(raw) = Raw::connect(address, &[]).await else {
                    return;
                };
                let (mut from, mut to) = raw.tcp.into_split();
                let reading = tokio::spawn(async move {
                    let mut sink = vec![0; 64 * 1024];
                    while reads && matches!(from.read(&mut sink).await, Ok(count) if count > 0) {}
                    if !reads {
                        std::future::pending::<()>().await;
                    }
                });
                if to.write_all(&begin).await.is_ok() {
                    while Instant::now() < until {
                        let sent = tokio::time::timeout(Duration::from_millis(500), to.write_all(&frames));
                        if !matches!(sent.await, Ok(Ok(()))) {
                            break;
                        }
                    }
                }
                reading.abort();
            }
        });
    });
}

/// Beside one flood.
#[derive(Debug)]
struct Beside {
    /// p99 through the proxy that gets the flood.
    flooded: Duration,
    /// p99 of another proxy, without a flood: what the machine adds to any call through a proxy.
    spared: Duration,
    /// p99 of calls straight to the server.
    direct: Duration,
    /// p99 through the proxy before the flood.
    alone: Duration,
    more_mib: u64,
}

impl Beside {
    /// The p99 beside the flood as a multiple of what calls take without one. A call through a proxy
    /// waits for a processor twice as often as a direct one, so on a busy machine a spared proxy
    /// alone may need more than twice a direct call.
    fn ratio(&self) -> f64 {
        let flooded = self.flooded.saturating_sub(NOISE);
        let others = self.direct.max(self.alone).max(self.spared);
        flooded.as_secs_f64() / others.as_secs_f64()
    }

    fn of_direct(&self) -> f64 {
        self.flooded.as_secs_f64() / self.direct.max(self.alone).as_secs_f64()
    }
}

async fn beside(many: &[u8], reads: bool) -> Beside {
    let proxy = OwnProcess::start(|config| config.listen.workers = 1).await;
    let other = OwnProcess::start(|config| config.listen.workers = 1).await;
    let client = Client::plain(proxy.address).await.unwrap();
    let spared = Client::plain(other.address).await.unwrap();
    let direct = Client::plain(proxy.spark.address()).await.unwrap();
    for (client, proxy) in [(&client, &proxy), (&spared, &other)] {
        p99(client, proxy, Duration::from_millis(300)).await;
    }
    let (alone, before) = (
        p99(&client, &proxy, Duration::from_secs(1)).await,
        proxy.peak_mib(),
    );
    let block = Raw::headers(EXECUTE, &proxy.token(), &[("x-shape", "hang")]);
    let begin = frame(kinds::HEADERS, flags::END_HEADERS, 1, &block);
    for _ in 0..4 {
        let frames = many.repeat(16 * 1024 / many.len());
        flood(proxy.address, begin.clone(), frames, reads);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let time = FLOODING - Duration::from_millis(300);
    let (flooded, spared, direct) = tokio::join!(
        p99(&client, &proxy, time),
        p99(&spared, &other, time),
        p99(&direct, &proxy, time)
    );
    Beside {
        flooded,
        spared,
        direct,
        alone,
        more_mib: proxy.peak_mib().saturating_sub(before),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_do_not_slow_other_clients() {
    let _alone = crate::alone().await;
    let mut missed = Vec::new();
    for (number, (what, many)) in [
        ("SETTINGS", frame(kinds::SETTINGS, flags::NONE, 0, &[])),
        ("PING", frame(kinds::PING, flags::NONE, 0, &[0; 8])),
        (
            "WINDOW_UPDATE",
            frame(kinds::WINDOW_UPDATE, flags::NONE, 0, &1_u32.to_be_bytes()),
        ),
        (
            "WINDOW_UPDATE of a stream",
            frame(kinds::WINDOW_UPDATE, flags::NONE, 1, &1_u32.to_be_bytes()),
        ),
        ("empty DATA", frame(kinds::DATA, flags::NONE, 1, &[])),
        (
            "PRIORITY",
            frame(kinds::PRIORITY, flags::NONE, 3, &[0, 0, 0, 0, 1]),
        ),
        (
            "RST_STREAM",
            frame(kinds::RST_STREAM, flags::NONE, 1, &8_u32.to_be_bytes()),
        ),
        ("unknown frames", frame(0xbe, flags::NONE, 0, &[])),
    ]
    .into_iter()
    .enumerate()
    {
        let mut ratios = Vec::new();
        for _ in 0..ROUNDS {
            let beside = beside(&many, number % 2 == 0).await;
            let (ratio, of_direct) = (beside.ratio(), beside.of_direct());
            println!("{what}: {ratio:.2} ×, {of_direct:.2} × direct or alone, {beside:?}");
            assert!(beside.more_mib <= MAX_MORE_MIB, "{what}: {beside:?}");
            ratios.push(ratio);
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        println!("{what}: {median:.2} ×, the median of {ROUNDS}");
        if median > 2.0 {
            missed.push(format!("{what}: {ratios:.2?} ×"));
        }
    }
    assert!(missed.is_empty(), "p99 beside floods: {missed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_continuing_flood_ends_its_connection() {
    let _alone = crate::alone().await;
    let proxy = OwnProcess::start(|_| {}).await;
    for many in [
        frame(kinds::PING, flags::NONE, 0, &[0; 8]),
        frame(kinds::PRIORITY, flags::NONE, 3, &[0, 0, 0, 0, 1]),
    ] {
        let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
        let began = Instant::now();
        let many = many.repeat(100);
        let code = within("it is ended", async {
            let (mut from, mut to) = raw.tcp.split();
            let sending = async {
                while to.write_all(&many).await.is_ok() {}
                std::future::pending::<()>().await;
            };
            let mut came = Vec::new();
            tokio::select! {
                _ = from.read_to_end(&mut came) => {}
                () = sending => {}
            }
            // The error code ends the GOAWAY, which is the last frame.
            let goaway = came
                .windows(17)
                .rev()
                .find(|bytes| bytes[3] == kinds::GOAWAY && bytes[5..9] == [0; 4]);
            goaway.map(|bytes| u32::from_be_bytes(bytes[13..17].try_into().unwrap()))
        })
        .await;
        // A TCP reset may arrive first, because the flood was not read.
        assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
        assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
        let (_, metrics) = common::http_get(proxy.admin, "/metrics").await;
        let floods = "spark_proxy_connections_refused_total{reason=\"flood\"}";
        assert!(common::read_metric(&metrics, floods) >= 1.0);
    }
}

/// A response of which the client takes one byte is not buffered by HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_of_one_byte_hold_little_memory() {
    let _alone = crate::alone().await;
    let proxy = OwnProcess::start(|_| {}).await;
    let client = Client::plain(proxy.address).await.unwrap();
    assert_eq!(client.call(proxy.rpc()).await.code(), Code::Ok);
    let before = proxy.peak_mib();
    let block = Raw::headers(EXECUTE, &proxy.token(), &[("x-shape", "stream 1 40000")]);
    let mut raws = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::connect(proxy.address, &[(INITIAL_WINDOW, 1)]).await.unwrap();
        for stream in (1..1001).step_by(2) {
            raw.send(kinds::HEADERS, flags::END_HEADERS, stream, &block)
                .await
                .unwrap();
            raw.send(kinds::DATA, flags::END_STREAM, stream, &request(b"go"))
                .await
                .unwrap();
        }
        raws.push(raw);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let more = proxy.peak_mib().saturating_sub(before);
    println!("2000 windows of one byte: {more} MiB more");
    assert!(more <= MAX_MORE_MIB, "{more} MiB more");
    drop(raws);
    within("others may call again", async {
        while client.call(proxy.rpc()).await.code() != Code::Ok {}
    })
    .await;
}

/// A client that opens its windows and reads nothing from its socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_socket_holds_little_memory() {
    let proxy = OwnProcess::start(|config| {
        config.limits.unread_bytes_per_session = 16 << 20;
    })
    .await;
    let client = Client::plain(proxy.address).await.unwrap();
    assert_eq!(client.call(proxy.rpc()).await.code(), Code::Ok);
    let before = proxy.peak_mib();
    let block = Raw::headers(EXECUTE, &proxy.token(), &[("x-shape", "stream 1 400000")]);
    let mut raw = Raw::connect(proxy.address, &[(INITIAL_WINDOW, 0x7fff_ffff)])
        .await
        .unwrap();
    let all = (0x7fff_ffff_u32 - 65_535).to_be_bytes();
    raw.send(kinds::WINDOW_UPDATE, flags::NONE, 0, &all)
        .await
        .unwrap();
    for stream in (1..1001).step_by(2) {
        raw.send(kinds::HEADERS, flags::END_HEADERS, stream, &block)
            .await
            .unwrap();
        raw.send(kinds::DATA, flags::END_STREAM, stream, &request(b"go"))
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let more = proxy.peak_mib().saturating_sub(before);
    println!("500 responses to a socket that nobody reads: {more} MiB more");
    // A part passes immediately: unread bytes are counted at intervals.
    assert!(more <= 128, "{more} MiB more");
    drop(raw);
    assert_eq!(client.call(proxy.rpc()).await.code(), Code::Ok);
}
