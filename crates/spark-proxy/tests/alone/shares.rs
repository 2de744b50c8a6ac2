//! Shares: limits per session and per organization, in number, bytes and time, leave room for other
//! callers and are reported with a reason.

use crate::common::{Client, Reply, Rig, Rpc, Running, send, within};
use bytes::Bytes;
use session_core::{Reason, SessionId, Timestamp};
use session_proto::internal::{Backend, Route, RouteStatus, SparkBinding};
use session_token::Claims;
use spark_proxy::Config;
use std::time::{Duration, Instant};
use test_support::fake_spark::{SPARK_SESSION, Shape, request};
use tonic::Code;

const MIB: usize = 1 << 20;

/// A session of an organization, and its token.
struct Tenant {
    route: Route,
    token: String,
}

fn tenant(rig: &Rig, org: &str, number: u64) -> Tenant {
    let session = SessionId::generate(Timestamp::from_millis(11), number);
    let route = Route {
        session_id: session.to_string(),
        org: org.to_owned(),
        ..rig.route()
    };
    let token = rig.sign(&Claims {
        sid: session,
        org: org.parse().unwrap(),
        ..rig.claims()
    });
    Tenant { route, token }
}

/// A route to one shared server for all; the Spark session is bound.
fn on_shared(rig: &Rig, org: &str, number: u64) -> Tenant {
    let mut tenant = tenant(rig, org, number);
    tenant.route.backend = tenant.route.backend.map(|backend| Backend {
        dedicated: false,
        ..backend
    });
    tenant.route.bindings = vec![SparkBinding {
        spark_session_id: SPARK_SESSION.to_owned(),
    }];
    rig.routes.set(tenant.route.clone());
    tenant
}

/// A route whose compute never becomes ready.
fn pending(rig: &Rig, org: &str, number: u64) -> Tenant {
    let mut tenant = tenant(rig, org, number);
    tenant.route.status = RouteStatus::Pending.into();
    tenant.route.backend = None;
    rig.routes.set(tenant.route.clone());
    tenant
}

async fn rig(change: impl FnOnce(&mut Config)) -> Rig {
    Rig::with(|config| {
        config.listen.workers = 1;
        change(config);
    })
    .await
}

async fn begin(client: &Client, rpc: Rpc, body: Bytes) -> Running {
    let mut running = within("a stream", client.begin(&rpc)).await.unwrap();
    running.finish(body);
    running
}

async fn hang(client: &Client, tenant: &Tenant) -> Running {
    begin(
        client,
        Rpc::execute(&tenant.token).shape(Shape::Hang),
        request(b"go"),
    )
    .await
}

/// An upload that started and does not end.
async fn upload(client: &Client, tenant: &Tenant, bytes: usize) -> Running {
    let rpc = Rpc::spark("AddArtifacts")
        .bearer(&tenant.token)
        .shape(Shape::Count);
    let mut running = client.begin(&rpc).await.unwrap();
    send(&mut running.upload, request(&vec![7; bytes])).await;
    running
}

/// The call is rejected for this reason, with the configuration key of the limit.
async fn refused(running: Running, reason: Reason, key: &str) {
    // Kept: dropping the upload would cancel the call.
    let Running { response, upload } = running;
    let reply = within("it is refused", Reply::read(response)).await.unwrap();
    reply.refused(reason);
    let text = reply.status().message().to_owned();
    assert!(text.contains(key), "{key}: {text}");
    drop(upload);
}

async fn works(client: &Client, tenant: &Tenant) {
    let reply = client
        .call(Rpc::execute(&tenant.token).body(request(b"SELECT 1")))
        .await;
    assert_eq!(reply.code(), Code::Ok, "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_organization_cannot_use_up_a_shared_server() {
    let _alone = crate::alone().await;
    let rig = rig(|config| {
        config.backend.shared_calls_per_session = 2;
        config.backend.shared_calls_per_org = 3;
    })
    .await;
    let [one, two, three] = [("acme", 1), ("acme", 2), ("other", 3)].map(|(org, n)| on_shared(&rig, org, n));
    let client = rig.client().await;
    let mut running = vec![hang(&client, &one).await, hang(&client, &one).await];
    within("they run", rig.spark.until(|seen| seen.requests.len() == 2)).await;
    refused(
        hang(&client, &one).await,
        Reason::QuotaExceeded,
        "backend.shared_calls_per_session",
    )
    .await;
    running.push(hang(&client, &two).await);
    within("it runs", rig.spark.until(|seen| seen.requests.len() == 3)).await;
    refused(
        hang(&client, &two).await,
        Reason::QuotaExceeded,
        "backend.shared_calls_per_org",
    )
    .await;
    works(&client, &three).await;
    for method in ["Interrupt", "ReleaseExecute"] {
        let reply = client.call(Rpc::spark(method).bearer(&one.token)).await;
        assert_eq!(reply.code(), Code::Ok, "{method}");
    }
    drop(running);
    within("there is room again", async {
        while client.call(Rpc::execute(&one.token)).await.code() != Code::Ok {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_organization_cannot_use_up_the_held_calls() {
    let _alone = crate::alone().await;
    let rig = rig(|config| {
        config.limits.held_calls = 4;
        config.limits.held_calls_per_org = 3;
        config.limits.held_calls_per_session = 2;
    })
    .await;
    let [one, two, three] = [("acme", 1), ("acme", 2), ("other", 3)].map(|(org, n)| pending(&rig, org, n));
    let client = rig.client().await;
    let mut held = Vec::new();
    for (number, tenant) in [&one, &one, &two].into_iter().enumerate() {
        held.push(hang(&client, tenant).await);
        let held = rig.until_metric("spark_proxy_held_calls", |n| n == (number + 1) as f64);
        within("it is held", held).await;
    }
    for (tenant, key) in [
        (&one, "limits.held_calls_per_session"),
        (&two, "limits.held_calls_per_org"),
    ] {
        refused(hang(&client, tenant).await, Reason::TooManyWaiting, key).await;
    }
    held.push(hang(&client, &three).await);
    within(
        "another organization's is held",
        rig.until_metric("spark_proxy_held_calls", |n| n == 4.0),
    )
    .await;
    refused(
        hang(&client, &three).await,
        Reason::TooManyWaiting,
        "limits.held_calls)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_uploads_count_their_received_bytes() {
    let _alone = crate::alone().await;
    let rig = rig(|config| {
        config.limits.held_bytes_per_session = MIB;
        config.limits.held_bytes_per_org = MIB + MIB / 2;
        config.limits.held_bytes = 2 * MIB;
    })
    .await;
    let [one, two, three] = [("acme", 1), ("acme", 2), ("other", 3)].map(|(org, n)| pending(&rig, org, n));
    let client = rig.client().await;
    let mut held = Vec::new();
    // Thirty unfinished small uploads are within the limit.
    for number in 1..=30 {
        held.push(upload(&client, &one, 1000).await);
        let held = rig.until_metric("spark_proxy_held_calls", |n| n == f64::from(number));
        within("it is held", held).await;
    }
    // Bytes received later count too.
    let large = |tenant| upload(&client, tenant, MIB - MIB / 64);
    refused(
        large(&one).await,
        Reason::TooManyWaiting,
        "limits.held_bytes_per_session",
    )
    .await;
    held.push(upload(&client, &one, MIB / 2).await);
    refused(
        large(&two).await,
        Reason::TooManyWaiting,
        "limits.held_bytes_per_org",
    )
    .await;
    held.push(upload(&client, &three, MIB / 4).await);
    within(
        "another organization's is held",
        rig.until_metric("spark_proxy_held_calls", |n| n == 32.0),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_upload_releases_its_place() {
    let _alone = crate::alone().await;
    let rig = rig(|config| config.limits.request_idle_timeout = Duration::from_millis(400)).await;
    let tenant = on_shared(&rig, "acme", 1);
    let client = rig.client().await;
    let stalled = upload(&client, &tenant, 1000).await;
    refused(stalled, Reason::MalformedMessage, "limits.request_idle_timeout").await;
    within(
        "the upstream stream is reset",
        rig.spark.until(|seen| seen.resets == 1),
    )
    .await;

    // A slow upload, and a call that waits for its response, continue.
    let mut slow = upload(&client, &tenant, 10).await;
    let waits = begin(
        &client,
        Rpc::execute(&tenant.token).shape(Shape::HangAfterOne),
        request(b"go"),
    )
    .await;
    let (_upload, response) = within("headers", waits.head()).await.unwrap();
    let waits = tokio::spawn(Reply::rest(response));
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send(&mut slow.upload, request(b"more")).await.unwrap();
    }
    slow.finish(Bytes::new());
    let reply = within("the count", Reply::read(slow.response)).await.unwrap();
    assert_eq!(reply.code(), Code::Ok, "{reply:?}");
    assert!(!waits.is_finished());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_responses_are_bounded() {
    let _alone = crate::alone().await;
    let rig = rig(|config| {
        config.limits.unread_bytes_per_session = 2 * MIB;
        config.limits.unread_bytes_per_org = 3 * MIB;
    })
    .await;
    let [one, two, three] = [("acme", 1), ("acme", 2), ("other", 3)].map(|(org, n)| on_shared(&rig, org, n));
    let stream = |tenant: &Tenant| Rpc::execute(&tenant.token).shape(Shape::Stream(100, 100_000));
    let mut unread = Vec::new();
    for tenant in [&one, &two] {
        let client = rig.client().await;
        for _ in 0..4 {
            let running = begin(&client, stream(tenant), request(b"go")).await;
            unread.push(within("headers", running.head()).await.unwrap());
        }
    }
    let limited = || {
        rig.until_metric("spark_proxy_calls_total{outcome=\"limit_exceeded\"}", |n| {
            n >= 4.0
        })
    };
    within("those beyond the bound end", limited()).await;
    // The others complete, and so does a call of another organization.
    let client = rig.client().await;
    let reply = client.call(stream(&three)).await;
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 10_000_000));
    let mut whole = 0;
    for (_upload, response) in unread {
        let reply = within("its end", Reply::rest(response)).await.unwrap();
        if reply.code() == Code::Ok {
            assert_eq!(reply.body.len(), 10_000_000);
            whole += 1;
        } else {
            reply.refused(Reason::QuotaExceeded);
            assert!(reply.status().message().contains("limits.unread_bytes_per_"));
        }
    }
    assert!(whole >= 2, "{whole} were read to their end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_organization_cannot_use_up_the_bind_requests() {
    let _alone = crate::alone().await;
    let rig = rig(|_| {}).await;
    let client = rig.client().await;
    let unbound = |org: &str, number| {
        let mut tenant = on_shared(&rig, org, number);
        tenant.route.bindings.clear();
        rig.routes.set(tenant.route.clone());
        tenant
    };
    let tenants: Vec<_> = (0..100).map(|number| unbound("acme", number)).collect();
    rig.routes.slow_answers(Duration::from_secs(1));
    let mut calls = tokio::task::JoinSet::new();
    for (number, tenant) in tenants.iter().enumerate() {
        // Distinct Spark session ids, so that each is unbound.
        let rpc = Rpc::execute(&tenant.token).body(about(number));
        let client = client.clone();
        calls.spawn(async move { client.call(rpc).await });
    }
    let other = unbound("other", 1000);
    let rpc = Rpc::execute(&other.token).body(about(1000));
    let reply = client.call(rpc).await;
    assert_eq!(reply.code(), Code::Ok, "{reply:?}");
    let replies = within("they end", calls.join_all()).await;
    let (done, limited): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.code() == Code::Ok);
    assert!(done.len() >= 64 && !limited.is_empty(), "{}", done.len());
    for reply in limited {
        reply.refused(Reason::TooManyWaiting);
    }
    assert!(
        (60..=65).contains(&rig.routes.most_binds()),
        "{}",
        rig.routes.most_binds()
    );
}

/// A request for the Spark session of this number.
fn about(number: usize) -> Bytes {
    let mut bytes = request(b"SELECT 1").to_vec();
    bytes[7..15].copy_from_slice(format!("{number:08x}").as_bytes());
    bytes.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_organization_cannot_use_up_the_route_requests() {
    let _alone = crate::alone().await;
    let rig = rig(|_| {}).await;
    let tenants: Vec<_> = (0..3).map(|number| on_shared(&rig, "acme", number)).collect();
    for tenant in &tenants {
        rig.routes.hang(&tenant.route.session_id);
    }
    let client = rig.client().await;
    let mut waiting = Vec::new();
    for number in 0..1024 {
        waiting.push(hang(&client, &tenants[number % 3]).await);
    }
    within(
        "all wait",
        rig.until_metric("spark_proxy_calls_opened_total", |n| n == 1024.0),
    )
    .await;
    refused(
        hang(&client, &tenants[0]).await,
        Reason::TooManyWaiting,
        "looked up",
    )
    .await;
    works(&client, &on_shared(&rig, "other", 9)).await;
}

/// Interval between two calls of the working organization.
const PAUSE: Duration = Duration::from_millis(2);
/// Latency that a busy machine adds to a call.
const NOISE: Duration = Duration::from_millis(20);

/// The second slowest of a hundred calls, none of which fails.
async fn p99(client: &Client, tenant: &Tenant) -> Duration {
    const CALLS: usize = 200;
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        works(client, tenant).await;
        times.push(began.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    times.sort();
    times[CALLS * 99 / 100 - 1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_at_all_its_limits_does_not_affect_another() {
    let _alone = crate::alone().await;
    let rig = rig(|config| {
        config.backend.connections_per_pool = 4;
        config.backend.shared_calls_per_session = 16;
        config.backend.shared_calls_per_org = 32;
        config.limits.calls_per_session = 64;
        config.limits.calls_per_second_per_org = 400;
        config.limits.held_calls = 64;
        config.limits.held_calls_per_org = 32;
        config.limits.held_calls_per_session = 16;
        config.limits.held_bytes = 4 * MIB;
        config.limits.held_bytes_per_org = 2 * MIB;
        config.limits.held_bytes_per_session = MIB;
        config.limits.unread_bytes = 8 * MIB;
        config.limits.unread_bytes_per_org = 4 * MIB;
        config.limits.unread_bytes_per_session = 2 * MIB;
    })
    .await;
    let other = on_shared(&rig, "other", 0);
    let beside = rig.client().await;
    works(&beside, &other).await;
    let alone = p99(&beside, &other).await;
    let most = 2 * alone + NOISE;
    let greedy: Vec<_> = (1..=4).map(|number| on_shared(&rig, "acme", number)).collect();
    let waiting: Vec<_> = (11..=14).map(|number| pending(&rig, "acme", number)).collect();
    let hanging: Vec<_> = (21..=24).map(|number| on_shared(&rig, "acme", number)).collect();
    for tenant in &hanging {
        rig.routes.hang(&tenant.route.session_id);
    }
    let limited = "spark_proxy_calls_total{outcome=\"limit_exceeded\"}";
    let undisturbed = async |what: &str| {
        let p99 = p99(&beside, &other).await;
        println!("{what}: p99 {p99:?}, alone {alone:?}");
        assert!(p99 <= most, "{what}: p99 {p99:?}, alone {alone:?}");
    };
    // Each use beyond its share is rejected; calls within it continue.
    let filled =
        async |what: &str, tenants: &[Tenant], each: usize, is_upload: bool, rpc: &dyn Fn(&Tenant) -> Rpc| {
            let before = rig.metric(limited).await;
            let client = rig.client().await;
            let mut taken = Vec::new();
            for tenant in tenants {
                for _ in 0..each {
                    let mut running = client.begin(&rpc(tenant)).await.unwrap();
                    let _ = running.upload.send_data(request(&[7; 100]), !is_upload);
                    taken.push(running);
                }
            }
            within(what, rig.until_metric(limited, |n| n > before)).await;
            undisturbed(what).await;
            taken
        };
    let hang = |tenant: &Tenant| Rpc::execute(&tenant.token).shape(Shape::Hang);
    let upload = |tenant: &Tenant| {
        Rpc::spark("AddArtifacts")
            .bearer(&tenant.token)
            .shape(Shape::Count)
    };
    drop(filled("places", &greedy, 20, false, &hang).await);
    drop(filled("uploads", &greedy, 20, true, &upload).await);
    drop(filled("held calls", &waiting, 20, false, &hang).await);
    drop(filled("held uploads", &waiting, 20, true, &upload).await);
    drop(filled("open calls", &hanging, 70, false, &hang).await);

    // Unread responses.
    let before = rig.metric(limited).await;
    let client = rig.client().await;
    let mut unread = Vec::new();
    for tenant in &greedy {
        for _ in 0..4 {
            let rpc = Rpc::execute(&tenant.token).shape(Shape::Stream(100, 100_000));
            unread.push(begin(&client, rpc, request(b"go")).await);
        }
    }
    within("unread", rig.until_metric(limited, |n| n > before)).await;
    undisturbed("unread responses").await;
    drop(unread);

    // Calls beyond the rate and bind requests, continuously.
    rig.routes.slow_answers(Duration::from_millis(300));
    let mut flood = tokio::task::JoinSet::new();
    for tenant in &greedy {
        let (client, token) = (rig.client().await, tenant.token.clone());
        flood.spawn(async move {
            for number in 0.. {
                let body = if number % 10 == 0 {
                    about(number)
                } else {
                    request(b"go")
                };
                let call = client.try_call(Rpc::execute(&token).body(body));
                let _ = tokio::time::timeout(Duration::from_millis(20), call).await;
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        });
    }
    undisturbed("rate and binds").await;
    assert!(rig.routes.most_binds() > 0);
}
