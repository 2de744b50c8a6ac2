//! Clients that violate the protocols, beside a healthy one: the healthy one continues, the proxy
//! uses little memory, and the hostile ones lose their connection or get an error. All attacks are
//! bounded in count and time.

use crate::common;
use crate::common::raw::frame;
use crate::common::{Client, OwnProcess, Raw, Reply, flags, kinds, send, within};
use session_core::Reason;
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, framed, request};
use tokio::io::AsyncWriteExt as _;
use tonic::Code;

const EXECUTE: &str = "/spark.connect.SparkConnectService/ExecutePlan";
const INITIAL_WINDOW: u16 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
/// Limit for a debug build.
const MAX_MIB: u64 = 96;

/// Runs an attack while a healthy client makes calls.
async fn beside_a_healthy_client(proxy: &OwnProcess, what: &str, attack: impl Future<Output = ()>) {
    let began = Instant::now();
    let healthy = async {
        let client = Client::plain(proxy.address).await.unwrap();
        let rpc = proxy.rpc().body(request(b"healthy"));
        let mut slowest = Duration::ZERO;
        loop {
            let began = Instant::now();
            let reply = client
                .call(common::Rpc {
                    method: rpc.method.clone(),
                    path: rpc.path.clone(),
                    headers: rpc.headers.clone(),
                    body: rpc.body.clone(),
                })
                .await;
            assert_eq!(reply.code(), Code::Ok, "{what}: {reply:?}");
            slowest = slowest.max(began.elapsed());
            assert!(
                slowest < Duration::from_secs(5),
                "{what}: a call took {slowest:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        () = attack => {}
        () = healthy => {}
    }
    // Afterwards, on a new connection.
    let client = Client::plain(proxy.address).await.unwrap();
    let reply = client.call(proxy.rpc().body(request(b"after"))).await;
    assert_eq!(reply.code(), Code::Ok, "after {what}");
    let peak = proxy.peak_mib();
    println!("{what}: {peak} MiB at most, {:?}", began.elapsed());
    assert!(peak <= MAX_MIB, "{what}: the proxy took {peak} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_end_their_own_connection_only() {
    // A flood of calls uses up the rate of its organization, to which the healthy client belongs.
    let proxy = OwnProcess::start(|config| config.limits.calls_per_second_per_org = 0).await;
    let token = proxy.token();
    let block = Raw::headers(EXECUTE, &token, &[("x-shape", "hang")]);

    beside_a_healthy_client(&proxy, "rapid reset", async {
        // In few bytes, so that one read has more calls than the proxy takes between two reads.
        let (mut block, repeated) = Raw::indexed_headers(EXECUTE, &token, &[("x-shape", "hang")]);
        let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
        let streams: Vec<u32> = (1..20_000).step_by(2).collect();
        for streams in streams.chunks(2000) {
            let mut burst = Vec::new();
            for stream in streams {
                burst.extend(frame(kinds::HEADERS, flags::END_HEADERS, *stream, &block));
                burst.extend(frame(
                    kinds::RST_STREAM,
                    flags::NONE,
                    *stream,
                    &8_u32.to_be_bytes(),
                ));
                block.clone_from(&repeated);
            }
            if raw.tcp.write_all(&burst).await.is_err() {
                break;
            }
        }
        assert_eq!(within("it is ended", raw.ended()).await, Some(ENHANCE_YOUR_CALM));
    })
    .await;

    beside_a_healthy_client(&proxy, "endless CONTINUATION", async {
        let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
        raw.send(kinds::HEADERS, flags::NONE, 1, &block).await.unwrap();
        let more = Raw::headers("/x", "x", &[("x-more", &"y".repeat(10_000))]);
        for _ in 0..10_000 {
            if raw
                .send(kinds::CONTINUATION, flags::NONE, 1, &more[2..])
                .await
                .is_err()
            {
                break;
            }
        }
        within("it is ended", raw.ended()).await;
    })
    .await;

    beside_a_healthy_client(&proxy, "pings and settings", async {
        let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        // Nothing is read, so that responses accumulate.
        while Instant::now() < deadline {
            let sent = tokio::time::timeout(Duration::from_millis(200), async {
                raw.send(kinds::PING, flags::NONE, 0, &[0; 8]).await?;
                raw.send(kinds::SETTINGS, flags::NONE, 0, &[]).await
            });
            // The peer accepts no more, or the connection ended.
            if !matches!(sent.await, Ok(Ok(()))) {
                break;
            }
        }
    })
    .await;

    beside_a_healthy_client(&proxy, "empty frames", async {
        let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
        raw.send(kinds::HEADERS, flags::END_HEADERS, 1, &block)
            .await
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            let sent = raw.send(kinds::DATA, flags::NONE, 1, &[]).await;
            let moved = raw.send(kinds::PRIORITY, flags::NONE, 3, &[0, 0, 0, 0, 1]).await;
            if sent.and(moved).is_err() {
                break;
            }
        }
    })
    .await;

    beside_a_healthy_client(&proxy, "windows beyond bounds", async {
        let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
        raw.send(kinds::HEADERS, flags::END_HEADERS, 1, &block)
            .await
            .unwrap();
        for stream in [1, 0] {
            let _ = raw
                .send(
                    kinds::WINDOW_UPDATE,
                    flags::NONE,
                    stream,
                    &0x7fff_ffff_u32.to_be_bytes(),
                )
                .await;
        }
        within("it is ended", raw.ended()).await;
    })
    .await;
}

/// HTTP/2 itself ends a connection at 100 empty data frames. Without a pause, connections made again
/// and again would send floods without a rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_closed_for_a_flood_keeps_its_place() {
    let proxy = OwnProcess::start(|config| config.limits.connections_per_address = 1).await;
    let block = Raw::headers(EXECUTE, &proxy.token(), &[("x-shape", "hang")]);
    let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
    raw.send(kinds::HEADERS, flags::END_HEADERS, 1, &block)
        .await
        .unwrap();
    let empty = frame(kinds::DATA, flags::NONE, 1, &[]).repeat(200);
    raw.tcp.write_all(&empty).await.unwrap();
    let goaway = within("a GOAWAY", async {
        loop {
            let frame = raw.next().await.unwrap();
            if frame.kind == kinds::GOAWAY {
                return frame;
            }
        }
    })
    .await;
    assert_eq!(goaway.payload[4..8], ENHANCE_YOUR_CALM.to_be_bytes());
    let began = Instant::now();
    let code = within("there is a place again", async {
        loop {
            if let Ok(client) = Client::plain(proxy.address).await
                && let Ok(reply) = client.try_call(proxy.rpc()).await
            {
                return reply.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(code, Code::Ok);
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_headers_are_rejected() {
    let proxy = OwnProcess::start(|_| {}).await;
    beside_a_healthy_client(&proxy, "header floods", async {
        let values: Vec<(String, String)> = (0..2000).map(|n| (format!("x-h{n}"), "v".repeat(100))).collect();
        let more: Vec<(&str, &str)> = values
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let block = Raw::headers(EXECUTE, &proxy.token(), &more);
        for _ in 0..50 {
            let mut raw = Raw::connect(proxy.address, &[]).await.unwrap();
            let mut parts = block.chunks(16_000).peekable();
            let mut kind = kinds::HEADERS;
            while let Some(part) = parts.next() {
                let end = if parts.peek().is_none() {
                    flags::END_HEADERS
                } else {
                    flags::NONE
                };
                if raw.send(kind, end, 1, part).await.is_err() {
                    break;
                }
                kind = kinds::CONTINUATION;
            }
            let _ = raw.tcp.shutdown().await;
            within("it is ended", raw.ended()).await;
        }
    })
    .await;
    assert!(
        proxy
            .spark
            .seen()
            .requests
            .iter()
            .all(|(_, headers)| headers.len() < 100),
        "none was forwarded"
    );
}

/// A byte of HPACK can stand for a field, so a few megabytes of headers can become hundreds. They
/// need no token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expanding_headers_are_not_accumulated() {
    /// `via` of the static table, empty: 35 bytes of a header list.
    const FIELD: u8 = 0x80 | 60;
    let proxy = OwnProcess::start(|_| {}).await;
    beside_a_healthy_client(&proxy, "header bombs", async {
        for fields in [300, 7000] {
            let mut block = Raw::headers(EXECUTE, "x", &[]);
            block.extend(std::iter::repeat_n(FIELD, fields));
            let mut attackers = tokio::task::JoinSet::new();
            for _ in 0..4 {
                let (block, address) = (block.clone(), proxy.address);
                attackers.spawn(async move {
                    let mut raw = Raw::connect(address, &[]).await.unwrap();
                    for stream in (1..2000).step_by(2) {
                        let sent = raw.send(kinds::HEADERS, flags::END_HEADERS, stream, &block);
                        if !matches!(
                            tokio::time::timeout(Duration::from_secs(2), sent).await,
                            Ok(Ok(()))
                        ) {
                            break;
                        }
                    }
                });
            }
            attackers.join_all().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_are_disconnected() {
    let proxy = OwnProcess::start(|config| config.limits.handshake = Duration::from_secs(1)).await;
    beside_a_healthy_client(&proxy, "stalled handshakes", async {
        let mut stalled = Vec::new();
        for n in 0..300_u32 {
            let mut tcp = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
            let begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
            tcp.write_all(&begun[..n as usize % begun.len()]).await.unwrap();
            stalled.push(Raw { tcp });
        }
        for raw in &mut stalled {
            within("it is cut off", raw.ended()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_hold_little_memory() {
    let proxy = OwnProcess::start(|_| {}).await;
    let token = proxy.token();
    beside_a_healthy_client(&proxy, "streams never read", async {
        let mut stalled = Vec::new();
        for _ in 0..4 {
            let mut raw = Raw::connect(proxy.address, &[(INITIAL_WINDOW, 0)]).await.unwrap();
            let block = Raw::headers(EXECUTE, &token, &[("x-shape", "stream 1000 100000")]);
            for stream in (1..17).step_by(2) {
                raw.send(kinds::HEADERS, flags::END_HEADERS, stream, &block)
                    .await
                    .unwrap();
                raw.send(kinds::DATA, flags::END_STREAM, stream, &request(b"go"))
                    .await
                    .unwrap();
            }
            stalled.push(raw);
        }
        within(
            "all have begun",
            proxy.spark.until(|seen| {
                seen.requests
                    .iter()
                    .filter(|(_, headers)| headers.contains_key("x-shape"))
                    .count()
                    >= 32
            }),
        )
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_with_a_wrong_length_are_rejected() {
    let proxy = OwnProcess::start(|_| {}).await;
    let client = Client::plain(proxy.address).await.unwrap();
    let good = request(b"SELECT 1");
    let mut longer = good.to_vec();
    longer.extend_from_slice(b"more");
    let shorter = good.slice(..good.len() - 3);
    let mut huge = good.to_vec();
    huge[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    for body in [longer, shorter.to_vec(), huge] {
        let reply = client.call(proxy.rpc().body(body.into())).await;
        reply.refused(Reason::MalformedMessage);
    }
    for flag in [1_u8, 2, 0x80, 0xff] {
        let mut body = good.to_vec();
        body[0] = flag;
        let reply = client.call(proxy.rpc().body(body.into())).await;
        reply.refused(if flag == 1 {
            Reason::CompressedRequest
        } else {
            Reason::MalformedMessage
        });
    }
    // Varints of ten and eleven bytes, and one with redundant bytes.
    let id = &good[5..43];
    for tail in [
        [0xff; 11].to_vec(),
        [[0x80; 10].to_vec(), vec![1]].concat(),
        vec![0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        vec![0x80, 0x80, 0x80, 0x80, 0x90, 0x01, 1],
    ] {
        let reply = client.call(proxy.rpc().body(framed(&[id, &tail].concat()))).await;
        reply.refused(Reason::MalformedMessage);
    }
    assert_eq!(client.call(proxy.rpc().body(good)).await.code(), Code::Ok);
}

/// HTTP/2 limits frames that arrive faster than they can be forwarded, because of the overhead of
/// each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_one_byte_pass_or_end_their_own_connection() {
    let proxy = OwnProcess::start(|_| {}).await;
    let body = request(&[7; 20_000]);
    beside_a_healthy_client(&proxy, "frames of one byte", async {
        let client = Client::plain(proxy.address).await.unwrap();
        let mut running = client.begin(&proxy.rpc().shape(Shape::Echo)).await.unwrap();
        for byte in body.chunks(1) {
            if send(&mut running.upload, bytes::Bytes::copy_from_slice(byte))
                .await
                .is_none()
            {
                break;
            }
        }
        let _ = running.upload.send_data(bytes::Bytes::new(), true);
        match within("the end", Reply::read(running.response)).await {
            Ok(reply) => assert_eq!(reply.echoed().content.len(), 20_000),
            Err(error) => println!("ended: {error}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_small_messages_do_not_affect_other_calls_at_the_backend() {
    let proxy = OwnProcess::start(|_| {}).await;
    let token = proxy.token();
    beside_a_healthy_client(&proxy, "small messages never read", async {
        let mut raw = Raw::connect(proxy.address, &[(INITIAL_WINDOW, 0)]).await.unwrap();
        let block = Raw::headers(EXECUTE, &token, &[("x-shape", "stream 20000 100")]);
        for stream in (1..17).step_by(2) {
            raw.send(kinds::HEADERS, flags::END_HEADERS, stream, &block)
                .await
                .unwrap();
            raw.send(kinds::DATA, flags::END_STREAM, stream, &request(b"go"))
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(proxy.spark.seen().resets, 0, "no stream was cut at the backend");
    })
    .await;
}

/// An engine runs code of its users, and connections to a shared one carry calls of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_engines_are_bounded() {
    const MIB: usize = 1 << 20;
    let proxy = OwnProcess::start(|_| {}).await;
    let client = Client::plain(proxy.address).await.unwrap();
    let call = async |shape| client.call(proxy.rpc().shape(shape)).await;
    // Shortened for the client: gRPC clients accept less.
    for bytes in [10_000, MIB / 2] {
        let reply = call(Shape::HeavyTrailers(bytes)).await;
        assert_eq!(reply.code(), Code::Ok, "{bytes}");
    }
    // Beyond the limit, and so long that the connection ends.
    for bytes in [2 * MIB, 12 * MIB] {
        call(Shape::HeavyTrailers(bytes))
            .await
            .refused(Reason::BackendLost);
        call(Shape::HeavyHead(bytes)).await.refused(Reason::BackendLost);
        assert_eq!(call(Shape::Echo).await.code(), Code::Ok, "afterwards");
    }
    let before = proxy.peak_mib();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (client, rpc) = (client.clone(), proxy.rpc().shape(Shape::HeavyTrailers(12 * MIB)));
        calls.spawn(async move { client.call(rpc).await.refused(Reason::BackendLost) });
    }
    calls.join_all().await;
    let more = proxy.peak_mib().saturating_sub(before);
    println!("32 answers with 12 MiB of trailers: {more} MiB more");
    assert!(more <= 48, "{more} MiB more");
}
