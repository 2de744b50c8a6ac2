//! h2spec, a suite of tests about the rules of HTTP/2, against the proxy. `deploy/local/setup.sh`
//! builds it.

use crate::common::raw::frame;
use crate::common::{Raw, Rig, flags, kinds, within};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;
use test_support::fake_spark::request;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// All tests, the strict ones included.
const PASSED: &str = "146 tests, 146 passed, 0 skipped, 0 failed";
/// The same without the next one.
const ALL_BUT_ONE: &str = "146 tests, 145 passed, 0 skipped, 1 failed";
/// The test needs more open streams than HTTP/2 allows. Without a valid token the proxy answers calls
/// beyond 128 with an error, which ends their streams, so h2spec has that many only if it is faster
/// than the answers: [`a_stream_beyond_the_limit_of_http2_is_refused`] is this test with a token.
const NEEDS_SPEED: &str =
    "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded";
const TIMEOUT: Duration = Duration::from_secs(120);
const REFUSED_STREAM: u32 = 7;

fn program() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let home = std::env::var_os("BERTH_HOME").map_or(repository.join(".berth"), PathBuf::from);
    home.join("h2spec/h2spec")
}

async fn run(rig: &Rig) -> Output {
    let program = program();
    assert!(
        program.exists(),
        "{} is missing: run `deploy/local/setup.sh test` (make test does)",
        program.display()
    );
    let running = Command::new(program)
        .args(["--strict", "--timeout", "2", "--host", "127.0.0.1", "--port"])
        .arg(rig.address.port().to_string())
        .args(["--path", "/grpc.health.v1.Health/Check"])
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(TIMEOUT, running).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_of_http2_are_kept() {
    // Its largest block of headers, of 20 kB, must exceed a frame.
    let rig = Rig::with(|config| config.limits.frame_bytes = 16 * 1024).await;
    let output = run(&rig).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let failures = text.split_once("Failures:").map_or("", |(_, failures)| failures);
    let passed = text.contains(PASSED) || text.contains(ALL_BUT_ONE) && failures.contains(NEEDS_SPEED);
    assert!(passed, "{failures}\n{text}");
    println!("{}", text.lines().last().unwrap_or_default());
}

/// The same with a valid token and running calls. Those that end work are beyond the limit of open
/// calls, so they reach the limit of HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_beyond_the_limit_of_http2_is_refused() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let rig = Rig::with(|config| {
        config.limits.streams_per_connection = 2;
        config.limits.calls_per_session = 1;
    })
    .await;
    let mut raw = Raw::connect(rig.address, &[]).await.unwrap();
    let settings = within("the settings", raw.next()).await.unwrap();
    assert_eq!(settings.kind, kinds::SETTINGS);
    let limit = settings
        .payload
        .chunks_exact(6)
        .find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes())
        .map(|setting| u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]))
        .unwrap();
    let path = "/spark.connect.SparkConnectService/Interrupt";
    let block = Raw::headers(path, &rig.token(), &[("x-shape", "hang")]);
    let call = async |raw: &mut Raw, number: u32| {
        let stream = 2 * number + 1;
        let headers = frame(kinds::HEADERS, flags::END_HEADERS, stream, &block);
        let data = frame(kinds::DATA, flags::END_STREAM, stream, &request(b"go"));
        raw.tcp.write_all(&[headers, data].concat()).await.unwrap();
    };
    // The first one shows the token.
    call(&mut raw, 0).await;
    within("it runs", rig.spark.until(|seen| seen.requests.len() == 1)).await;
    for number in 1..limit {
        call(&mut raw, number).await;
    }
    let all = usize::try_from(limit).unwrap();
    within("all run", rig.spark.until(|seen| seen.requests.len() == all)).await;
    call(&mut raw, limit).await;
    let reset = within("a reset", async {
        loop {
            let frame = raw.next().await.unwrap();
            assert_ne!(frame.kind, kinds::GOAWAY, "{frame:?}");
            assert_ne!(frame.kind, kinds::HEADERS, "{frame:?}");
            if frame.kind == kinds::RST_STREAM {
                return frame;
            }
        }
    })
    .await;
    assert_eq!(reset.stream, 2 * limit + 1);
    assert_eq!(reset.payload, REFUSED_STREAM.to_be_bytes());
    assert_eq!(rig.spark.seen().requests.len(), all, "the others continue");
    assert_eq!(rig.spark.seen().resets, 0);
}
