//! Real engines: how soon the first query after idle is answered, and how soon
//! a close is felt everywhere.

use crate::calls::Times;
use crate::rows::Rows;
use anyhow::{Context as _, Result, ensure};
use e2e::{Engine, Stack, StackOptions, wait};
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::plan::OpType;
use session_proto::spark::relation::RelType;
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{AnalyzePlanRequest, ExecutePlanRequest, Plan, Relation, Sql, UserContext};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const SESSIONS: usize = 10;
const WAITING: usize = 1000;
/// A proxy takes 128 streams on one connection.
const STREAMS: usize = 100;
const CLOSES: usize = 10;
const IDLE: Duration = Duration::from_secs(240);
const GONE: Duration = Duration::from_secs(60);

type Spark = SparkConnectServiceClient<Channel>;

async fn client(address: SocketAddr) -> Result<Spark> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect()
        .await?;
    Ok(SparkConnectServiceClient::new(channel))
}

fn with_token<T>(message: T, token: &str) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse()?;
    request.metadata_mut().insert("authorization", bearer);
    Ok(request)
}

fn version(spark_session: &str) -> AnalyzePlanRequest {
    AnalyzePlanRequest {
        session_id: spark_session.to_owned(),
        user_context: Some(UserContext::default()),
        analyze: Some(Analyze::SparkVersion(SparkVersion {})),
        ..AnalyzePlanRequest::default()
    }
}

fn query(sql: &str) -> ExecutePlanRequest {
    let relation = Relation {
        common: None,
        rel_type: Some(RelType::Sql(Sql {
            query: sql.to_owned(),
        })),
    };
    ExecutePlanRequest {
        session_id: uuid::Uuid::new_v4().to_string(),
        user_context: Some(UserContext::default()),
        plan: Some(Plan {
            op_type: Some(OpType::Root(relation)),
        }),
        ..ExecutePlanRequest::default()
    }
}

/// The first query after idle, one session after another; then many at once.
pub(crate) async fn wake(rows: &mut Rows) -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        proxy: format!("limits.held_calls_per_session = {WAITING}\nlimits.calls_per_session = 4000\nlimits.streams_per_connection = 5000"),
        ..StackOptions::default()
    })
    .await?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let id = stack.session("ada", Engine::Sail, &["--idle-timeout", "1m"])?;
        sessions.push((stack.token("ada", &id)?, id));
    }
    for (_, id) in &sessions {
        wait::until("idle without compute", IDLE, async || {
            match stack.show("ada", id) {
                Ok(shown) if shown["phase"] == "released" => Ok(()),
                Ok(shown) => Err(shown.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
    }
    let mut times = Times::new()?;
    let mut proxy = client(stack.proxy_address).await?;
    let (last, others) = sessions.split_last().context("no session")?;
    for (token, _) in others {
        let begun = Instant::now();
        let mut answer = proxy
            .execute_plan(with_token(query("SELECT 1"), token)?)
            .await?
            .into_inner();
        while answer.message().await?.is_some() {}
        times.note(begun.elapsed());
    }
    rows.at_most(
        "first query after idle, Sail: p50",
        "s",
        times.millis(0.5) / 1e3,
        1.5,
    );
    rows.at_most(
        "first query after idle, Sail: p99",
        "s",
        times.millis(0.99) / 1e3,
        4.0,
    );

    let mut calls = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..WAITING / STREAMS {
        let proxy = client(stack.proxy_address).await?;
        for _ in 0..STREAMS {
            let (mut proxy, request) = (
                proxy.clone(),
                with_token(version(&uuid::Uuid::new_v4().to_string()), &last.0)?,
            );
            calls.spawn(async move { proxy.analyze_plan(request).await.map(drop) });
        }
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    rows.tell(
        "1000 first calls at once: all answered after",
        "s",
        begun.elapsed().as_secs_f64(),
    );
    let generation = stack.show("ada", &last.1)?["generation"].as_u64().unwrap_or(0);
    rows.at_most("provisions for them", "", generation as f64 - 1.0, 1.0);
    Ok(())
}

/// From a close to the refusal at each of two proxies, the end of running
/// streams and the end of the engine.
pub(crate) async fn close(rows: &mut Rows) -> Result<()> {
    let stack = Stack::start().await?;
    let (_other, other) = stack.another_proxy().await?;
    let (mut refused, mut ended, mut gone) = (Times::new()?, Times::new()?, Times::new()?);
    for _ in 0..CLOSES {
        let id = stack.session("ada", Engine::Sail, &[])?;
        let token = stack.token("ada", &id)?;
        let mut proxies = [client(stack.proxy_address).await?, client(other).await?];
        let mut streams = JoinSet::new();
        for proxy in &mut proxies {
            let spark_session = uuid::Uuid::new_v4().to_string();
            proxy
                .analyze_plan(with_token(version(&spark_session), &token)?)
                .await?;
            let (mut proxy, long) = (
                proxy.clone(),
                with_token(query("SELECT sum(id % 7) FROM range(1000000000000)"), &token)?,
            );
            streams.spawn(async move {
                let mut answer = proxy.execute_plan(long).await?.into_inner();
                while answer.message().await?.is_some() {}
                Ok::<_, Status>(())
            });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(streams.try_join_next().is_none(), "a stream ended by itself");
        let begun = Instant::now();
        stack.berth("ada", &["close", &id])?;
        for proxy in &mut proxies {
            loop {
                let call = with_token(version(&uuid::Uuid::new_v4().to_string()), &token)?;
                match proxy.analyze_plan(call).await {
                    Err(status) if status.code() == tonic::Code::FailedPrecondition => break,
                    Ok(_) | Err(_) => {}
                }
                ensure!(begun.elapsed() < GONE, "a proxy goes on after the close");
            }
            refused.note(begun.elapsed());
        }
        while let Some(stream) = streams.join_next().await {
            ensure!(stream?.is_err(), "a stream ended well in a closed session");
            ended.note(begun.elapsed());
        }
        wait::until("the end of Sail", GONE, async || {
            match stack.children_matching("sail spark server") {
                Ok(left) if left.is_empty() => Ok(()),
                Ok(left) => Err(format!("{left:?} live")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        gone.note(begun.elapsed());
    }
    rows.at_most(
        "close -> refused at both proxies: p99",
        "s",
        refused.millis(0.99) / 1e3,
        1.0,
    );
    rows.at_most("close -> streams ended: max", "s", ended.millis(1.0) / 1e3, 5.0);
    rows.at_most("close -> engine gone: max", "s", gone.millis(1.0) / 1e3, 30.0);
    Ok(())
}
