//! Tokens that spark-proxy rejects, and calls that it did not process. A
//! scripted server stands in for spark-proxy, which cannot be made to do so at
//! will; `tests/e2e` has the real one.

use super::Forwarder;
use crate::support::{Stack, tcp_peer::peer, within};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use parking_lot::Mutex;
use session_core::Reason;
use session_proto::error::Refused;
use session_proto::reply::{trailers, trailers_only};
use session_proto::v1;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, message, request};
use tokio::net::TcpStream;
use tonic::{Code, Status};

/// Time after which a rejected token is replaced.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes of a request that the forwarder keeps.
const MAX_KEPT_BYTES: usize = 64 * 1024;
/// Number of concurrent calls.
const CALLS: usize = 20;

/// What the proxy has seen, and what it rejects.
#[derive(Debug, Default)]
struct Proxy {
    /// Values of `authorization`, each once, in order of arrival.
    tokens: Vec<HeaderValue>,
    calls: usize,
    rejects: Option<Rejects>,
}

#[derive(Debug, Clone, Copy)]
enum Rejects {
    /// Calls with the first token, with this reason.
    FirstToken(Reason),
    /// The first calls, with this reason.
    FirstCalls(usize, Reason),
    /// The first calls, without having processed them.
    Unprocessed(usize),
}

type Shared = Arc<Mutex<Proxy>>;

/// A forwarder to a session of `ada` at a scripted proxy.
async fn at_proxy(rejects: Rejects) -> (Stack, String, Forwarder, Shared) {
    let mut stack = Stack::start().await;
    let state = Shared::default();
    state.lock().rejects = Some(rejects);
    let proxy = start(Arc::clone(&state)).await;
    let issuer = stack.issuer_for(proxy).await;
    let session = stack.pending("ada").await;
    let addresses = [format!("http://{}", stack.manager), format!("http://{issuer}")];
    let forwarder = Forwarder::start_at(&stack, &addresses, &[&session, "--port", "0"]).await;
    (stack, session, forwarder, state)
}

async fn start(state: Shared) -> SocketAddr {
    peer(move |stream: TcpStream| {
        let state = Arc::clone(&state);
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let bearer = request.headers()["authorization"].clone();
                tokio::spawn(answer(respond, bearer, request.into_body(), Arc::clone(&state)));
            }
        }
    })
    .await
}

/// Rejects a call after as many bytes as make a large request one that cannot be sent again.
async fn answer(
    mut respond: SendResponse<Bytes>,
    bearer: HeaderValue,
    mut body: h2::RecvStream,
    state: Shared,
) {
    let rejection = {
        let mut proxy = state.lock();
        proxy.calls += 1;
        if !proxy.tokens.contains(&bearer) {
            proxy.tokens.push(bearer.clone());
        }
        match proxy.rejects {
            Some(Rejects::FirstToken(reason)) if proxy.tokens[0] == bearer => Some(reason),
            Some(Rejects::FirstCalls(count, reason)) if proxy.calls <= count => Some(reason),
            Some(Rejects::Unprocessed(count)) if proxy.calls <= count => {
                return respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
            Some(_) | None => None,
        }
    };
    if let Some(reason) = rejection {
        let mut received = 0;
        while received <= MAX_KEPT_BYTES
            && let Some(data) = body.data().await
        {
            let data = data.unwrap();
            let _ = body.flow_control().release_capacity(data.len());
            received += data.len();
        }
        let status = Refused::new(reason, "scripted").into_status();
        respond.send_response(trailers_only(&status), true).unwrap();
        return;
    }
    let mut received = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        received.extend_from_slice(&data);
    }
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from(received), false).unwrap();
    let end: HeaderMap = trailers(&Status::ok(""));
    stream.send_trailers(end).unwrap();
}

async fn issued(stack: &Stack, session: &str) -> usize {
    let request = v1::ListSessionTokensRequest {
        session_id: session.to_owned(),
    };
    let tokens = stack
        .tokens()
        .list_session_tokens(stack.asks("ada", request))
        .await;
    tokens.unwrap().into_inner().tokens.len()
}

#[tokio::test]
async fn an_expired_token_is_replaced_once_for_all_calls() {
    let (stack, session, forwarder, state) = at_proxy(Rejects::FirstToken(Reason::TokenExpired)).await;
    tokio::time::sleep(MIN_RENEWAL_INTERVAL).await;
    calls_succeed(&forwarder).await;
    assert_eq!(issued(&stack, &session).await, 2);
    assert_eq!(state.lock().tokens.len(), 2);
}

/// The proxy also ends running calls with these reasons, so a call with one may have been processed.
#[tokio::test]
async fn a_revoked_token_is_replaced_and_no_call_is_sent_twice() {
    for reason in [Reason::TokenRevoked, Reason::TokenInvalid] {
        let (stack, session, forwarder, state) = at_proxy(Rejects::FirstToken(reason)).await;
        tokio::time::sleep(MIN_RENEWAL_INTERVAL).await;
        let answer = forwarder.client().await.call(Shape::Echo).await;
        assert_eq!(answer.reason, Some(reason), "{answer:?}");
        assert_eq!(state.lock().calls, 1);
        calls_succeed(&forwarder).await;
        assert_eq!(state.lock().calls, 1 + CALLS, "{reason}");
        assert_eq!(issued(&stack, &session).await, 2, "{reason}");
    }
}

/// Makes calls on connections of their own.
async fn calls_succeed(forwarder: &Forwarder) {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        let mut client = forwarder.client().await;
        calls.spawn(async move { client.call(Shape::Echo).await });
    }
    for answer in calls.join_all().await {
        assert_eq!(answer.code, Code::Ok, "{answer:?}");
        assert_eq!(answer.body, request(b"plan"), "the whole request was sent");
    }
}

#[tokio::test]
async fn a_call_whose_token_is_revoked_while_it_runs_is_not_sent_again() {
    for shape in [Shape::Hang, Shape::HangAfterOne] {
        let stack = Stack::start().await;
        let session = stack.active("ada").await;
        let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
        // From now on the forwarder may replace its token.
        tokio::time::sleep(MIN_RENEWAL_INTERVAL).await;
        let mut client = forwarder.client().await;
        let running = tokio::spawn(async move { client.call(shape).await });
        let called = stack.spark.until(|seen| seen.requests.len() == 1);
        within("the engine has the call", called).await;
        let all = v1::RevokeAllSessionTokensRequest { session_id: session };
        let mut tokens = stack.tokens();
        let revoked = tokens.revoke_all_session_tokens(stack.asks("ada", all));
        revoked.await.unwrap();
        let answer = running.await.unwrap();
        assert_eq!(answer.reason, Some(Reason::TokenRevoked), "{answer:?}");
        assert_eq!(stack.spark.seen().requests.len(), 1, "{shape:?}");
        let answer = forwarder.client().await.call(Shape::Echo).await;
        assert_eq!(answer.code, Code::Ok, "the next call has a new token: {answer:?}");
    }
}

/// What was sent is kept up to a limit; beyond it the client gets the error.
#[tokio::test]
async fn a_large_request_is_not_sent_twice() {
    let (_stack, _session, forwarder, state) = at_proxy(Rejects::FirstCalls(1, Reason::SessionWarming)).await;
    let mut client = forwarder.client().await;
    let answer = client.send(Shape::Echo, message(4 << 20)).await;
    assert_eq!(answer.reason, Some(Reason::SessionWarming), "{answer:?}");
    assert_eq!(state.lock().calls, 1);
    let answer = client.send(Shape::Echo, message(4 << 20)).await;
    assert_eq!((answer.code, answer.body.len()), (Code::Ok, 4 << 20));
}

/// The next calls need a new token all the same.
#[tokio::test]
async fn the_token_of_a_large_request_is_replaced() {
    let (stack, session, forwarder, state) = at_proxy(Rejects::FirstToken(Reason::TokenExpired)).await;
    let mut client = forwarder.client().await;
    let answer = client.send(Shape::Echo, message(4 << 20)).await;
    assert_eq!(answer.reason, Some(Reason::TokenExpired), "{answer:?}");
    assert_eq!(state.lock().calls, 1);
    within("a new token is issued", async {
        while issued(&stack, &session).await < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn calls_that_were_not_processed_are_sent_again() {
    let all = [
        Rejects::Unprocessed(2),
        Rejects::FirstCalls(2, Reason::SessionWarming),
    ];
    for rejects in all {
        let (_stack, _session, forwarder, state) = at_proxy(rejects).await;
        let answer = forwarder.client().await.call(Shape::Echo).await;
        assert_eq!(answer.code, Code::Ok, "{rejects:?}: {answer:?}");
        assert_eq!(answer.body, request(b"plan"));
        assert_eq!(state.lock().calls, 3);
    }
}

#[tokio::test]
async fn a_starting_session_is_asked_every_two_seconds_while_the_client_waits() {
    const DELAY: Duration = Duration::from_secs(2);
    let (_stack, _session, forwarder, state) = at_proxy(Rejects::FirstCalls(1, Reason::SessionWarming)).await;
    let begun = Instant::now();
    let answer = forwarder.client().await.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    assert!(begun.elapsed() >= DELAY, "{:?}", begun.elapsed());
    assert_eq!(state.lock().calls, 2);

    state.lock().rejects = Some(Rejects::FirstCalls(usize::MAX, Reason::SessionWarming));
    let mut client = forwarder.client().await;
    let call = tokio::spawn(async move { client.call(Shape::Echo).await });
    within("the call arrives", async {
        while state.lock().calls < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    call.abort();
    tokio::time::sleep(2 * DELAY).await;
    assert_eq!(state.lock().calls, 3, "the client is gone");
}

#[tokio::test]
async fn other_errors_pass_and_endless_refusals_end() {
    let (_stack, _session, forwarder, state) = at_proxy(Rejects::FirstCalls(1, Reason::ProxyDraining)).await;
    let answer = forwarder.client().await.call(Shape::Echo).await;
    assert_eq!(answer.reason, Some(Reason::ProxyDraining), "{answer:?}");
    state.lock().rejects = Some(Rejects::Unprocessed(usize::MAX));
    let answer = within("the call ends", async {
        forwarder.client().await.call(Shape::Echo).await
    })
    .await;
    assert_eq!(answer.code, Code::Unavailable, "{answer:?}");
    assert!(answer.message.contains("berth doctor"), "{answer:?}");
}
