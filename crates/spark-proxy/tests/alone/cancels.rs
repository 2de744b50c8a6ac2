//! A storm of calls that their client cancels early, beside long streams on the same connections, at
//! the same compute. `CANCELS=50000` runs the whole (`make cancels`).

use crate::common;
use crate::common::{Client, OwnProcess, Rpc, read_metric, within};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, request};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::Code;

/// Cancelled calls of the short form.
const CANCELS: usize = 10_000;
const CANCELS_PER_SECOND: u32 = 2000;
/// Cancelled calls at the same time: a busy machine gets fewer a second.
const CONCURRENT_CANCELS: usize = 128;
/// Connections with cancelled calls; the first half of the long streams is on the same ones.
const CONNECTIONS: usize = 4;
const LONG_STREAMS: usize = 20;
const MESSAGES: usize = 5000;
const MESSAGE: usize = 1000;
/// Time between two reads of a long stream.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// The longest time for which a long stream may stand still.
const MAX_STANDSTILL: Duration = Duration::from_secs(5);
/// Time limit of the storm.
const TIMEOUT: Duration = Duration::from_secs(300);

/// When a call is cancelled.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// Its request has not ended.
    Unfinished,
    /// Directly after its request.
    Requested,
    /// It runs at the compute.
    Running,
    /// The response has begun.
    Answered,
}

const MOMENTS: [Moment; 4] = [
    Moment::Unfinished,
    Moment::Requested,
    Moment::Running,
    Moment::Answered,
];

/// Starts a call and cancels it.
async fn cancel_one(client: Client, rpc: Rpc, moment: Moment) {
    let shape = match moment {
        Moment::Unfinished | Moment::Requested | Moment::Running => Shape::Hang,
        Moment::Answered => Shape::HangAfterOne,
    };
    let mut running = client.begin(&rpc.shape(shape)).await.unwrap();
    match moment {
        Moment::Unfinished => {}
        Moment::Requested => running.finish(request(b"go")),
        Moment::Running => {
            running.finish(request(b"go"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Moment::Answered => {
            running.finish(request(b"go"));
            let (_upload, response) = within("its response begins", running.head()).await.unwrap();
            assert!(
                !response.body().is_end_stream(),
                "it was rejected: {:?}",
                response.headers()
            );
        }
    }
}

/// Cancels calls at the rate; returns how long it took.
async fn storm(clients: &[Client], rpc: &Rpc, cancels: usize) -> Duration {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CANCELS_PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let places = Arc::new(Semaphore::new(CONCURRENT_CANCELS));
    let mut calls = JoinSet::new();
    for number in 0..cancels {
        ticks.tick().await;
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let client = clients[number % clients.len()].clone();
        let moment = MOMENTS[number / clients.len() % MOMENTS.len()];
        let cancelling = cancel_one(client, rpc.clone(), moment);
        calls.spawn(async move {
            cancelling.await;
            drop(place);
        });
        while let Some(ended) = calls.try_join_next() {
            ended.unwrap();
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
    began.elapsed()
}

/// Reads a long stream slowly until the storm is over, then to its end. Returns its bytes and the
/// longest standstill.
async fn read_long(client: Client, rpc: Rpc, storm_is_over: Arc<AtomicBool>) -> (usize, Duration) {
    let mut running = client
        .begin(&rpc.shape(Shape::Stream(MESSAGES, MESSAGE)))
        .await
        .unwrap();
    running.finish(request(b"go"));
    let (_upload, response) = within("headers", running.head()).await.unwrap();
    let mut body = response.into_body();
    let (mut bytes, mut longest) = (0, Duration::ZERO);
    loop {
        let began = Instant::now();
        let Some(data) = within("data of a long stream", body.data()).await else {
            break;
        };
        longest = longest.max(began.elapsed());
        let data: Bytes = data.unwrap();
        bytes += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
        let slept = Instant::now();
        while !storm_is_over.load(Ordering::Relaxed)
            && (bytes >= MESSAGES * MESSAGE / 2 || slept.elapsed() < READ_INTERVAL)
        {
            tokio::time::sleep(READ_INTERVAL).await;
        }
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    let status = tonic::Status::from_header_map(&trailers).unwrap();
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    (bytes, longest)
}

/// Waits until every call has ended, at the compute and in the proxy. `finished` calls ended without a
/// cancel.
async fn nothing_is_left(proxy: &OwnProcess, finished: usize) {
    within("every forwarded call is reset", async {
        proxy
            .spark
            .until(|seen| seen.requests.len() == seen.resets + finished)
            .await;
    })
    .await;
    within("every call has ended", async {
        loop {
            let (_, metrics) = common::http_get(proxy.admin, "/metrics").await;
            let of = |name| read_metric(&metrics, name);
            if of("spark_proxy_calls_opened_total") == of("spark_proxy_calls_total") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_early_cancels_hurts_no_other_call() {
    let _alone = crate::alone().await;
    let cancels = std::env::var("CANCELS").map_or(CANCELS, |count| count.parse().unwrap());
    let proxy = OwnProcess::start(|_| {}).await;
    let rpc = proxy.rpc();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS + LONG_STREAMS / 2 {
        let client = Client::plain(proxy.address).await.unwrap();
        assert_eq!(client.call(rpc.clone()).await.code(), Code::Ok);
        clients.push(client);
    }
    let storm_is_over = Arc::new(AtomicBool::new(false));
    let mut long = JoinSet::new();
    for number in 0..LONG_STREAMS {
        let client = if number < LONG_STREAMS / 2 {
            clients[number % CONNECTIONS].clone()
        } else {
            clients[CONNECTIONS + number - LONG_STREAMS / 2].clone()
        };
        long.spawn(read_long(client, rpc.clone(), Arc::clone(&storm_is_over)));
    }
    let before = proxy.peak_mib();
    let took = tokio::time::timeout(TIMEOUT, storm(&clients[..CONNECTIONS], &rpc, cancels))
        .await
        .unwrap();
    assert_eq!(
        long.try_join_next().map(|ended| ended.unwrap()),
        None,
        "a long stream ended"
    );
    storm_is_over.store(true, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    for (bytes, standstill) in long.join_all().await {
        assert_eq!(bytes, MESSAGES * MESSAGE);
        longest = longest.max(standstill);
    }
    let more = proxy.peak_mib().saturating_sub(before);
    println!(
        "{cancels} calls cancelled in {took:.1?} ({:.0}/s), {more} MiB more, longest standstill of a long stream {longest:.1?}",
        cancels as f64 / took.as_secs_f64()
    );
    assert!(longest <= MAX_STANDSTILL, "{longest:?}");
    assert!(more <= 64, "{more} MiB more");
    nothing_is_left(&proxy, clients.len() + LONG_STREAMS).await;
    for client in &clients {
        assert_eq!(
            client.call(rpc.clone()).await.code(),
            Code::Ok,
            "the connection continues"
        );
    }
}
