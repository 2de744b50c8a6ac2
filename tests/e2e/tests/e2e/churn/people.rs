//! What people do, and what they may rely on.

use super::Shared;
use anyhow::{Context as _, Result, bail, ensure};
use e2e::authorized;
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::spark::plan::OpType;
use session_proto::spark::relation::RelType;
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{ExecutePlanRequest, Plan, Relation, Sql, UserContext};
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// The longest that anything may take, deaths included.
const PATIENCE: Duration = Duration::from_secs(90);
const CALL: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(100);
/// So many of its sessions a person keeps open.
const KEPT: usize = 10;

/// One session, and what its owner was told of it.
#[derive(Debug)]
pub(super) struct Deed {
    pub(super) who: &'static str,
    pub(super) id: String,
    /// The name that was acknowledged last.
    pub(super) name: String,
    pub(super) spark_session: String,
    pub(super) token: String,
    /// A token that was revoked.
    pub(super) revoked: Option<String>,
    pub(super) closed: bool,
}

/// The APIs, as one caller.
#[derive(Clone)]
pub(super) struct Api {
    bearer: String,
    pub(super) sessions: SessionServiceClient<Channel>,
    tokens: TokenServiceClient<Channel>,
    proxies: [SparkConnectServiceClient<Channel>; 2],
    shared: Arc<Shared>,
}

/// Does what was met pass by itself?
fn passes(status: &Status) -> bool {
    match reason_of(status) {
        // No word of Berth's: the connection broke, or nobody was there.
        None => !matches!(status.code(), Code::InvalidArgument | Code::Unimplemented),
        Some(reason) => {
            matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
                || reason == Reason::BackendLost
        }
    }
}

impl Api {
    pub(super) fn new(
        key: &str,
        manager: &str,
        issuer: &str,
        proxies: [SocketAddr; 2],
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let channel = |uri: String| -> Result<Channel> {
            let endpoint = Endpoint::from_shared(uri)?
                .tcp_nodelay(true)
                .connect_timeout(Duration::from_secs(2));
            Ok(endpoint.connect_lazy())
        };
        let spark = |address: SocketAddr| -> Result<_> {
            let client = SparkConnectServiceClient::new(channel(format!("http://{address}"))?);
            Ok(client.max_decoding_message_size(64 << 20))
        };
        Ok(Self {
            bearer: format!("Bearer {key}"),
            sessions: SessionServiceClient::new(channel(manager.to_owned())?),
            tokens: TokenServiceClient::new(channel(issuer.to_owned())?),
            proxies: [spark(proxies[0])?, spark(proxies[1])?],
            shared,
        })
    }

    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        authorized(&self.bearer, message, CALL)
    }

    /// Calls until it is answered; what does not pass by itself is an error.
    pub(super) async fn with_retries<T>(
        &self,
        what: &str,
        mut call: impl AsyncFnMut() -> Result<Response<T>, Status>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            let answer = tokio::time::timeout(CALL, call())
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
            match answer {
                Ok(answer) => {
                    self.shared.took(begun.elapsed());
                    return Ok(answer.into_inner());
                }
                Err(status) if !passes(&status) => bail!("{what}: {status}"),
                Err(status) if begun.elapsed() > PATIENCE => {
                    bail!("{what}: not within {PATIENCE:?}: {status}")
                }
                Err(_) => {
                    self.shared.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    pub(super) async fn describe(&self, id: &str) -> Result<v1::Session> {
        self.with_retries("describe", async || {
            let request = v1::DescribeSessionRequest {
                session_id: id.to_owned(),
                wait_ready: None,
            };
            let mut sessions = self.sessions.clone();
            sessions.describe_session(self.request(request)?).await
        })
        .await?
        .session
        .context("a session")
    }

    pub(super) async fn events(&self, id: &str) -> Result<Vec<v1::SessionEvent>> {
        let answer = self.with_retries("events", async || {
            let request = v1::ListSessionEventsRequest {
                session_id: id.to_owned(),
            };
            let mut sessions = self.sessions.clone();
            sessions.list_session_events(self.request(request)?).await
        });
        Ok(answer.await?.events)
    }

    /// The ids of sessions that have not ended: some of them.
    pub(super) async fn live(&self) -> Result<Vec<String>> {
        let answer = self.with_retries("list", async || {
            let request = v1::ListSessionsRequest {
                statuses: vec![
                    v1::SessionStatus::Pending.into(),
                    v1::SessionStatus::Active.into(),
                    v1::SessionStatus::Idle.into(),
                ],
                ..Default::default()
            };
            self.sessions.clone().list_sessions(self.request(request)?).await
        });
        let sessions = answer.await?.sessions;
        Ok(sessions.into_iter().map(|session| session.id).collect())
    }

    /// The same request again gives the same session.
    pub(super) async fn create(&self, name: &str) -> Result<String> {
        let request_id = uuid::Uuid::new_v4().to_string();
        let mut ids = Vec::new();
        for _ in 0..2 {
            let answer = self.with_retries("create", async || {
                let request = v1::CreateSessionRequest {
                    request_id: request_id.clone(),
                    cluster: "shared".to_owned(),
                    name: name.to_owned(),
                    idle_timeout: Some(prost_types::Duration {
                        seconds: 60,
                        nanos: 0,
                    }),
                    ..Default::default()
                };
                self.sessions.clone().create_session(self.request(request)?).await
            });
            ids.push(answer.await?.session.context("a session")?.id);
        }
        ensure!(ids[0] == ids[1], "one request made two sessions: {ids:?}");
        Ok(ids.swap_remove(0))
    }

    async fn is_active(&self, id: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let session = self.describe(id).await?;
            match session.status() {
                v1::SessionStatus::Active | v1::SessionStatus::Idle => return Ok(()),
                v1::SessionStatus::Pending => {}
                v1::SessionStatus::Closed | v1::SessionStatus::Failed | v1::SessionStatus::Unspecified => {
                    bail!("{id} is not made ready: {session:?}")
                }
            }
            ensure!(begun.elapsed() < PATIENCE, "{id} is still pending: {session:?}");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn token(&self, id: &str) -> Result<v1::IssueSessionTokenResponse> {
        self.with_retries("token", async || {
            let request = v1::IssueSessionTokenRequest {
                session_id: id.to_owned(),
                ttl: None,
            };
            let mut tokens = self.tokens.clone();
            tokens.issue_session_token(self.request(request)?).await
        })
        .await
    }

    fn query(token: &str, spark_session: &str, sql: &str) -> Result<Request<ExecutePlanRequest>, Status> {
        let relation = Relation {
            common: None,
            rel_type: Some(RelType::Sql(Sql {
                query: sql.to_owned(),
            })),
        };
        let mut request = Request::new(ExecutePlanRequest {
            session_id: spark_session.to_owned(),
            user_context: Some(UserContext::default()),
            plan: Some(Plan {
                op_type: Some(OpType::Root(relation)),
            }),
            ..Default::default()
        });
        let bearer = format!("Bearer {token}").parse();
        let bearer = bearer.map_err(|_| Status::internal("the token"))?;
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// One small query through a proxy, read to its end.
    async fn select(
        &self,
        proxy: usize,
        token: &str,
        spark_session: &str,
    ) -> Result<Response<usize>, Status> {
        let mut spark = self.proxies[proxy].clone();
        let query = Self::query(token, spark_session, "SELECT 1")?;
        let mut answer = spark.execute_plan(query).await?.into_inner();
        let mut messages = 0;
        while answer.message().await?.is_some() {
            messages += 1;
        }
        Ok(Response::new(messages))
    }

    pub(super) async fn answers(&self, proxy: usize, token: &str, spark_session: &str) -> Result<()> {
        let messages = self
            .with_retries("query", async || self.select(proxy, token, spark_session).await)
            .await?;
        ensure!(messages > 0, "a query without an answer");
        self.shared.queries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Until a proxy has heard of it; nothing but this reason and what passes.
    pub(super) async fn is_refused(
        &self,
        proxy: usize,
        token: &str,
        spark_session: &str,
        reason: Reason,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.select(proxy, token, spark_session).await {
                Err(status) if reason_of(&status) == Some(reason) => return Ok(()),
                Err(status) if !passes(&status) => bail!("{reason} expected: {status}"),
                other => ensure!(
                    begun.elapsed() < PATIENCE,
                    "not refused with {reason} after {PATIENCE:?}: {other:?}"
                ),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn revoke(&self, id: &str, token_id: &str) -> Result<()> {
        self.with_retries("revoke", async || {
            let request = v1::RevokeSessionTokenRequest {
                session_id: id.to_owned(),
                token_id: token_id.to_owned(),
            };
            let mut tokens = self.tokens.clone();
            tokens.revoke_session_token(self.request(request)?).await
        })
        .await
        .map(drop)
    }

    async fn rename(&self, id: &str, name: &str) -> Result<()> {
        self.with_retries("rename", async || {
            let request = v1::UpdateSessionRequest {
                session_id: id.to_owned(),
                name: Some(name.to_owned()),
                labels: None,
                version: 0,
            };
            let mut sessions = self.sessions.clone();
            sessions.update_session(self.request(request)?).await
        })
        .await
        .map(drop)
    }

    pub(super) async fn close(&self, id: &str) -> Result<()> {
        let answer = self.with_retries("close", async || {
            let request = v1::CloseSessionRequest {
                session_id: id.to_owned(),
            };
            let mut sessions = self.sessions.clone();
            sessions.close_session(self.request(request)?).await
        });
        let session = answer.await?.session.context("a session")?;
        ensure!(session.status() == v1::SessionStatus::Closed, "{session:?}");
        Ok(())
    }
}

/// Creates, uses, changes and closes sessions until it is over.
pub(super) async fn work(api: Api, who: &'static str, place: usize) -> Result<Vec<Deed>> {
    let mut deeds: Vec<Deed> = Vec::new();
    let mut kept = 0;
    for n in 0.. {
        if api.shared.over() {
            break;
        }
        let mut deed = Deed {
            who,
            id: api.create(&format!("{who} {place} {n}")).await?,
            name: format!("{who} {place} {n}"),
            spark_session: uuid::Uuid::new_v4().to_string(),
            token: String::new(),
            revoked: None,
            closed: false,
        };
        api.is_active(&deed.id).await?;
        deed.token = api.token(&deed.id).await?.token;
        api.answers(n % 2, &deed.token, &deed.spark_session).await?;
        match n % 4 {
            0 => {
                let name = format!("{who}'s {n}");
                api.rename(&deed.id, &name).await?;
                deed.name = name;
            }
            1 => {
                let other = api.token(&deed.id).await?;
                api.revoke(&deed.id, &other.token_id).await?;
                for proxy in 0..2 {
                    let refused =
                        api.is_refused(proxy, &other.token, &deed.spark_session, Reason::TokenRevoked);
                    refused.await?;
                }
                deed.revoked = Some(other.token);
            }
            _ => {}
        }
        api.answers((n + 1) % 2, &deed.token, &deed.spark_session).await?;
        if n % 3 != 0 || kept >= KEPT {
            api.close(&deed.id).await?;
            deed.closed = true;
            for proxy in 0..2 {
                let refused = api.is_refused(proxy, &deed.token, &deed.spark_session, Reason::SessionClosed);
                refused.await?;
            }
        } else {
            kept += 1;
        }
        deeds.push(deed);
        // A little under what an owner may have of ended sessions, in 10 min.
        api.shared.pause(Duration::from_millis(200)).await;
    }
    Ok(deeds)
}

/// A result that is read so slowly that it takes as long as everything else:
/// its stream must never be cut, and its session never go idle.
pub(super) async fn a_long_query(api: Api) -> Result<Deed> {
    let id = api.create("the long one").await?;
    api.is_active(&id).await?;
    let token = api.token(&id).await?.token;
    let spark_session = uuid::Uuid::new_v4().to_string();
    let sql = "SELECT id FROM range(100000000000)";
    let mut answer = api
        .with_retries("the long query", async || {
            let mut spark = api.proxies[0].clone();
            spark.execute_plan(Api::query(&token, &spark_session, sql)?).await
        })
        .await?;
    while !api.shared.over() {
        let next = tokio::time::timeout(PATIENCE, answer.message())
            .await
            .context("the stream stands still")?;
        ensure!(next?.is_some(), "the long result is over");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    drop(answer);
    let events = api.events(&id).await?;
    ensure!(
        events
            .iter()
            .all(|event| event.to() != v1::SessionStatus::Idle && event.to() != v1::SessionStatus::Closed),
        "a session in use: {events:?}"
    );
    Ok(Deed {
        who: "ada",
        id,
        name: "the long one".to_owned(),
        spark_session,
        token,
        revoked: None,
        closed: false,
    })
}
