//! Callers who create, rename and close sessions, and issue and revoke tokens, without a
//! pause. Each call is made once, so every error is seen; only a create with an unknown
//! outcome is made again at the end, because its session has no other name.

use super::history::{Done, Refusal, Refusals, Story};
use anyhow::{Context as _, Result, ensure};
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::RwLock;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Longer than any time limit of the services.
const CALL: Duration = Duration::from_secs(20);
const BETWEEN: Duration = Duration::from_millis(10);
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
const RECOVERED: Duration = Duration::from_secs(60);
/// Number of sessions that a caller leaves open.
const KEPT: usize = 20;

/// One caller at one manager.
#[derive(Clone)]
pub(super) struct Api {
    bearer: String,
    sessions: SessionServiceClient<Channel>,
    tokens: TokenServiceClient<Channel>,
}

impl Api {
    pub(super) fn new(key: &str, manager: &str, issuer: &str) -> Result<Self> {
        let channel = |uri: &str| -> Result<Channel> {
            let endpoint = Endpoint::from_shared(uri.to_owned())?;
            Ok(endpoint.tcp_nodelay(true).timeout(CALL).connect_lazy())
        };
        Ok(Self {
            bearer: format!("Bearer {key}"),
            sessions: SessionServiceClient::new(channel(manager)?),
            tokens: TokenServiceClient::new(channel(issuer)?),
        })
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let value = self.bearer.parse();
        let value = value.map_err(|_| Status::internal("the credential"))?;
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }

    pub(super) async fn create(&self, request_id: &str, name: &str) -> Result<v1::Session, Status> {
        let request = self.request(v1::CreateSessionRequest {
            request_id: request_id.to_owned(),
            cluster: "shared".to_owned(),
            name: name.to_owned(),
            ..Default::default()
        })?;
        let answer = self.sessions.clone().create_session(request).await?;
        answer
            .into_inner()
            .session
            .ok_or_else(|| Status::internal("no session"))
    }

    /// How many sessions a list has.
    pub(super) async fn count(&self) -> Result<usize, Status> {
        let request = self.request(v1::ListSessionsRequest::default())?;
        let answer = self.sessions.clone().list_sessions(request).await?;
        Ok(answer.into_inner().sessions.len())
    }

    async fn rename(&self, id: &str, name: &str) -> Result<Response<v1::UpdateSessionResponse>, Status> {
        let request = self.request(v1::UpdateSessionRequest {
            session_id: id.to_owned(),
            name: Some(name.to_owned()),
            ..Default::default()
        })?;
        self.sessions.clone().update_session(request).await
    }

    pub(super) async fn close(&self, id: &str) -> Result<Response<v1::CloseSessionResponse>, Status> {
        let session_id = id.to_owned();
        let request = self.request(v1::CloseSessionRequest { session_id })?;
        self.sessions.clone().close_session(request).await
    }

    pub(super) async fn describe(&self, id: &str) -> Result<v1::Session, Status> {
        let request = self.request(v1::DescribeSessionRequest {
            session_id: id.to_owned(),
            wait_ready: None,
        })?;
        let answer = self.sessions.clone().describe_session(request).await?;
        answer
            .into_inner()
            .session
            .ok_or_else(|| Status::internal("no session"))
    }

    pub(super) async fn issue(&self, id: &str) -> Result<v1::IssueSessionTokenResponse, Status> {
        let request = self.request(v1::IssueSessionTokenRequest {
            session_id: id.to_owned(),
            ttl: None,
        })?;
        let answer = self.tokens.clone().issue_session_token(request).await?;
        Ok(answer.into_inner())
    }

    async fn revoke(
        &self,
        id: &str,
        token: &str,
    ) -> Result<Response<v1::RevokeSessionTokenResponse>, Status> {
        let request = self.request(v1::RevokeSessionTokenRequest {
            session_id: id.to_owned(),
            token_id: token.to_owned(),
        })?;
        self.tokens.clone().revoke_session_token(request).await
    }
}

/// What all callers share.
#[derive(Default)]
pub(super) struct Shared {
    over: AtomicBool,
    /// Held by every call; who holds it alone knows that none is under way.
    gate: RwLock<()>,
    acknowledged: AtomicU64,
    refused: Mutex<Refusals>,
    longest: Mutex<Duration>,
}

impl Shared {
    /// Runs `fault` while no call is under way.
    pub(super) async fn between_calls<T>(&self, fault: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        let _alone = self.gate.write().await;
        fault().await
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> Refusals {
        lock(&self.refused).clone()
    }

    pub(super) fn longest(&self) -> Duration {
        *lock(&self.longest)
    }

    /// Makes one call; `None` if its answer is an error, which is noted.
    async fn once<T>(&self, deed: &'static str, call: impl Future<Output = Result<T, Status>>) -> Option<T> {
        let _under_way = self.gate.read().await;
        let begun = Instant::now();
        let answer = tokio::time::timeout(CALL, call).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        {
            let mut longest = lock(&self.longest);
            *longest = begun.elapsed().max(*longest);
        }
        match answer {
            Ok(answer) => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                Some(answer)
            }
            Err(status) => {
                *lock(&self.refused).entry(Refusal::of(deed, &status)).or_default() += 1;
                None
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller with several APIs: one of each manager.
pub(super) struct Caller {
    pub(super) who: &'static str,
    pub(super) org: &'static str,
    pub(super) apis: Vec<Api>,
    pub(super) shared: Arc<Shared>,
}

impl Caller {
    /// Works until it is over; returns what it did.
    pub(super) async fn work(self) -> Result<Vec<Story>> {
        let mut stories: Vec<Story> = Vec::new();
        let mut unknown: Vec<(String, String)> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        for n in 0.. {
            if self.shared.is_over() {
                break;
            }
            let api = &self.apis[n % self.apis.len()];
            let (request_id, name) = (uuid::Uuid::new_v4().to_string(), format!("{} {n}", self.who));
            let mut pause = BETWEEN;
            let created = self.shared.once("create", api.create(&request_id, &name)).await;
            match created {
                Some(session) => {
                    open.push(stories.len());
                    stories.push(self.story(session.id, name));
                }
                None => {
                    unknown.push((request_id, name));
                    pause = AFTER_REFUSAL;
                }
            }
            // The oldest one, so that there is something to do while creates are refused.
            if let Some(&oldest) = open.get(n % KEPT).or_else(|| open.first()) {
                self.change(api, n, &mut stories[oldest]).await;
            }
            // While creates are refused, some are closed all the same.
            let closes = pause == AFTER_REFUSAL && n % 4 == 0 && open.len() > KEPT / 4;
            if open.len() > KEPT || closes {
                let story = &mut stories[open.remove(0)];
                let closed = self.shared.once("close", api.close(&story.id)).await;
                story.closed = closed.map_or(Done::Maybe, |_| Done::Yes);
            }
            tokio::time::sleep(pause).await;
        }
        for (request_id, name) in unknown {
            let id = self.create_again(&request_id, &name).await?;
            stories.push(self.story(id, name));
        }
        Ok(stories)
    }

    fn story(&self, id: String, name: String) -> Story {
        Story {
            org: self.org,
            id,
            names: vec![name],
            closed: Done::No,
            tokens: BTreeMap::new(),
        }
    }

    /// One change of a live session.
    async fn change(&self, api: &Api, n: usize, story: &mut Story) {
        let id = story.id.clone();
        match n % 3 {
            0 => {
                let name = format!("{} renamed {n}", self.who);
                let renamed = self.shared.once("rename", api.rename(&id, &name)).await;
                if renamed.is_some() {
                    story.names.clear();
                }
                story.names.push(name);
            }
            1 => {
                let issued = self.shared.once("issue", api.issue(&id)).await;
                if let Some(issued) = issued {
                    story.tokens.insert(issued.token_id, Done::No);
                }
            }
            _ => {
                let live = story.tokens.iter_mut().find(|(_, revoked)| **revoked == Done::No);
                if let Some((token, revoked)) = live {
                    let answer = self.shared.once("revoke", api.revoke(&id, token)).await;
                    *revoked = answer.map_or(Done::Maybe, |_| Done::Yes);
                }
            }
        }
    }

    /// The same request gives the same session, also if its first answer was lost.
    async fn create_again(&self, request_id: &str, name: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            let mut ids = Vec::new();
            for api in &self.apis {
                ids.push(api.create(request_id, name).await.map(|session| session.id));
            }
            let ids: Result<Vec<String>, Status> = ids.into_iter().collect();
            match ids {
                Ok(ids) => {
                    ensure!(
                        ids.iter().all(|id| *id == ids[0]),
                        "one request, two sessions: {ids:?}"
                    );
                    return ids.into_iter().next().context("no manager");
                }
                Err(status) => ensure!(begun.elapsed() < RECOVERED, "not created again: {status}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
