//! A client that makes one call at a time, at any replica, never again by itself, and notes what
//! it was answered.

use super::history::{Call, Event, Fault, History, Life, Micros, Outcome, Record, Refusal};
use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::authorized;
use parking_lot::Mutex;
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::{ResolveRouteRequest, Route, RouteStatus};
use session_proto::spark::AnalyzePlanRequest;
use session_proto::spark::UserContext;
use session_proto::spark::analyze_plan_request::{Analyze, SparkVersion};
use session_proto::spark::spark_connect_service_client::SparkConnectServiceClient;
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// A client gives up after this time.
const CALL: Duration = Duration::from_secs(4);

/// The history that is made now.
#[derive(Debug)]
pub(super) struct Recorder {
    begun: Instant,
    history: Mutex<History>,
    over: CancellationToken,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            history: Mutex::default(),
            over: CancellationToken::new(),
        }
    }

    pub(super) fn now(&self) -> Micros {
        Micros::try_from(self.begun.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    pub(super) fn fault(&self, what: String, begun: Micros, loses: bool) {
        let ended = self.now();
        let fault = Fault {
            what,
            begun,
            ended,
            loses,
        };
        self.history.lock().faults.push(fault);
    }

    pub(super) fn end(&self) {
        self.over.cancel();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits, but not beyond the end.
    pub(super) async fn pause(&self, time: Duration) {
        self.over.run_until_cancelled(tokio::time::sleep(time)).await;
    }

    pub(super) fn history(&self) -> History {
        self.history.lock().clone()
    }
}

/// Where the replicas are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) managers: [SocketAddr; 2],
    pub(super) internal: [SocketAddr; 2],
    pub(super) issuers: [SocketAddr; 2],
    pub(super) proxies: [SocketAddr; 2],
}

/// A session, as its clients know it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) number: u32,
    pub(super) cluster: &'static str,
    request_id: String,
    spark_session: String,
    id: Mutex<Option<String>>,
    /// The texts of its tokens, by their ids.
    tokens: Mutex<BTreeMap<String, String>>,
}

impl Known {
    pub(super) fn new(number: u32, cluster: &'static str) -> Self {
        Self {
            number,
            cluster,
            request_id: uuid::Uuid::new_v4().to_string(),
            spark_session: uuid::Uuid::new_v4().to_string(),
            id: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    pub(super) fn is_created(&self) -> bool {
        self.id.lock().is_some()
    }

    pub(super) fn tokens(&self) -> Vec<String> {
        self.tokens.lock().keys().cloned().collect()
    }
}

/// One client.
#[derive(Debug, Clone)]
pub(super) struct Client {
    number: u32,
    bearer: String,
    recorder: Arc<Recorder>,
    sessions: [SessionServiceClient<Channel>; 2],
    routes: [RouteServiceClient<Channel>; 2],
    tokens: [TokenServiceClient<Channel>; 2],
    proxies: [SparkConnectServiceClient<Channel>; 2],
}

impl Client {
    pub(super) fn new(number: u32, key: &str, places: &Places, recorder: Arc<Recorder>) -> Result<Self> {
        let channel = |address: SocketAddr| -> Result<Channel> {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
            Ok(endpoint
                .tcp_nodelay(true)
                .connect_timeout(Duration::from_secs(1))
                .connect_lazy())
        };
        let both = |addresses: [SocketAddr; 2]| -> Result<[Channel; 2]> {
            Ok([channel(addresses[0])?, channel(addresses[1])?])
        };
        Ok(Self {
            number,
            bearer: format!("Bearer {key}"),
            recorder,
            sessions: both(places.managers)?.map(SessionServiceClient::new),
            routes: both(places.internal)?.map(RouteServiceClient::new),
            tokens: both(places.issuers)?.map(TokenServiceClient::new),
            proxies: both(places.proxies)?.map(SparkConnectServiceClient::new),
        })
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Makes a call at a replica, notes it, and returns how it ended. A session without an id can
    /// only be created.
    pub(super) async fn call(&self, session: &Known, replica: usize, call: Call) -> Option<Outcome> {
        let id = session.id.lock().clone();
        if id.is_none() && !matches!(call, Call::Create { .. }) {
            return None;
        }
        let invoked = self.recorder.now();
        let id = id.unwrap_or_default();
        let answer = self.answer(session, &id, replica, &call);
        let outcome = tokio::time::timeout(CALL, answer).await;
        let outcome = outcome.unwrap_or_else(|_| Outcome::Unknown("no answer in time".to_owned()));
        if let (Call::Create { .. }, Outcome::Record(record)) = (&call, &outcome) {
            *session.id.lock() = Some(record.id.clone());
        }
        let event = Event {
            session: session.number,
            client: self.number,
            call,
            invoked,
            returned: self.recorder.now(),
            outcome: outcome.clone(),
        };
        self.recorder.history.lock().events.push(event);
        Some(outcome)
    }

    async fn answer(&self, session: &Known, id: &str, replica: usize, call: &Call) -> Outcome {
        let done = match call {
            Call::Create { .. } | Call::Describe | Call::Rename { .. } | Call::Close => {
                let mut sessions = self.sessions[replica].clone();
                self.at_manager(&mut sessions, session, id, call).await
            }
            Call::Issue | Call::Revoke { .. } | Call::RevokeAll => {
                let mut tokens = self.tokens[replica].clone();
                self.at_issuer(&mut tokens, session, id, call).await
            }
            Call::Resolve { token } => self.resolve(session, replica, token).await,
            Call::Spark { token, .. } => self.spark(session, replica, token).await,
        };
        done.unwrap_or_else(|status| refused(&status, call))
    }

    async fn at_manager(
        &self,
        sessions: &mut SessionServiceClient<Channel>,
        known: &Known,
        id: &str,
        call: &Call,
    ) -> Result<Outcome, Status> {
        let session_id = id.to_owned();
        let session = match call {
            Call::Create { name } => {
                let request = v1::CreateSessionRequest {
                    request_id: known.request_id.clone(),
                    cluster: known.cluster.to_owned(),
                    name: name.clone(),
                    idle_timeout: Some(prost_types::Duration {
                        seconds: 8 * 3600,
                        nanos: 0,
                    }),
                    ..Default::default()
                };
                let created = sessions
                    .create_session(authorized(&self.bearer, request, CALL)?)
                    .await?;
                created.into_inner().session
            }
            Call::Rename { name } => {
                let request = v1::UpdateSessionRequest {
                    session_id,
                    name: Some(name.clone()),
                    labels: None,
                    version: 0,
                };
                let updated = sessions
                    .update_session(authorized(&self.bearer, request, CALL)?)
                    .await?;
                updated.into_inner().session
            }
            Call::Close => {
                let request = v1::CloseSessionRequest { session_id };
                let closed = sessions
                    .close_session(authorized(&self.bearer, request, CALL)?)
                    .await?;
                closed.into_inner().session
            }
            Call::Describe
            | Call::Issue
            | Call::Revoke { .. }
            | Call::RevokeAll
            | Call::Resolve { .. }
            | Call::Spark { .. } => {
                let request = v1::DescribeSessionRequest {
                    session_id,
                    wait_ready: None,
                };
                let described = sessions
                    .describe_session(authorized(&self.bearer, request, CALL)?)
                    .await?;
                described.into_inner().session
            }
        };
        let session = session.ok_or_else(|| Status::internal("an answer without a session"))?;
        Ok(Outcome::Record(record_of(session)))
    }

    async fn at_issuer(
        &self,
        tokens: &mut TokenServiceClient<Channel>,
        known: &Known,
        id: &str,
        call: &Call,
    ) -> Result<Outcome, Status> {
        let session_id = id.to_owned();
        if let Call::Revoke { token } = call {
            let request = v1::RevokeSessionTokenRequest {
                session_id,
                token_id: token.clone(),
            };
            tokens
                .revoke_session_token(authorized(&self.bearer, request, CALL)?)
                .await?;
            return Ok(Outcome::Done);
        }
        if *call == Call::RevokeAll {
            let request = v1::RevokeAllSessionTokensRequest { session_id };
            let revoked = tokens
                .revoke_all_session_tokens(authorized(&self.bearer, request, CALL)?)
                .await?;
            let epoch = revoked.into_inner().token_epoch;
            return Ok(Outcome::AllRevoked { epoch });
        }
        let request = v1::IssueSessionTokenRequest {
            session_id,
            ttl: Some(prost_types::Duration {
                seconds: 4 * 3600,
                nanos: 0,
            }),
        };
        let issued = tokens
            .issue_session_token(authorized(&self.bearer, request, CALL)?)
            .await?;
        let issued = issued.into_inner();
        let epoch = epoch_of(&issued.token).ok_or_else(|| Status::internal("a token without an epoch"))?;
        known.tokens.lock().insert(issued.token_id.clone(), issued.token);
        Ok(Outcome::Issued {
            token: issued.token_id,
            epoch,
        })
    }

    async fn resolve(&self, known: &Known, replica: usize, token: &str) -> Result<Outcome, Status> {
        let session_token = known.tokens.lock().get(token).cloned().unwrap_or_default();
        let mut request = Request::new(ResolveRouteRequest {
            session_token,
            wait: None,
            wake: false,
        });
        request.set_timeout(CALL);
        let answer = self.routes[replica].clone().resolve_route(request).await?;
        let route = answer.into_inner().route;
        let route = route.ok_or_else(|| Status::internal("an answer without a route"))?;
        // A session that does not exist looks like this.
        if route.version == 0 {
            return Ok(Outcome::Refused(Refusal::EndedOrAbsent));
        }
        Ok(Outcome::Record(record_of_route(route)))
    }

    async fn spark(&self, known: &Known, replica: usize, token: &str) -> Result<Outcome, Status> {
        let text = known.tokens.lock().get(token).cloned().unwrap_or_default();
        let request = authorized(
            &format!("Bearer {text}"),
            AnalyzePlanRequest {
                session_id: known.spark_session.clone(),
                user_context: Some(UserContext::default()),
                analyze: Some(Analyze::SparkVersion(SparkVersion {})),
                ..AnalyzePlanRequest::default()
            },
            CALL,
        )?;
        let answer = self.proxies[replica].clone().analyze_plan(request).await?;
        let generation = answer.metadata().get("x-berth-generation");
        let generation = generation.and_then(|value| value.to_str().ok()?.parse().ok());
        let generation = generation.ok_or_else(|| Status::internal("an answer without a generation"))?;
        Ok(Outcome::Answered { generation })
    }
}

/// The claim of a token.
fn epoch_of(token: &str) -> Option<u64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims["epoch"].as_u64()
}

fn record_of(session: v1::Session) -> Record {
    let life = match session.status() {
        v1::SessionStatus::Closed => Life::Closed,
        v1::SessionStatus::Failed => Life::Failed,
        v1::SessionStatus::Pending
        | v1::SessionStatus::Active
        | v1::SessionStatus::Idle
        | v1::SessionStatus::Unspecified => Life::Live,
    };
    Record {
        id: session.id,
        version: session.version,
        generation: session.generation,
        epoch: session.token_epoch,
        life,
        name: Some(session.name),
        revoked: None,
    }
}

fn record_of_route(route: Route) -> Record {
    let life = match route.status() {
        RouteStatus::Closed => Life::Closed,
        RouteStatus::Failed => Life::Failed,
        RouteStatus::Pending | RouteStatus::Active | RouteStatus::Idle | RouteStatus::Unspecified => {
            Life::Live
        }
    };
    let mut revoked: Vec<String> = route
        .revoked_tokens
        .into_iter()
        .map(|token| token.token_id)
        .collect();
    revoked.sort();
    Record {
        id: route.session_id,
        version: route.version,
        generation: route.generation,
        epoch: route.token_epoch,
        life,
        name: None,
        revoked: Some(revoked),
    }
}

/// What an error tells.
fn refused(status: &Status, call: &Call) -> Outcome {
    let reason = reason_of(status);
    let is_spark = matches!(call, Call::Spark { .. });
    if matches!(reason, Some(Reason::SessionClosed | Reason::SessionFailed)) {
        let of_proxy = if is_spark {
            Refusal::EndedOrAbsent
        } else {
            Refusal::Ended
        };
        return Outcome::Refused(of_proxy);
    }
    if reason == Some(Reason::NotAuthorized) && !is_spark {
        return Outcome::Refused(Refusal::Absent);
    }
    if reason == Some(Reason::TokenRevoked) {
        return Outcome::Refused(Refusal::TokenRevoked);
    }
    let text = format!("{:?} {:?}: {}", status.code(), reason, status.message());
    let not_connected = format!("{status:?}").contains("ConnectError");
    let limited = matches!(reason, Some(Reason::RateLimited | Reason::QuotaExceeded));
    if not_connected || limited || status.code() == Code::Unauthenticated {
        Outcome::Failed(text)
    } else {
        Outcome::Unknown(text)
    }
}
