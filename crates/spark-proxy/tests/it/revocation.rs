//! How soon a revocation and a close are effective at every proxy, and the
//! life of a token in the ledger. Prints its figures; `ROUNDS=200` for more.

use crate::common;
use crate::common::{Ask, Client, Reply, within};
use crate::control_plane::Whole;
use session_core::{AuditAction, Reason};
use session_proto::internal::WatchRoutesRequest;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::watch_routes_response::Update;
use session_store::redis::Options;
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, request};
use test_support::redis::PrivateRedis;
use tonic::Code;

/// How long calls with `token` still succeed there.
async fn until_refused(client: &Client, token: &str, reason: Reason, since: Instant) -> Duration {
    within("the token is refused", async {
        loop {
            let reply = client.call(Ask::execute(token)).await;
            if reply.code() != Code::Ok {
                reply.refused(reason);
                return since.elapsed();
            }
        }
    })
    .await
}

fn figures(what: &str, mut times: Vec<Duration>) -> Duration {
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
    let whole = Whole::start().await;
    let clients = [whole.client(0).await, whole.client(1).await];
    let (mut one, mut all, mut closed, mut streams) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let session = whole.session().await;
        let (revoked, kept) = (
            whole.first_token(&session).await,
            whole.issue(&session).await.unwrap(),
        );
        let mut running = Vec::new();
        for client in &clients {
            for token in [&revoked.token, &kept.token] {
                assert_eq!(client.call(Ask::execute(token)).await.code(), Code::Ok);
            }
            let mut call = client
                .begin(&Ask::execute(&revoked.token).shape(Shape::HangAfterOne))
                .await
                .unwrap();
            call.finish(request(b"go"));
            running.push(within("headers", call.head()).await.unwrap());
        }
        let since = Instant::now();
        whole.revoke(&session, &revoked.token_id).await;
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
                client.call(Ask::execute(&kept.token)).await.code(),
                Code::Ok,
                "the other token"
            );
        }
        let since = Instant::now();
        whole.revoke_all(&session).await;
        let (a, b) = tokio::join!(
            until_refused(&clients[0], &kept.token, Reason::TokenRevoked, since),
            until_refused(&clients[1], &kept.token, Reason::TokenRevoked, since)
        );
        all.extend([a, b]);
        let last = whole.issue(&session).await.unwrap();
        for client in &clients {
            assert_eq!(client.call(Ask::execute(&last.token)).await.code(), Code::Ok);
        }
        let since = Instant::now();
        whole.close(&session).await;
        let (a, b) = tokio::join!(
            until_refused(&clients[0], &last.token, Reason::SessionClosed, since),
            until_refused(&clients[1], &last.token, Reason::SessionClosed, since)
        );
        closed.extend([a, b]);
    }
    let second = Duration::from_secs(1);
    assert!(figures("revoke one", one) <= second);
    assert!(figures("revoke all", all) <= second);
    assert!(figures("close", closed) <= second);
    assert!(figures("running streams ended", streams) <= 5 * second);
}

/// How long calls still succeed there; none may be refused for another reason.
async fn until_unavailable(client: &Client, token: &str, since: Instant) -> Duration {
    until_refused(client, token, Reason::ControlPlaneUnavailable, since).await
}

/// Known routes count for 5 s after the last word of session-manager, which may
/// have come 2 s after the cut; looking in vain takes a while too.
const TRUSTED_WHEN_CUT: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_manager_that_lost_its_store_is_not_trusted() {
    let mut redis = PrivateRedis::start().await.unwrap();
    let store = session_store::open(&redis.url(), &Options::default())
        .await
        .unwrap();
    let whole = Whole::start_on(store, |config| {
        config.routes.stale_if_unreachable = Duration::ZERO;
    })
    .await;
    let session = whole.session().await;
    let token = whole.first_token(&session).await.token;
    let client = whole.client(0).await;
    let mut manager = RouteServiceClient::new(whole.internal_channel());
    let mut watch = manager
        .watch_routes(WatchRoutesRequest::default())
        .await
        .unwrap()
        .into_inner();
    within("heartbeats", async {
        let mut beats = 0;
        // For longer than a lost watch would count.
        while beats < 10 {
            let update = watch.message().await.unwrap().unwrap().update;
            beats += u32::from(matches!(update, Some(Update::Heartbeat(_))));
            assert_eq!(client.call(Ask::execute(&token)).await.code(), Code::Ok);
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
        while client.call(Ask::execute(&token)).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// Sessions that wait for compute take nothing that others need of the
/// connections to session-manager.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_waiting_sessions_hold_up_no_other() {
    const WAITING: usize = 300;
    let whole = Whole::start().await;
    let client = whole.client(0).await;
    let mut held = Vec::new();
    for _ in 0..WAITING {
        let session = whole.pending_session().await;
        let token = whole.first_token(&session).await.token;
        let mut call = client.begin(&Ask::execute(&token)).await.unwrap();
        call.finish(request(b"go"));
        held.push(call);
    }
    let metric = async |name: &str| {
        let (_, text) = common::http_get(whole.admins[0], "/metrics").await;
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
        let session = whole.session().await;
        let token = whole.first_token(&session).await.token;
        let since = Instant::now();
        assert_eq!(client.call(Ask::execute(&token)).await.code(), Code::Ok);
        firsts.push(since.elapsed());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(figures("first calls beside 300 waiting sessions", firsts) < Duration::from_secs(1));
    assert_eq!(metric("spark_proxy_activity_reports_failed_total").await, failed);
    assert_eq!(metric("spark_proxy_route_watch_connected").await, 1.0);
    assert_eq!(metric("spark_proxy_held_calls").await, 300.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_recorded_listed_used_and_taken_back() {
    let whole = Whole::start().await;
    let session = whole.session().await;
    let issued = whole.first_token(&session).await;
    assert!(issued.token.len() <= 600, "{} bytes", issued.token.len());
    assert_eq!(issued.token_type, "Bearer");
    let listed = whole.listed(&session).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].token_id, issued.token_id);
    assert!(listed[0].first_used_at.is_none() && !listed[0].revoked);
    // It is shown once: nothing that is listed holds a part of it.
    let text = format!("{listed:?}");
    assert!(issued.token.split('.').all(|part| !text.contains(part)));

    // Good at the proxy, and nowhere else; the account's key the other way round.
    let refused = whole.list_with(&issued.token).await.unwrap_err();
    assert_eq!(
        session_proto::error::reason_of(&refused),
        Some(Reason::CallerUnknown)
    );
    whole.list_with(&whole.key).await.unwrap();
    whole.call(0, &whole.key).await.refused(Reason::TokenMalformed);
    assert_eq!(whole.call(0, &issued.token).await.code(), Code::Ok);
    let used = within("its first use is known", async {
        loop {
            let listed = whole.listed(&session).await;
            if listed[0].first_used_at.is_some() {
                return listed;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(used[0].last_used_at.is_some());
    whole.revoke(&session, &issued.token_id).await;
    whole.revoke(&session, &issued.token_id).await;
    assert!(whole.listed(&session).await[0].revoked);
    whole.revoke_all(&session).await;
    assert!(
        whole.listed(&session).await.is_empty(),
        "those of an older epoch are gone"
    );

    let partition = session_core::OrgId::partition(&"acme".parse().unwrap());
    let trail = whole.store.read_audit(partition, "", 1000).await.unwrap();
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
    // Token-issuer says where its callers call from.
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
