//! Queries on Sail whose clients disconnect and return: every message arrives once and in order, or
//! the call ends with an error. The fake engine fails a test if the proxy uses Sail's own reattach.

use crate::common::{Client, Reply, Rig, Rpc, read_metric, within};
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use prost::Message as _;
use session_core::Reason;
use session_proto::internal::{Backend, Route, RouteStatus};
use session_proto::spark::execute_plan_request::RequestOption;
use session_proto::spark::execute_plan_request::request_option::RequestOption as Kind;
use session_proto::spark::release_execute_request::{Release, ReleaseAll, ReleaseUntil};
use session_proto::spark::{
    ExecutePlanRequest, ReattachExecuteRequest, ReattachOptions, ReleaseExecuteRequest,
};
use spark_proxy::Config;
use std::time::Duration;
use test_support::fake_spark::{
    OPERATION, SPARK_SESSION, Shape, framed, response_id, result, result_complete,
};
use tonic::Code;
use tonic_types::StatusExt as _;

pub(crate) const HELD: &str = "spark_proxy_held_streams";
const RESUMED: &str = "spark_proxy_streams_resumed_total";
pub(crate) const BYTES: &str = "spark_proxy_unacknowledged_bytes";
pub(crate) const ABANDONED: &str = "spark_proxy_held_streams_abandoned_total";
pub(crate) const REFUSED: &str = "spark_proxy_reattaches_refused_total";

pub(crate) fn on_sail(route: Route) -> Route {
    Route {
        backend: route.backend.map(|backend| Backend {
            engine: "sail".to_owned(),
            ..backend
        }),
        ..route
    }
}

pub(crate) async fn sail(change: impl FnOnce(&mut Config)) -> Rig {
    let rig = Rig::with(change).await;
    rig.routes.set(on_sail(rig.route()));
    rig
}

pub(crate) fn execute_of(token: &str, operation: &str, shape: Shape) -> (Rpc, Bytes) {
    let plan = ExecutePlanRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: Some(operation.to_owned()),
        request_options: vec![RequestOption {
            request_option: Some(Kind::ReattachOptions(ReattachOptions { reattachable: true })),
        }],
        ..ExecutePlanRequest::default()
    };
    (Rpc::execute(token).shape(shape), framed(&plan.encode_to_vec()))
}

/// Starts a query and returns its response.
pub(crate) async fn execute(client: &Client, token: &str, shape: Shape) -> RecvStream {
    let (rpc, body) = execute_of(token, OPERATION, shape);
    let mut call = client.begin(&rpc).await.unwrap();
    call.finish(body);
    within("headers", call.head()).await.unwrap().1.into_body()
}

/// The shape is for the engine, which must not be asked.
pub(crate) fn reattach(token: &str, last: Option<usize>) -> Rpc {
    let request = ReattachExecuteRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: OPERATION.to_owned(),
        last_response_id: last.map(response_id),
        ..ReattachExecuteRequest::default()
    };
    Rpc::spark("ReattachExecute")
        .bearer(token)
        .shape(Shape::SailUnknown)
        .body(framed(&request.encode_to_vec()))
}

pub(crate) async fn release(client: &Client, token: &str, release: Release) {
    let request = ReleaseExecuteRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: OPERATION.to_owned(),
        release: Some(release),
        ..ReleaseExecuteRequest::default()
    };
    let rpc = Rpc::spark("ReleaseExecute")
        .bearer(token)
        .body(framed(&request.encode_to_vec()));
    assert_eq!(client.call(rpc).await.code(), Code::Ok);
}

pub(crate) fn until(number: usize) -> Release {
    Release::ReleaseUntil(ReleaseUntil {
        response_id: response_id(number),
    })
}

/// The messages from `first` on, with `result_complete`.
pub(crate) fn results(first: usize, count: usize, size: usize) -> Bytes {
    let mut all: Vec<_> = (first..count).map(|number| result(number, size)).collect();
    all.push(result_complete(count));
    all.concat().into()
}

/// Reads at least `bytes`.
pub(crate) async fn read(body: &mut RecvStream, bytes: usize) -> Bytes {
    let mut read = BytesMut::new();
    while read.len() < bytes {
        let data = within("data", body.data()).await.expect("more").unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read.extend_from_slice(&data);
    }
    read.freeze()
}

/// The number of the last complete message, if there is one.
fn last_whole(read: &[u8], size: usize) -> Option<usize> {
    (read.len() / result(0, size).len()).checked_sub(1)
}

pub(crate) async fn until_held(rig: &Rig, count: f64) {
    within("streams are held", rig.until_metric(HELD, |held| held == count)).await;
}

/// Only the `ExecutePlan` went to the engine.
pub(crate) fn assert_sail_was_not_asked(rig: &Rig) {
    let seen = rig.spark.seen();
    let reattaches = seen
        .requests
        .iter()
        .filter(|(path, _)| path.ends_with("ReattachExecute"));
    assert_eq!(reattaches.count(), 0);
}

pub(crate) fn error_class(reply: &Reply) -> String {
    let info = reply.status().get_details_error_info();
    info.and_then(|mut info| info.metadata.remove("errorClass"))
        .unwrap_or_default()
}

/// Cuts a query after `cut` bytes and continues it elsewhere.
async fn cut_and_continue(rig: &Rig, same_connection: bool, cut: usize) {
    const SIZE: usize = 20_000;
    let token = rig.token();
    let client = rig.client().await;
    let mut body = execute(&client, &token, Shape::Results(50, SIZE)).await;
    let received = read(&mut body, cut).await;
    drop(body);
    // Connections go to the two workers in turn.
    let next = if same_connection {
        client
    } else {
        rig.client().await
    };
    let last = last_whole(&received, SIZE);
    let reply = next.call(reattach(&token, last)).await;
    assert_eq!(reply.code(), Code::Ok, "{cut}: {:?}", reply.trailers);
    let first = last.map_or(0, |last| last + 1);
    assert!(
        reply.body == results(first, 50, SIZE),
        "after {cut} bytes: {}",
        reply.body.len()
    );
    assert_eq!(reply.head["x-berth-generation"], "1");
    assert_sail_was_not_asked(rig);
    release(&next, &token, Release::ReleaseAll(ReleaseAll {})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_returns_continues_exactly_on_any_worker() {
    let rig = sail(|_| {}).await;
    let cuts = [1, 5, 19_000, 20_100, 100_000, 700_000];
    for cut in cuts {
        for same_connection in [true, false] {
            cut_and_continue(&rig, same_connection, cut).await;
        }
    }
    assert_eq!(rig.metric(RESUMED).await, 2.0 * cuts.len() as f64);
    within("all was released", rig.until_metric(BYTES, |bytes| bytes == 0.0)).await;
    assert_eq!((rig.metric(HELD).await, rig.metric(REFUSED).await), (0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_continued_and_a_newer_call_takes_over() {
    const SIZE: usize = 20_000;
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let clients = [rig.client().await, rig.client().await, rig.client().await];
    let mut body = execute(&clients[0], &token, Shape::Results(400, SIZE)).await;
    let mut received = read(&mut body, 100_000).await;
    let mut next = 0;
    for client in clients.iter().chain(&clients) {
        // The older stream is still open, and its client does not read.
        let last = last_whole(&received, SIZE).map(|last| next + last);
        next = last.map_or(next, |last| last + 1);
        let rpc = reattach(&token, next.checked_sub(1));
        let mut call = client.begin(&rpc).await.unwrap();
        call.finish(rpc.body.clone());
        let (_upload, response) = within("headers", call.head()).await.unwrap();
        let mut newer = response.into_body();
        received = read(&mut newer, 300_000).await;
        let expected = results(next, 400, SIZE);
        assert!(received == expected[..received.len()], "from {next}");
        let older = std::mem::replace(&mut body, newer);
        drop(older);
    }
    drop((body, clients));
    until_held(&rig, 1.0).await;
    let reply = rig.call(reattach(&token, next.checked_sub(1))).await;
    assert!(reply.body == results(next, 400, SIZE));
    assert_sail_was_not_asked(&rig);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_stream_stops_the_engine_at_its_limit_and_loses_nothing() {
    const LIMIT: usize = 2 << 20;
    let rig = sail(|config| config.limits.unacknowledged_bytes_per_stream = LIMIT).await;
    let token = rig.token();
    let client = rig.client().await;
    let mut body = execute(&client, &token, Shape::Results(1000, 50_000)).await;
    read(&mut body, 1).await;
    drop(body);
    until_held(&rig, 1.0).await;
    let sent = within("the engine stops", async {
        let mut sent = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            match rig.spark.seen().sent {
                same if same == sent => return sent,
                more => sent = more,
            }
        }
    })
    .await;
    // Beyond the limit, one window is in flight.
    assert!((LIMIT / 2..LIMIT + (2 << 20)).contains(&sent), "{sent}");
    let held = rig.metric(BYTES).await as usize;
    assert!((LIMIT / 2..=LIMIT).contains(&held), "{held}");
    let reply = client.call(reattach(&token, None)).await;
    assert!(reply.body == results(0, 1000, 50_000), "{}", reply.body.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_exceeds_the_limit_is_an_error_and_not_a_loss() {
    const SIZE: usize = 100_000;
    let rig = sail(|config| config.limits.unacknowledged_bytes_per_stream = 1 << 20).await;
    let token = rig.token();
    let client = rig.client().await;
    // A client that acknowledges nothing is never stopped.
    let mut body = execute(&client, &token, Shape::ResultsThenHang(100, SIZE)).await;
    let all = 100 * result(0, SIZE).len();
    read(&mut body, all).await;
    assert!(rig.metric(BYTES).await <= f64::from(1 << 20));
    drop(body);
    until_held(&rig, 1.0).await;
    for (last, class) in [
        (Some(50), "INVALID_HANDLE.OPERATION_NOT_FOUND"),
        // "Not found" would make the client run the query again.
        (None, ""),
    ] {
        let reply = client.call(reattach(&token, last)).await;
        assert_eq!(error_class(&reply), class, "{last:?}: {reply:?}");
        if last.is_none() {
            reply.refused(Reason::OperationLost);
        }
    }
    let text = rig.get("/metrics").await.1;
    assert_eq!(
        read_metric(&text, &format!("{REFUSED}{{reason=\"not_retained\"}}")),
        2.0
    );
    // What is retained is still there.
    let rpc = reattach(&token, Some(95));
    let mut call = client.begin(&rpc).await.unwrap();
    call.finish(rpc.body);
    let (_upload, response) = within("headers", call.head()).await.unwrap();
    let rest = read(&mut response.into_body(), 4 * result(0, SIZE).len()).await;
    assert!(rest == results(96, 100, SIZE)[..rest.len()]);
    assert_sail_was_not_asked(&rig);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_bytes_are_freed() {
    const SIZE: usize = 100_000;
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let (client, other) = (rig.client().await, rig.client().await);
    let mut body = execute(&client, &token, Shape::ResultsThenHang(20, SIZE)).await;
    read(&mut body, 20 * result(0, SIZE).len()).await;
    let all = rig.metric(BYTES).await;
    assert!(all >= 20.0 * SIZE as f64, "{all}");
    release(&other, &token, until(9)).await;
    within(
        "half is freed",
        rig.until_metric(BYTES, |bytes| bytes < 0.6 * all),
    )
    .await;
    release(&client, &token, until(19)).await;
    within("all is freed", rig.until_metric(BYTES, |bytes| bytes == 0.0)).await;
    // Everything is acknowledged; the client may still return for what follows.
    drop(body);
    until_held(&rig, 1.0).await;
    release(&other, &token, Release::ReleaseAll(ReleaseAll {})).await;
    until_held(&rig, 0.0).await;
    within("the query ends", rig.spark.until(|seen| seen.resets == 1)).await;
    let text = rig.get("/metrics").await.1;
    assert_eq!(
        read_metric(&text, &format!("{ABANDONED}{{reason=\"released\"}}")),
        1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_is_kept_after_the_engine_has_ended() {
    const SIZE: usize = 1000;
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let client = rig.client().await;
    // The client is gone before the first byte.
    let (rpc, body) = execute_of(&token, OPERATION, Shape::Results(100, SIZE));
    let mut call = client.begin(&rpc).await.unwrap();
    call.finish(body);
    within("it runs", rig.spark.until(|seen| !seen.requests.is_empty())).await;
    drop(call);
    let reply = rig.call(reattach(&token, None)).await;
    assert!(reply.body == results(0, 100, SIZE));
    // Its end was lost with the connection.
    for last in [None, Some(98), Some(100)] {
        let reply = rig.call(reattach(&token, last)).await;
        let expected = match last {
            Some(100) => Bytes::new(),
            last => results(last.map_or(0, |last| last + 1), 100, SIZE),
        };
        assert_eq!(reply.code(), Code::Ok, "{last:?}: {reply:?}");
        assert!(reply.body == expected, "{last:?}");
    }
    release(&client, &token, Release::ReleaseAll(ReleaseAll {})).await;
    within("it is freed", rig.until_metric(BYTES, |bytes| bytes == 0.0)).await;
    let reply = client.call(reattach(&token, Some(98))).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");
    client
        .call(reattach(&token, None))
        .await
        .refused(Reason::OperationLost);
    assert_sail_was_not_asked(&rig);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_stream_ends_in_time() {
    let rig = sail(|config| config.limits.held_stream_timeout = Duration::from_millis(300)).await;
    let token = rig.token();
    let client = rig.client().await;
    drop(execute(&client, &token, Shape::ResultsThenHang(1, 10)).await);
    within("the query ends", rig.spark.until(|seen| seen.resets == 1)).await;
    until_held(&rig, 0.0).await;
    let text = rig.get("/metrics").await.1;
    assert_eq!(
        read_metric(&text, &format!("{ABANDONED}{{reason=\"timeout\"}}")),
        1.0
    );
    let reply = client.call(reattach(&token, Some(0))).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");
    assert_sail_was_not_asked(&rig);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_time_nothing_is_held() {
    let rig = sail(|config| config.limits.held_stream_timeout = Duration::ZERO).await;
    let token = rig.token();
    let client = rig.client().await;
    let mut body = execute(&client, &token, Shape::ResultsThenHang(5, 10_000)).await;
    read(&mut body, 50_000).await;
    assert_eq!(rig.metric(BYTES).await, 0.0);
    drop(body);
    within("the query ends", rig.spark.until(|seen| seen.resets == 1)).await;
    let reply = client.call(reattach(&token, Some(0))).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_stream_is_read_by_its_session_and_subject_only() {
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let client = rig.client().await;
    drop(execute(&client, &token, Shape::Results(3, 10)).await);

    let mut other_subject = rig.claims();
    other_subject.sub = "sa|other".parse().unwrap();
    let other_subject = rig.sign(&other_subject);
    let reply = client.call(reattach(&other_subject, None)).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");
    assert!(reply.body.is_empty());
    release(&client, &other_subject, Release::ReleaseAll(ReleaseAll {})).await;

    // Another session on the same engine, with the same ids.
    let mut other = rig.claims();
    other.sid = session_core::SessionId::generate(session_core::Timestamp::from_millis(5), 5);
    rig.routes.set(Route {
        session_id: other.sid.to_string(),
        ..on_sail(rig.route())
    });
    let other = rig.sign(&other);
    let reply = client.call(reattach(&other, Some(0))).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");

    // Another Spark session of the session.
    let mut rpc = reattach(&token, Some(0));
    let mut body = rpc.body.to_vec();
    let at = body.windows(36).position(|part| part == SPARK_SESSION.as_bytes());
    body[at.unwrap()] = b'f';
    rpc.body = body.into();
    let reply = client.call(rpc).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");

    let mut expired = rig.claims();
    (expired.iat, expired.nbf, expired.exp) =
        (expired.iat - 5000, expired.nbf - 5000, expired.exp - 3600 - 100);
    // Another token of the same subject, within its grace.
    let reply = client.call(reattach(&rig.sign(&expired), None)).await;
    assert!(reply.body == results(0, 3, 10), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_session_or_token_ends_its_held_streams() {
    for (change, reason) in [
        (
            (|route| Route {
                status: RouteStatus::Closed.into(),
                backend: None,
                ..route
            }) as fn(Route) -> Route,
            Reason::SessionClosed,
        ),
        (
            |route| Route {
                token_epoch: 2,
                ..route
            },
            Reason::TokenRevoked,
        ),
    ] {
        let rig = sail(|_| {}).await;
        let token = rig.token();
        let client = rig.client().await;
        drop(execute(&client, &token, Shape::ResultsThenHang(3, 10_000)).await);
        until_held(&rig, 1.0).await;
        rig.routes.announce(change(Route {
            version: 2,
            ..on_sail(rig.route())
        }));
        within("the query ends", rig.spark.until(|seen| seen.resets == 1)).await;
        until_held(&rig, 0.0).await;
        within("it is freed", rig.until_metric(BYTES, |bytes| bytes == 0.0)).await;
        client.call(reattach(&token, None)).await.refused(reason);
    }
}

/// What the engine had ended is freed too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_session_frees_a_kept_result() {
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let client = rig.client().await;
    let (rpc, body) = execute_of(&token, OPERATION, Shape::Results(3, 10_000));
    let reply = client.call(rpc.body(body)).await;
    assert_eq!(reply.code(), Code::Ok);
    assert!(rig.metric(BYTES).await > 30_000.0);
    rig.routes.announce(Route {
        version: 2,
        status: RouteStatus::Closed.into(),
        backend: None,
        ..on_sail(rig.route())
    });
    within("it is freed", rig.until_metric(BYTES, |bytes| bytes == 0.0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_ended_incomplete_was_interrupted() {
    let rig = sail(|_| {}).await;
    let token = rig.token();
    let client = rig.client().await;
    // Sail ends an interrupted query with OK.
    let (rpc, body) = execute_of(&token, OPERATION, Shape::Stream(3, 1000));
    let mut call = client.begin(&rpc).await.unwrap();
    call.finish(body);
    within("it runs", rig.spark.until(|seen| !seen.requests.is_empty())).await;
    drop(call);
    for _ in 0..2 {
        let reply = client.call(reattach(&token, None)).await;
        assert_eq!(error_class(&reply), "OPERATION_CANCELED", "{reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_of_another_proxy_is_not_continued() {
    let rig = sail(|_| {}).await;
    let token = rig.token();
    // Sail does not have it: the client may start it.
    let reply = rig.call(reattach(&token, None)).await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");
    // Sail has it, so another proxy sent it there.
    for shape in [Shape::Results(3, 10), Shape::ResultsThenHang(3, 10)] {
        let reply = rig.call(reattach(&token, None).shape(shape)).await;
        reply.refused(Reason::OperationLost);
        assert!(reply.body.is_empty());
    }
    let asked = rig.spark.seen().requests.len();
    let reply = rig
        .call(reattach(&token, Some(1)).shape(Shape::Results(3, 10)))
        .await;
    assert_eq!(error_class(&reply), "INVALID_HANDLE.OPERATION_NOT_FOUND");
    assert_eq!(rig.spark.seen().requests.len(), asked);
}

/// A stream that a client of another worker receives runs to its end during the drain; a held one
/// ends, because no client can return to this proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_stream_finishes_during_the_drain() {
    const SIZE: usize = 50_000;
    let mut rig = sail(|_| {}).await;
    let token = rig.token();
    let (first, second) = (rig.client().await, rig.client().await);
    drop(execute(&first, &token, Shape::Results(200, SIZE)).await);
    let rpc = reattach(&token, None);
    let mut call = second.begin(&rpc).await.unwrap();
    call.finish(rpc.body);
    let (_upload, response) = within("headers", call.head()).await.unwrap();
    let mut body = response.into_body();
    let begun = read(&mut body, 100_000).await;
    drop(first);
    let running = rig.running();
    rig.shutdown.stop();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.is_finished());
    let expected = results(0, 200, SIZE);
    let rest = read(&mut body, expected.len() - begun.len()).await;
    assert!([begun, rest].concat() == expected);
    let trailers = within("trailers", body.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    drop(body);
    within("the proxy ends", running).await.unwrap().unwrap();
}
