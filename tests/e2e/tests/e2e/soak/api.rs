//! The APIs and the Spark Connect port as one client uses them: a connection of its own to each
//! balancer.

use super::rig::Rig;
use super::tally::Tally;
use anyhow::{Context as _, Result};
use e2e::authorized;
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::execute_plan_response::ResponseType;
use session_proto::spark::plan::OpType;
use session_proto::spark::relation::RelType;
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{AnalyzePlanRequest, ExecutePlanRequest, Plan, Relation, Sql, UserContext};
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

const CALL: Duration = Duration::from_secs(60);
/// Tokens are renewed after three quarters of this.
const TOKEN_LIFE: Duration = Duration::from_secs(160);

/// Where one owner's clients call.
#[derive(Debug, Clone)]
pub(super) struct Places {
    bearer: String,
    public: String,
    issuers: String,
    spark: String,
    authority: String,
}

impl Places {
    pub(super) fn of(rig: &Rig, who: &str) -> Result<Self> {
        Ok(Self {
            bearer: format!("Bearer {}", rig.stack.key_of(who)),
            public: format!("http://{}", rig.balancers.public.address),
            issuers: format!("http://{}", rig.balancers.issuers.address),
            spark: format!("https://localhost:{}", rig.balancers.proxies.address.port()),
            authority: std::fs::read_to_string(rig.stack.ca().context("no authority")?)?,
        })
    }
}

/// One client.
#[derive(Debug, Clone)]
pub(super) struct Api {
    places: Places,
    sessions: SessionServiceClient<Channel>,
    tokens: TokenServiceClient<Channel>,
    spark: SparkConnectServiceClient<Channel>,
}

/// A session with a token that is renewed.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: String,
    spark_session: String,
    token: String,
    renew_at: Instant,
}

impl Api {
    pub(super) fn new(places: &Places) -> Result<Self> {
        let channel = |uri: &str| -> Result<Channel> {
            let endpoint = Endpoint::from_shared(uri.to_owned())?.tcp_nodelay(true);
            Ok(endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy())
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&places.authority))
            .domain_name("localhost");
        let spark = Endpoint::from_shared(places.spark.clone())?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(5))
            // So that a stream that is read slowly is as long as it is read.
            .initial_stream_window_size(256 << 10)
            .tls_config(tls)?
            .connect_lazy();
        Ok(Self {
            sessions: SessionServiceClient::new(channel(&places.public)?),
            tokens: TokenServiceClient::new(channel(&places.issuers)?),
            spark: SparkConnectServiceClient::new(spark).max_decoding_message_size(64 << 20),
            places: places.clone(),
        })
    }

    /// A new session, active, with a token.
    pub(super) async fn create(&self, tally: &Tally) -> Option<Held> {
        let request_id = uuid::Uuid::new_v4().to_string();
        let created = tally.with_retries("create", async || {
            let request = v1::CreateSessionRequest {
                request_id: request_id.clone(),
                cluster: "shared".to_owned(),
                idle_timeout: Some(prost_types::Duration {
                    seconds: 8 * 3600,
                    nanos: 0,
                }),
                ..Default::default()
            };
            let mut sessions = self.sessions.clone();
            sessions
                .create_session(authorized(&self.places.bearer, request, CALL)?)
                .await
        });
        let id = created.await?.into_inner().session?.id;
        tally
            .with_retries("describe", async || {
                let request = v1::DescribeSessionRequest {
                    session_id: id.clone(),
                    wait_ready: Some(prost_types::Duration {
                        seconds: 30,
                        nanos: 0,
                    }),
                };
                let mut sessions = self.sessions.clone();
                sessions
                    .describe_session(authorized(&self.places.bearer, request, CALL)?)
                    .await
            })
            .await?;
        let mut held = Held {
            id,
            spark_session: uuid::Uuid::new_v4().to_string(),
            token: String::new(),
            renew_at: Instant::now(),
        };
        self.renew(tally, &mut held).await?;
        Some(held)
    }

    /// A new token, if the present one is old.
    pub(super) async fn renew(&self, tally: &Tally, held: &mut Held) -> Option<()> {
        if Instant::now() < held.renew_at {
            return Some(());
        }
        held.token = self.issue(tally, &held.id, TOKEN_LIFE).await?.token;
        held.renew_at = Instant::now() + TOKEN_LIFE * 3 / 4;
        Some(())
    }

    /// A token, and the connection string with it.
    pub(super) async fn issue(
        &self,
        tally: &Tally,
        session: &str,
        life: Duration,
    ) -> Option<v1::IssueSessionTokenResponse> {
        let issued = tally.with_retries("issue", async || {
            let request = v1::IssueSessionTokenRequest {
                session_id: session.to_owned(),
                ttl: Some(prost_types::Duration {
                    seconds: i64::try_from(life.as_secs()).unwrap_or(i64::MAX),
                    nanos: 0,
                }),
            };
            let mut tokens = self.tokens.clone();
            tokens
                .issue_session_token(authorized(&self.places.bearer, request, CALL)?)
                .await
        });
        let issued = issued.await?.into_inner();
        tally.issued(&issued.token);
        Some(issued)
    }

    /// The smallest call.
    pub(super) async fn version(&self, held: &Held) -> Result<(), Status> {
        let request = AnalyzePlanRequest {
            session_id: held.spark_session.clone(),
            user_context: Some(UserContext::default()),
            analyze: Some(Analyze::SparkVersion(SparkVersion {})),
            ..AnalyzePlanRequest::default()
        };
        let request = authorized(&format!("Bearer {}", held.token), request, CALL)?;
        self.spark.clone().analyze_plan(request).await.map(drop)
    }

    /// A query, read to its end but no faster than in `time`; returns the number of rows.
    pub(super) async fn rows(&self, held: &Held, sql: &str, time: Duration) -> Result<i64, Status> {
        let relation = Relation {
            common: None,
            rel_type: Some(RelType::Sql(Sql {
                query: sql.to_owned(),
            })),
        };
        let request = ExecutePlanRequest {
            session_id: held.spark_session.clone(),
            user_context: Some(UserContext::default()),
            plan: Some(Plan {
                op_type: Some(OpType::Root(relation)),
            }),
            ..Default::default()
        };
        let mut request = authorized(&format!("Bearer {}", held.token), request, CALL)?;
        request.metadata_mut().remove("grpc-timeout");
        let begun = Instant::now();
        let mut stream = self.spark.clone().execute_plan(request).await?.into_inner();
        let mut rows = 0;
        while let Some(message) = stream.message().await? {
            if let Some(ResponseType::ArrowBatch(batch)) = message.response_type {
                rows += batch.row_count;
            }
            if begun.elapsed() < time {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(rows)
    }

    /// Closes a session; then its token is refused within some seconds.
    pub(super) async fn close(&self, tally: &Tally, held: &Held) -> Option<()> {
        tally
            .with_retries("close", async || {
                let request = v1::CloseSessionRequest {
                    session_id: held.id.clone(),
                };
                let mut sessions = self.sessions.clone();
                sessions
                    .close_session(authorized(&self.places.bearer, request, CALL)?)
                    .await
            })
            .await?;
        let begun = Instant::now();
        loop {
            match self.version(held).await {
                Err(status) if reason_of(&status) == Some(Reason::SessionClosed) => return Some(()),
                Ok(()) | Err(_) if begun.elapsed() < Duration::from_secs(5) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => {
                    tally.failed("a call after the close", &format!("not refused: {other:?}"));
                    return None;
                }
            }
        }
    }
}
