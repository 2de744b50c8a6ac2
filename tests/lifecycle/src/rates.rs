//! Creates, routes and lists: how many, and how soon, at one manager.

use crate::calls::{self, Paced, Times, closed_loop, open_loop};
use crate::rows::Rows;
use crate::stage::{CLUSTER, Manager, ORGS, Stage};
use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use session_core::{Clock as _, Session, SystemClock, TokenId};
use session_proto::internal::ResolveRouteRequest;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::v1::{self, SessionStatus};
use session_token::Claims;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const TIME: Duration = Duration::from_secs(6);
const AT_ONCE: usize = 64;
const TOKENS: usize = 2000;
const LISTS: usize = 200;

/// CreateSession over the API: quota, indexes and all.
pub(crate) async fn creates(stage: &Stage, manager: &Manager, rows: &mut Rows) -> Result<()> {
    let callers: Vec<_> = stage
        .keys
        .iter()
        .map(|key| calls::sessions(&manager.public, key))
        .collect();
    let callers = Arc::new(callers);
    let create = move |n: u64| {
        let mut sessions = callers[usize::try_from(n).unwrap_or(0) % ORGS].clone();
        async move {
            let request = v1::CreateSessionRequest {
                cluster: CLUSTER.to_owned(),
                ..Default::default()
            };
            sessions.create_session(request).await.map(drop)
        }
    };
    let rate = closed_loop(AT_ONCE, TIME, create.clone()).await?;
    rows.at_least("creates, one manager", "/s", rate, 3000.0);
    // What was created goes on to become active: not the next row's burden.
    settle(manager).await?;
    let times = open_loop(1000, TIME, create).await?.calls;
    rows.at_most("create at 1000/s: p99", "ms", times.millis(0.99), 20.0);
    rows.tell("create at 1000/s: p50", "ms", times.millis(0.5));
    Ok(())
}

/// Waits until the manager rests.
pub(crate) async fn settle(manager: &Manager) -> Result<()> {
    for _ in 0..120 {
        let before = manager.cpu()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if manager.cpu()? - before < 0.05 {
            return Ok(());
        }
    }
    anyhow::bail!("the manager does not come to rest")
}

/// ResolveRoute of active sessions, as a proxy asks that does not know them.
pub(crate) async fn routes(
    stage: &Stage,
    manager: &Manager,
    sessions: &[Session],
    rows: &mut Rows,
) -> Result<()> {
    let now = SystemClock.now();
    let tokens = sessions
        .iter()
        .take(TOKENS)
        .map(|session| {
            stage.signer.sign(&Claims {
                iss: "berth".to_owned(),
                aud: "berth-spark-connect".to_owned(),
                sub: session.owner.clone(),
                org: session.org.clone(),
                sid: session.id.clone(),
                epoch: 1,
                iat: now.as_secs(),
                nbf: now.as_secs(),
                exp: now.as_secs() + 3600,
                jti: TokenId::generate(now, rand::random()),
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (tokens, client) = (
        Arc::new(tokens),
        RouteServiceClient::new(manager.internal.clone()),
    );
    let resolve = move |n: u64| {
        let token = tokens[usize::try_from(n).unwrap_or(0) % tokens.len()].clone();
        let mut client = client.clone();
        async move {
            let request = ResolveRouteRequest {
                session_token: token,
                wait: None,
                wake: false,
            };
            let answer = client.resolve_route(request).await?.into_inner();
            match answer.route.and_then(|route| route.backend) {
                Some(_) => Ok(()),
                None => Err(tonic::Status::internal("an active session without a route")),
            }
        }
    };
    let rate = closed_loop(AT_ONCE, TIME, resolve.clone()).await?;
    rows.at_least("ResolveRoute, active session", "/s", rate, 10_000.0);
    let times = open_loop(2000, TIME, resolve).await?.calls;
    rows.at_most("ResolveRoute at 2000/s: p99", "ms", times.millis(0.99), 3.0);
    rows.tell("ResolveRoute at 2000/s: p50", "ms", times.millis(0.5));
    let Paced { calls, late } = open_loop(2000, TIME, nothing(manager)).await?;
    rows.tell(
        "a call that does nothing at 2000/s: p99",
        "ms",
        calls.millis(0.99),
    );
    rows.tell("a call that does nothing at 2000/s: p50", "ms", calls.millis(0.5));
    rows.tell("the pacing thread woke late by: p99", "ms", late.millis(0.99));
    Ok(())
}

/// The same way to the same process, and nothing to do there: what of a call's
/// time is the machine's.
fn nothing(
    manager: &Manager,
) -> impl Fn(u64) -> BoxFuture<'static, Result<(), tonic::Status>> + Clone + use<> {
    let client = HealthClient::new(manager.internal.clone());
    move |_| {
        let mut client = client.clone();
        async move { client.check(HealthCheckRequest::default()).await.map(drop) }.boxed()
    }
}

/// Pages of 100 by an index.
pub(crate) async fn lists(stage: &Stage, manager: &Manager, rows: &mut Rows) -> Result<()> {
    let mut times = Times::new()?;
    for n in 0..LISTS {
        let mut sessions = calls::sessions(&manager.public, &stage.keys[n % ORGS]);
        let mut request = v1::ListSessionsRequest {
            page_size: 100,
            ..Default::default()
        };
        match n % 3 {
            0 => request.statuses = vec![SessionStatus::Active.into()],
            1 => request.owner = format!("sa|owner-{:03}-{}", n % ORGS, n % 10),
            _ => request.cluster = CLUSTER.to_owned(),
        }
        let begun = Instant::now();
        let page = sessions.list_sessions(request).await?.into_inner();
        times.note(begun.elapsed());
        page.sessions.first().context("an empty list")?;
    }
    rows.at_most(
        "list page of 100 by an index: p99",
        "ms",
        times.millis(0.99),
        20.0,
    );
    Ok(())
}
