//! RouteService: routes of sessions and their changes, for spark-proxy.

use super::{Api, bind, client_advice, spark_sessions};
use crate::lifecycle::disabling::DisabledState;
use crate::providers::registry::is_on_another_host;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use service_kit::host;
use session_core::machine::Event;
use session_core::{
    Actor, Reason, Route, Session, SessionKey, SparkSessionId, Status as SessionStatus, WakePolicy,
};
use session_proto::convert::{maybe_duration, parse, timestamp};
use session_proto::error::Refused;
use session_proto::internal as wire;
use session_proto::internal::route_service_server::RouteService;
use session_store::spark_bindings::BindingState;
use session_store::{Change, Feed};
use session_token::{Claims, Grace, TokenErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::{Interval, MissedTickBehavior};
use tonic::{Request, Response, Status};

/// Limit of the requested wait of ResolveRoute.
const MAX_WAIT: Duration = Duration::from_secs(15 * 60);
/// Addresses of one server in a route.
const MAX_ADDRESSES: usize = 16;
/// Time after which a waiting ResolveRoute reads the record without a change.
const REREAD_INTERVAL: Duration = Duration::from_secs(2);

/// A watch sends a heartbeat this often while the change feed is read.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A heartbeat is sent only if the feed was read this recently: twice the time
/// that one read waits for a change.
const HEARTBEAT_MAX_AGE: Duration = Duration::from_secs(2);
/// A watch ends when the feed was not read for this long. Proxies take a watch
/// for lost 4 s after its last message.
const FEED_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves `berth.internal.v1.RouteService`.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    /// The shared parts.
    pub(crate) api: Arc<Api>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RouteService for Routes {
    async fn resolve_route(
        &self,
        request: Request<wire::ResolveRouteRequest>,
    ) -> Answer<wire::ResolveRouteResponse> {
        let host = request.metadata().get(host::HOST_ID).cloned();
        let host = host.as_ref().and_then(|host| host.to_str().ok());
        let request = request.into_inner();
        let wait = maybe_duration("wait", request.wait.as_ref())?
            .unwrap_or_default()
            .min(MAX_WAIT);
        let claims = self.verified(&request.session_token).await?;
        let key = SessionKey {
            org: claims.org.clone(),
            id: claims.sid.clone(),
        };
        let until = tokio::time::Instant::now() + wait;
        let mut woken = false;
        loop {
            // Read before the record: an epoch older than the record's is corrected by a
            // reset, a newer one would hide that the record is outdated.
            let epoch = self.api.store.epoch().await.map_err(crate::error::store)?;
            let waiter = self.api.fan_out.wait_for(&key);
            let changed = waiter.changed();
            let read = tokio::try_join!(
                self.api.store.get(&key),
                self.api.definitions.disabled_state(&key.org, &claims.sub),
            );
            let (session, disabled) = read.map_err(crate::error::store)?;
            let Some(session) = session else {
                return Ok(Response::new(unknown(&key, epoch)));
            };
            check_not_revoked(&claims, &session)?;
            // A session is also woken if the request does not wait.
            if session.status() == SessionStatus::Idle && request.wake && !woken {
                check_not_disabled(&disabled, &session)?;
                woken = true;
                if self.wake(&key, &claims).await? {
                    continue;
                }
            }
            let settled = match session.status() {
                SessionStatus::Active | SessionStatus::Closed | SessionStatus::Failed => true,
                SessionStatus::Idle => !request.wake,
                SessionStatus::Pending => false,
            };
            if settled || tokio::time::Instant::now() >= until {
                check_not_disabled(&disabled, &session)?;
                let route = self.route(&session, disabled.org.is_some(), epoch, host).await?;
                self.api.metrics.resolved(session.status());
                return Ok(Response::new(wire::ResolveRouteResponse { route: Some(route) }));
            }
            // It became idle again, or must wait after a failed warm-up.
            woken = false;
            let reread = tokio::time::Instant::now() + REREAD_INTERVAL;
            let _ = tokio::time::timeout_at(until.min(reread), changed).await;
        }
    }

    type WatchRoutesStream = BoxStream<'static, Result<wire::WatchRoutesResponse, Status>>;

    async fn watch_routes(
        &self,
        _request: Request<wire::WatchRoutesRequest>,
    ) -> Answer<Self::WatchRoutesStream> {
        // Subscribe first, so that changes during the read of the epoch are not missed.
        let changes = self.api.fan_out.subscribe();
        if !self.api.fan_out.is_read_within(FEED_TIMEOUT) {
            return Err(feed_broken().into());
        }
        let epoch = self.api.store.epoch().await.map_err(crate::error::store)?;
        let watch = Watch {
            api: Arc::clone(&self.api),
            changes,
            epoch,
            heartbeats: heartbeats(),
            is_over: false,
        };
        let stream = stream::once(async move { Ok(reset(epoch)) })
            .chain(stream::unfold(watch, async |mut watch| {
                Some((watch.next().await?, watch))
            }))
            .take_until(self.api.stopping.clone().cancelled_owned())
            .boxed();
        Ok(Response::new(stream))
    }

    async fn report_activity(
        &self,
        request: Request<wire::ReportActivityRequest>,
    ) -> Answer<wire::ReportActivityResponse> {
        super::activity::report(&self.api, request.into_inner()).await?;
        Ok(Response::new(wire::ReportActivityResponse {}))
    }

    async fn bind_spark_session(
        &self,
        request: Request<wire::BindSparkSessionRequest>,
    ) -> Answer<wire::BindSparkSessionResponse> {
        let request = request.into_inner();
        let id: SparkSessionId = parse("spark_session_id", &request.spark_session_id)?;
        let claims = self.verified(&request.session_token).await?;
        let key = SessionKey {
            org: claims.org.clone(),
            id: claims.sid.clone(),
        };
        let read = tokio::try_join!(
            self.api.store.get(&key),
            self.api.definitions.disabled_state(&key.org, &claims.sub),
        );
        let (session, disabled) = read.map_err(crate::error::store)?;
        let session = session.ok_or_else(|| deleted(&key))?;
        check_not_revoked(&claims, &session)?;
        check_not_disabled(&disabled, &session)?;
        if disabled.org.is_some() {
            return Err(crate::error::org_disabled(&key.org).into());
        }
        if session.status().is_terminal() {
            return Err(crate::error::ended_for_spark(&session).into());
        }
        let Some(route) = session.state.published_route().cloned() else {
            return Err(bind::changing(&session).into());
        };
        if session.generation != request.generation {
            return Err(bind::changing(&session).into());
        }
        if route.dedicated {
            let answer = spark_sessions::bind(&self.api, &session, &route, &claims.sub, id, &request).await?;
            return Ok(Response::new(answer));
        }
        let bound = bind::bind(&self.api, session, &route, id, request.cloned).await?;
        Ok(Response::new(wire::BindSparkSessionResponse {
            bound,
            ..Default::default()
        }))
    }
}

impl Routes {
    /// Verifies the token independently of the proxy. The proxy checks the expiry,
    /// which depends on the method; here the longest grace applies.
    async fn verified(&self, token: &str) -> Result<Claims, Refused> {
        let verify = || {
            self.api
                .verifier
                .verify(token, &self.api.keyring, self.api.clock.now(), Grace::Reattach)
        };
        let mut outcome = verify();
        if matches!(&outcome, Err(error) if error.kind() == TokenErrorKind::UnknownKid) {
            match self.api.keys.fetch_again().await {
                Ok(_) => outcome = verify(),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "fetching the token keys failed")
                }
            }
        }
        match outcome {
            Ok(verified) => Ok(verified.claims),
            Err(error) if error.kind() == TokenErrorKind::UnknownKid && self.api.keyring.is_empty() => {
                Err(Refused::new(
                    Reason::ControlPlaneUnavailable,
                    "Berth has no keys to check tokens with yet. Try again shortly.",
                ))
            }
            Err(error) => Err(Refused::new(error.reason(), error.client_text())),
        }
    }

    /// Wakes an idle session; false while it must wait after a failed warm-up.
    async fn wake(&self, key: &SessionKey, claims: &Claims) -> Result<bool, Refused> {
        let actor = Actor::Principal(claims.sub.clone());
        match self
            .api
            .reconciler
            .apply(key, &Event::Wake, &actor, |_| Ok(()))
            .await
        {
            Ok(_) => {
                self.api.reconciler.enqueue(key.clone());
                Ok(true)
            }
            Err(refused) if refused.reason == Reason::SessionWarming => Ok(false),
            // It ended in the meantime; the next read returns its end.
            Err(refused) if matches!(refused.reason, Reason::SessionClosed | Reason::SessionFailed) => {
                Ok(true)
            }
            Err(refused) => Err(refused),
        }
    }

    /// The bound Spark sessions, which need no further bind.
    async fn bindings(&self, session: &Session, route: &Route) -> Result<Vec<wire::SparkBinding>, Refused> {
        let server = route.endpoint.to_ascii_lowercase();
        let all = self.api.store.list_bindings(&session.key()).await;
        let ready = all.map_err(crate::error::store)?.into_iter().filter(|binding| {
            binding.state == BindingState::Ready
                && binding.generation == session.generation
                && binding.spark.server == server
        });
        Ok(ready
            .map(|binding| wire::SparkBinding {
                spark_session_id: binding.spark.id.to_string(),
            })
            .collect())
    }

    /// How a proxy reaches the compute. Without addresses if these may not be
    /// dialled now: new connections wait, open ones continue. The same applies to a
    /// loopback address of another host than the proxy's; proxies of older versions
    /// do not send their host.
    async fn backend(&self, session: &Session, route: &Route, host: Option<&str>) -> wire::Backend {
        let elsewhere = host.is_some_and(|host| is_on_another_host(route, host));
        if elsewhere {
            tracing::warn!(
                endpoint = route.endpoint,
                "route returned without address: proxy and compute are on different hosts"
            );
        }
        let addresses = match elsewhere {
            true => Ok(Arc::default()),
            false => self.api.computes.addresses(route).await,
        };
        let newest = client_advice::newest_client(&self.api, &session.cluster, route).await;
        wire::Backend {
            endpoint: route.endpoint.clone(),
            tls_server_name: route.tls_server_name.clone().unwrap_or_default(),
            credential: route
                .credential
                .as_ref()
                .map(|secret| secret.expose().to_owned())
                .unwrap_or_default(),
            engine: route.engine.to_string(),
            dedicated: route.dedicated,
            addresses: addresses
                .iter()
                .flat_map(|all| all.iter().take(MAX_ADDRESSES))
                .map(ToString::to_string)
                .collect(),
            newest_client: newest
                .map(|newest| newest.version.to_string())
                .unwrap_or_default(),
            newest_client_declared: newest.is_some_and(|newest| newest.declared),
        }
    }

    async fn route(
        &self,
        session: &Session,
        org_disabled: bool,
        epoch: u64,
        host: Option<&str>,
    ) -> Result<wire::Route, Refused> {
        let bindings = match session.state.published_route() {
            Some(route) if !route.dedicated => self.bindings(session, route).await?,
            Some(_) | None => Vec::new(),
        };
        let backend = match session.state.published_route() {
            Some(route) => Some(self.backend(session, route, host).await),
            None => None,
        };
        let kept_spark_sessions = match session.state.published_route() {
            Some(route) if route.dedicated => spark_sessions::outdated(&self.api, session).await?,
            Some(_) | None => Vec::new(),
        };
        Ok(wire::Route {
            session_id: session.id.to_string(),
            org: session.org.to_string(),
            status: status(session.status()).into(),
            status_message: status_message(session),
            store_epoch: epoch,
            version: session.version,
            generation: session.generation,
            token_epoch: session.token_epoch,
            revoked_tokens: session
                .revoked_tokens
                .iter()
                .map(|(id, until)| wire::RevokedToken {
                    token_id: id.to_string(),
                    until: Some(timestamp(*until)),
                })
                .collect(),
            backend,
            owner: session.owner.to_string(),
            org_disabled,
            user_id: compute::shared_servers::user_id(&session.key()),
            bindings,
            expires_at: Some(timestamp(session.expires_at)),
            compute_lost_at: session.restarts.last().map(|at| timestamp(*at)),
            compute_replaced_at: session.replaced_at.map(timestamp),
            kept_spark_sessions,
            signals_replacement: session.policy.dedicated && session.policy.wake == WakePolicy::Signal,
        })
    }
}

/// One stream of WatchRoutes.
struct Watch {
    api: Arc<Api>,
    changes: broadcast::Receiver<Feed>,
    epoch: u64,
    heartbeats: Interval,
    is_over: bool,
}

fn heartbeats() -> Interval {
    let mut heartbeats = tokio::time::interval(HEARTBEAT_INTERVAL);
    heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeats
}

impl Watch {
    /// The next message; a heartbeat only if no change is waiting.
    async fn next(&mut self) -> Option<Result<wire::WatchRoutesResponse, Status>> {
        if self.is_over {
            return None;
        }
        loop {
            tokio::select! {
                biased;
                changed = self.changes.recv() => return match changed {
                    Ok(Feed::Change(change)) => Some(Ok(route_change(&change, self.epoch))),
                    Ok(Feed::Reset) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        // While the store is unavailable the old epoch is sent; a reset
                        // follows when it is available again.
                        self.epoch = self.api.store.epoch().await.unwrap_or(self.epoch);
                        Some(Ok(reset(self.epoch)))
                    }
                    Err(broadcast::error::RecvError::Closed) => None,
                },
                _ = self.heartbeats.tick() => {
                    if self.api.fan_out.is_read_within(HEARTBEAT_MAX_AGE) {
                        return Some(Ok(heartbeat()));
                    }
                    if !self.api.fan_out.is_read_within(FEED_TIMEOUT) {
                        self.is_over = true;
                        return Some(Err(feed_broken().into()));
                    }
                }
            }
        }
    }
}

fn feed_broken() -> Refused {
    Refused::new(
        Reason::ControlPlaneUnavailable,
        "This session-manager cannot read the change feed of its state store at the moment.",
    )
}

fn status_message(session: &Session) -> String {
    if session.status_message.is_empty() {
        session.reason.to_string()
    } else {
        session.status_message.clone()
    }
}

fn check_not_revoked(claims: &Claims, session: &Session) -> Result<(), Refused> {
    if claims.epoch < session.token_epoch || session.revoked_tokens.contains_key(&claims.jti) {
        return Err(revoked(session));
    }
    Ok(())
}

/// Tokens of a disabled principal count as revoked.
fn check_not_disabled(disabled: &DisabledState, session: &Session) -> Result<(), Refused> {
    match disabled.principal {
        Some(_) => Err(revoked(session)),
        None => Ok(()),
    }
}

fn revoked(session: &Session) -> Refused {
    Refused::new(
        Reason::TokenRevoked,
        format!(
            "The token was revoked. Call spark.stop(), then connect with a new one: `berth token {}`",
            session.id
        ),
    )
}

const fn status(status: SessionStatus) -> wire::RouteStatus {
    match status {
        SessionStatus::Pending => wire::RouteStatus::Pending,
        SessionStatus::Active => wire::RouteStatus::Active,
        SessionStatus::Idle => wire::RouteStatus::Idle,
        SessionStatus::Closed => wire::RouteStatus::Closed,
        SessionStatus::Failed => wire::RouteStatus::Failed,
    }
}

/// The error for a valid token of a session without a record.
fn deleted(key: &SessionKey) -> Refused {
    Refused::new(
        Reason::SessionClosed,
        format!(
            "Session {} is closed. Call spark.stop(), then connect to a new one: `berth create`",
            key.id
        ),
    )
}

/// The route for a valid token of a session without a record: the session ended,
/// and its retention is over.
fn unknown(key: &SessionKey, epoch: u64) -> wire::ResolveRouteResponse {
    wire::ResolveRouteResponse {
        route: Some(wire::Route {
            session_id: key.id.to_string(),
            org: key.org.to_string(),
            status: wire::RouteStatus::Closed.into(),
            store_epoch: epoch,
            ..wire::Route::default()
        }),
    }
}

fn heartbeat() -> wire::WatchRoutesResponse {
    let update = wire::watch_routes_response::Update::Heartbeat(wire::RouteHeartbeat {});
    wire::WatchRoutesResponse { update: Some(update) }
}

fn reset(store_epoch: u64) -> wire::WatchRoutesResponse {
    let update = wire::watch_routes_response::Update::Reset(wire::RouteReset { store_epoch });
    wire::WatchRoutesResponse { update: Some(update) }
}

fn route_change(change: &Change, store_epoch: u64) -> wire::WatchRoutesResponse {
    let update = wire::watch_routes_response::Update::Change(wire::RouteChange {
        session_id: change.key.id.to_string(),
        store_epoch,
        version: change.record.version,
        status: status(change.record.to).into(),
        generation: change.record.generation,
        token_epoch: change.token_epoch,
        reason: change.record.reason.to_string(),
    });
    wire::WatchRoutesResponse { update: Some(update) }
}
