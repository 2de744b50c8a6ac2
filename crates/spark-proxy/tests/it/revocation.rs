//! Time until a revocation and a close are effective at every proxy, and the life of a token in the
//! token ledger. Prints the measurements; `ROUNDS=200` runs more rounds.

use crate::common;
use crate::common::{Client, Reply, Rpc, within};
use crate::control_plane::Stack;
use session_core::{AuditAction, Reason};
use session_proto::internal::WatchRoutesRequest;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::watch_routes_response::Update;
use session_store::redis::Options;
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, request};
use test_support::redis::PrivateRedis;
use tonic::Code;

/// Time for which calls with `token` still succeed at a proxy.
async fn until_refused(client: &Client, token: &str, reason: Reason, since: Instant) -> Duration {
    within("the token is refused", async {
        loop {
            let reply = client.call(Rpc::execute(token)).await;
            if reply.code() != Code::Ok {
                reply.refused(reason);
                return since.elapsed();
            }
        }
    })
    .await
}

fn print_times(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!(
        "{what}: {} times, p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
    at(99)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoke_and_close_are_effective_at_every_proxy_within_a_second() {
    let rounds: usize = std::env::var("ROUNDS").map_or(20, |n| n.parse().unwrap());
    let stack = Stack::start().await;
    let clients = [stack.client(0).await, stack.client(1).await];
    let (mut one, mut all, mut closed, mut streams) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let session = stack.session().await;
        let (revoked, kept) = (
            stack.first_token(&session).await,
            stack.issue(&session).await.unwrap(),
        );
        let mut running = Vec::new();
        for client in &clients {
            for token in [&revoked.token, &kept.token] {
                assert_eq!(client.call(Rpc::execute(token)).await.code(), Code::Ok);
            }
            let mut call = client
                .begin(&Rpc::execute(&revoked.token).shape(Shape::HangAfterOne))
                .await
                .unwrap();
            call.finish(request(b"go"));
            running.push(within("headers", call.head()).await.unwrap());
        }
        let since = Instant::now();
        stack.revoke(&session, &revoked.token_id).await;
        let (a, b) = tokio::join!(
            until_refused(&clients[0], &revoked.token, Reason::TokenRevoked, since),
            until_refused(&clients[1], &revoked.token, Reason::TokenRevoked, since)
        );
        one.extend([a, b]);
        for (_upload, response) in running {
            let reply = within("the running stream ends", Reply::rest(response))
                .await
                .unwrap();
            reply.refused(Reason::TokenRevoked);
            streams.push(since.elapsed());
        }
        for client in &clients {
            assert_eq!(
                client.call(Rpc::execute(&kept.token)).await.code(),
                Code::Ok,
                "the other token"
            );
        }
        let since = Instant::now();
        stack.revoke_all(&session).await;
        let (a, b) = tokio::join!(
            until_refused(&clients[0], &kept.token, Reason::TokenRevoked, since),
            until_refused(&clients[1], &kept.token, Reason::TokenRevoked, since)
        );
        all.extend([a, b]);
        let last = stack.issue(&session).await.unwrap();
        for client in &clients {
            assert_eq!(client.call(Rpc::execute(&last.token)).await.code(), Code::Ok);
        }
        let since = Instant::now();
        stack.close(&session).await;
        let (a, b) = tokio::join!(
            until_refused(&clients[0], &last.token, Reason::SessionClosed, since),
            until_refused(&clients[1], &last.token, Reason::SessionClosed, since)
        );
        closed.extend([a, b]);
    }
    let second = Duration::from_secs(1);
    assert!(print_times("revoke one", one) <= second);
    assert!(print_times("revoke all", all) <= second);
    assert!(print_times("close", closed) <= second);
    assert!(print_times("running streams ended", streams) <= 5 * second);
}

/// Time for which calls still succeed at a proxy; none may fail for another reason.
async fn until_unavailable(client: &Client, token: &str, since: Instant) -> Duration {
    until_refused(client, token, Reason::ControlPlaneUnavailable, since).await
}

/// Cached routes are used for 5 s after the last message of session-manager, which may arrive 2 s
/// after the cut; the failed request takes time too.
const TRUSTED_WHEN_CUT: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_manager_that_lost_its_store_is_not_trusted() {
    let mut redis = PrivateRedis::start().await.unwrap();
    let store = session_store::open(&redis.url(), &Options::default())
        .await
        .unwrap();
    let stack = Stack::start_on(store, |config| {
        config.routes.stale_if_unreachable = Duration::ZERO;
    })
    .await;
    let session = stack.session().await;
    let token = stack.first_token(&session).await.token;
    let client = stack.client(0).await;
    let mut manager = RouteServiceClient::new(stack.internal_channel());
    let mut watch = manager
        .watch_routes(WatchRoutesRequest::default())
        .await
        .unwrap()
        .into_inner();
    within("heartbeats", async {
        let mut beats = 0;
        // For longer than the timeout of the watch.
        while beats < 10 {
            let update = watch.message().await.unwrap().unwrap().update;
            beats += u32::from(matches!(update, Some(Update::Heartbeat(_))));
            assert_eq!(client.call(Rpc::execute(&token)).await.code(), Code::Ok);
        }
    })
    .await;
    redis.stand_still(true).await.unwrap();
    let since = Instant::now();
    let refused = tokio::spawn({
        let (client, token) = (client.clone(), token.clone());
        async move { until_unavailable(&client, &token, since).await }
    });
    let (beats, ended) = within("the watch ends", async {
        let mut beats = 0;
        loop {
            match watch.message().await {
                Ok(Some(_)) => beats += 1,
                Ok(None) => panic!("it ends with its cause"),
                Err(status) => return (beats, status),
            }
        }
    })
    .await;
    println!(
        "watch ended {:.1?} after the cut, {beats} heartbeats",
        since.elapsed()
    );
    assert!(beats <= 3, "{beats} heartbeats of a feed that nobody reads");
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(since.elapsed() < Duration::from_secs(6));
    let again = manager.watch_routes(WatchRoutesRequest::default()).await;
    assert_eq!(again.unwrap_err().code(), Code::Unavailable);
    let trusted = refused.await.unwrap();
    println!("routes were trusted for {trusted:.1?} after the cut");
    assert!(trusted < TRUSTED_WHEN_CUT);

    redis.stand_still(false).await.unwrap();
    within("it works again", async {
        while client.call(Rpc::execute(&token)).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// Sessions that wait for compute use up no streams of the connections to session-manager.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_waiting_sessions_do_not_delay_others() {
    const WAITING: usize = 300;
    let stack = Stack::start().await;
    let client = stack.client(0).await;
    let mut held = Vec::new();
    for _ in 0..WAITING {
        let session = stack.pending_session().await;
        let token = stack.first_token(&session).await.token;
        let mut call = client.begin(&Rpc::execute(&token)).await.unwrap();
        call.finish(request(b"go"));
        held.push(call);
    }
    let metric = async |name: &str| {
        let (_, text) = common::http_get(stack.admins[0], "/metrics").await;
        common::read_metric(&text, name)
    };
    within("all wait", async {
        while metric("spark_proxy_held_calls").await < 300.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let failed = metric("spark_proxy_activity_reports_failed_total").await;
    let mut firsts = Vec::new();
    for _ in 0..20 {
        let session = stack.session().await;
        let token = stack.first_token(&session).await.token;
        let since = Instant::now();
        assert_eq!(client.call(Rpc::execute(&token)).await.code(), Code::Ok);
        firsts.push(since.elapsed());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(print_times("first calls beside 300 waiting sessions", firsts) < Duration::from_secs(1));
    assert_eq!(metric("spark_proxy_activity_reports_failed_total").await, failed);
    assert_eq!(metric("spark_proxy_route_watch_connected").await, 1.0);
    assert_eq!(metric("spark_proxy_held_calls").await, 300.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_recorded_listed_used_and_revoked() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let issued = stack.first_token(&session).await;
    assert!(issued.token.len() <= 600, "{} bytes", issued.token.len());
    assert_eq!(issued.token_type, "Bearer");
    let listed = stack.listed(&session).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].token_id, issued.token_id);
    assert!(listed[0].first_used_at.is_none() && !listed[0].revoked);
    // The token is shown once: no list contains a part of it.
    let text = format!("{listed:?}");
    assert!(issued.token.split('.').all(|part| !text.contains(part)));

    // Session tokens are valid at the proxy only, service-account keys everywhere else only.
    let refused = stack.list_with(&issued.token).await.unwrap_err();
    assert_eq!(
        session_proto::error::reason_of(&refused),
        Some(Reason::CallerUnknown)
    );
    stack.list_with(&stack.key).await.unwrap();
    stack.call(0, &stack.key).await.refused(Reason::TokenMalformed);
    assert_eq!(stack.call(0, &issued.token).await.code(), Code::Ok);
    let used = within("its first use is recorded", async {
        loop {
            let listed = stack.listed(&session).await;
            if listed[0].first_used_at.is_some() {
                return listed;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(used[0].last_used_at.is_some());
    stack.revoke(&session, &issued.token_id).await;
    stack.revoke(&session, &issued.token_id).await;
    assert!(stack.listed(&session).await[0].revoked);
    stack.revoke_all(&session).await;
    assert!(
        stack.listed(&session).await.is_empty(),
        "those of an older epoch are gone"
    );

    let partition = session_core::OrgId::partition(&"acme".parse().unwrap());
    let trail = stack.store.read_audit(partition, "", 1000).await.unwrap();
    let of_token = |action| {
        let of = trail.iter().filter(|audited| audited.record.action == action);
        of.filter(|audited| {
            audited
                .record
                .token
                .as_ref()
                .is_none_or(|id| id.as_str() == issued.token_id)
        })
        .count()
    };
    assert_eq!(of_token(AuditAction::TokenIssued), 1);
    assert_eq!(of_token(AuditAction::TokenFirstUsed), 1);
    assert_eq!(of_token(AuditAction::TokenRevoked), 2);
    assert_eq!(of_token(AuditAction::TokensRevoked), 1);
    // The audit trail has the address of token-issuer's caller.
    let by_callers = trail.iter().map(|audited| &audited.record).filter(|record| {
        matches!(
            record.action,
            AuditAction::TokenIssued | AuditAction::TokenRevoked | AuditAction::TokensRevoked
        )
    });
    for record in by_callers {
        assert_eq!(record.address, "127.0.0.1", "{record:?}");
    }
}
