//! Spark Connect calls of one token at one proxy, until they are refused.

use super::api::until_done;
use anyhow::{Context as _, Result, bail};
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::spark::execute_plan_request::RequestOption;
use session_proto::spark::execute_plan_request::request_option::RequestOption as Choice;
use session_proto::spark::plan::OpType;
use session_proto::spark::relation::RelType;
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::spark::{
    ExecutePlanRequest, ExecutePlanResponse, Plan, ReattachExecuteRequest, ReattachOptions, Relation, Sql,
    UserContext,
};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// A result that never ends.
const ENDLESS: &str = "SELECT id FROM range(100000000000)";
/// Time between two reads of it.
const READ_INTERVAL: Duration = Duration::from_millis(50);
/// Window of a stream: little of a result is on its way.
const WINDOW: u32 = 64 * 1024;
/// Time between two tries of a call.
const TRY_INTERVAL: Duration = Duration::from_millis(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a token that is still accepted fails the test.
const MAX_ACCEPTED: Duration = Duration::from_secs(60);

/// One token at one proxy.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    client: SparkConnectServiceClient<Channel>,
    token: String,
    spark_session: String,
}

/// An operation whose client has left.
#[derive(Debug)]
pub(super) struct Left {
    operation: String,
    last_response: Option<String>,
}

impl Holder {
    /// A client with a connection of its own.
    pub(super) fn new(proxy: SocketAddr, token: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{proxy}"))?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(WINDOW)
            .connect_lazy();
        Ok(Self {
            client: SparkConnectServiceClient::new(channel).max_decoding_message_size(64 << 20),
            token: token.to_owned(),
            spark_session: uuid::Uuid::new_v4().to_string(),
        })
    }

    fn authorized<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.token).parse();
        let bearer = bearer.map_err(|_| Status::internal("the token"))?;
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    async fn execute(
        &self,
        query: &str,
        operation: Option<&str>,
    ) -> Result<Streaming<ExecutePlanResponse>, Status> {
        let relation = Relation {
            common: None,
            rel_type: Some(RelType::Sql(Sql {
                query: query.to_owned(),
            })),
        };
        let reattachable = RequestOption {
            request_option: Some(Choice::ReattachOptions(ReattachOptions { reattachable: true })),
        };
        let request = self.authorized(ExecutePlanRequest {
            session_id: self.spark_session.clone(),
            user_context: Some(UserContext::default()),
            plan: Some(Plan {
                op_type: Some(OpType::Root(relation)),
            }),
            operation_id: operation.map(str::to_owned),
            request_options: operation.map(|_| reattachable).into_iter().collect(),
            ..Default::default()
        })?;
        Ok(self.client.clone().execute_plan(request).await?.into_inner())
    }

    /// One small query, read to its end.
    async fn select(&self) -> Result<(), Status> {
        let mut answer = self.execute("SELECT 1", None).await?;
        while answer.message().await?.is_some() {}
        Ok(())
    }

    /// Returns when a call succeeds.
    pub(super) async fn is_accepted(&self) -> Result<()> {
        until_done("a first call", async || self.select().await).await
    }

    /// Time for which new calls still succeed.
    pub(super) async fn until_calls_are_refused(&self, since: Instant, why: &[Reason]) -> Result<Duration> {
        until_refused(since, why, async || self.select().await).await
    }

    /// A running stream; its first message has arrived.
    pub(super) async fn open_stream(&self) -> Result<Streaming<ExecutePlanResponse>> {
        let mut stream = self.execute(ENDLESS, None).await?;
        stream.message().await?.context("no message")?;
        Ok(stream)
    }

    /// Starts an operation and leaves it.
    pub(super) async fn leave_operation(&self) -> Result<Left> {
        let operation = uuid::Uuid::new_v4().to_string();
        let mut stream = self.execute(ENDLESS, Some(&operation)).await?;
        let first = stream.message().await?.context("no message")?;
        Ok(Left {
            operation,
            last_response: Some(first.response_id),
        })
    }

    /// Comes back to an operation for one message, and leaves again.
    async fn come_back(&self, left: &mut Left) -> Result<(), Status> {
        let request = self.authorized(ReattachExecuteRequest {
            session_id: self.spark_session.clone(),
            user_context: Some(UserContext::default()),
            operation_id: left.operation.clone(),
            last_response_id: left.last_response.clone(),
            ..Default::default()
        })?;
        let mut stream = self.client.clone().reattach_execute(request).await?.into_inner();
        if let Some(message) = stream.message().await? {
            left.last_response = Some(message.response_id);
        }
        Ok(())
    }

    /// Time for which the client can still come back to its operation.
    pub(super) async fn until_reattach_is_refused(
        &self,
        since: Instant,
        why: &[Reason],
        mut left: Left,
    ) -> Result<Duration> {
        until_refused(since, why, async || self.come_back(&mut left).await).await
    }
}

/// Time until a running stream ends.
pub(super) async fn until_stream_ends(
    since: Instant,
    why: &[Reason],
    mut stream: Streaming<ExecutePlanResponse>,
) -> Result<Duration> {
    loop {
        match tokio::time::timeout(MAX_ACCEPTED, stream.message()).await {
            Ok(Ok(Some(_))) if since.elapsed() < MAX_ACCEPTED => tokio::time::sleep(READ_INTERVAL).await,
            Ok(Err(status)) if is_for(&status, why) => return Ok(since.elapsed()),
            other => bail!("a stream that ends with one of {why:?}: {other:?}"),
        }
    }
}

fn is_for(status: &Status, why: &[Reason]) -> bool {
    reason_of(status).is_some_and(|reason| why.contains(&reason))
}

async fn until_refused(
    since: Instant,
    why: &[Reason],
    mut call: impl AsyncFnMut() -> Result<(), Status>,
) -> Result<Duration> {
    loop {
        let outcome = call().await;
        match &outcome {
            Err(status) if is_for(status, why) => return Ok(since.elapsed()),
            // A call that ran at that moment may end with another error.
            Ok(()) | Err(_) if since.elapsed() < MAX_ACCEPTED => {}
            Ok(()) | Err(_) => bail!("not refused with one of {why:?}, but {outcome:?}"),
        }
        tokio::time::sleep(TRY_INTERVAL).await;
    }
}
