//! Where a session's calls go, as session-manager says it.
//!
//! [`cache::Routes`] is what all workers share: the answers, the one flight per
//! session that asks for them, and the markers of sessions that ended. It is
//! locked, but only ever on a miss: every worker keeps its own view
//! ([`crate::worker::session`]) and is told by message when it no longer holds.
//! [`watch`] feeds it with changes.

pub(crate) mod cache;
mod single_flight;
pub(crate) mod watch;

pub(crate) use single_flight::refusal;

use crate::grpc::identity::SparkSessionId;
use http::HeaderValue;
use http::uri::Authority;
use rustls::pki_types::ServerName;
use session_core::{Engine, OrgId, Reason, SessionId, Timestamp, TokenId};
use session_proto::convert::from_timestamp;
use session_proto::error::Refused;
use session_proto::internal as pb;
use session_token::Claims;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How much longer than the wait it was asked for session-manager may take.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(5);

/// For this long after a loss of compute, an operation that is not found counts
/// as lost with it.
const LOSS_MATTERS: Duration = Duration::from_secs(15 * 60);

/// Orders all that is known of one session: the store's epoch, then the
/// session's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Order {
    pub(crate) store_epoch: u64,
    pub(crate) version: u64,
}

/// What is known of a session that may get calls.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) session: SessionId,
    pub(crate) org: OrgId,
    pub(crate) order: Order,
    pub(crate) token_epoch: u64,
    pub(crate) revoked: Vec<TokenId>,
    pub(crate) org_disabled: bool,
    pub(crate) state: RouteState,
    /// Of its compute, or of what it had last.
    pub(crate) generation: u64,
    /// When compute of an earlier generation was lost last.
    lost_at: Option<Timestamp>,
    /// When its generation last rose.
    pub(crate) replaced_at: Option<Timestamp>,
    /// Spark sessions that are the session's on shared compute.
    bindings: Vec<SparkSessionId>,
    /// Spark sessions whose settings are those of an earlier generation.
    outdated: Vec<SparkSessionId>,
    /// A Spark session that is older than the compute is told so.
    pub(crate) signals_replacement: bool,
}

/// Whether it can get calls now.
#[derive(Debug)]
pub(crate) enum RouteState {
    /// It can.
    Active(Arc<Backend>),
    /// Compute is being brought up; why it takes time, for people.
    Pending(String),
    /// Compute was given back, or nothing uses it.
    Idle(String),
    /// Never again.
    Gone(Gone),
}

/// Why a session gets no more calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// SESSION_CLOSED or SESSION_FAILED.
    pub(crate) reason: Reason,
    /// Why it failed, in words; empty if closed.
    pub(crate) why: String,
}

/// A Spark Connect server.
pub(crate) struct Backend {
    /// How the server is called. Nobody looks this up.
    pub(crate) authority: Authority,
    /// What may be dialled: session-manager checked each of these.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Speak TLS, verified against this name.
    pub(crate) tls: Option<ServerName<'static>>,
    /// `Bearer …`, marked sensitive.
    pub(crate) credential: Option<HeaderValue>,
    pub(crate) engine: Engine,
    /// It serves this one session only.
    pub(crate) dedicated: bool,
    /// Of the session; rises when its compute was really replaced.
    pub(crate) generation: u64,
    /// The same, to tell clients.
    pub(crate) generation_header: HeaderValue,
    /// What the session is called there.
    pub(crate) user_id: String,
    /// Who may share a connection to it.
    pub(crate) pool: PoolKey,
}

/// Connections to dedicated compute belong to one generation of one session,
/// never to an address: addresses are used again by others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PoolKey {
    Dedicated(SessionId, u64),
    Shared(Authority, Option<ServerName<'static>>),
}

/// Not written by derive: a credential lives here.
impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("authority", &self.authority)
            .field("engine", &self.engine)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// A route that session-manager should not have sent.
#[derive(Debug, thiserror::Error)]
#[error("a route with an unusable {0}")]
pub(crate) struct BadRoute(&'static str);

impl Gone {
    pub(crate) fn refused(&self) -> Refused {
        if self.reason == Reason::SessionFailed {
            let why = if self.why.is_empty() {
                "its compute could not be started"
            } else {
                &self.why
            };
            return Refused::new(
                Reason::SessionFailed,
                format!(
                    "The session failed: {why}. Call spark.stop(), then connect to a new one: `berth create`"
                ),
            )
            .with("why", why);
        }
        Refused::new(
            Reason::SessionClosed,
            "The session is closed, or does not exist. Call spark.stop(), then connect to a new one: `berth create`",
        )
    }
}

impl Route {
    pub(crate) fn from_proto(route: pb::Route) -> Result<Self, BadRoute> {
        let session: SessionId = route.session_id.parse().map_err(|_| BadRoute("session id"))?;
        let state = match route.status() {
            pb::RouteStatus::Active => {
                let backend = route.backend.ok_or(BadRoute("backend: none"))?;
                RouteState::Active(Arc::new(Backend::from_proto(
                    backend,
                    &session,
                    route.generation,
                    route.user_id,
                )?))
            }
            pb::RouteStatus::Pending => RouteState::Pending(route.status_message),
            pb::RouteStatus::Idle => RouteState::Idle(route.status_message),
            pb::RouteStatus::Closed => RouteState::Gone(Gone {
                reason: Reason::SessionClosed,
                why: String::new(),
            }),
            pb::RouteStatus::Failed => RouteState::Gone(Gone {
                reason: Reason::SessionFailed,
                why: route.status_message,
            }),
            pb::RouteStatus::Unspecified => return Err(BadRoute("status")),
        };
        Ok(Self {
            org: route.org.parse().map_err(|_| BadRoute("org"))?,
            order: Order {
                store_epoch: route.store_epoch,
                version: route.version,
            },
            token_epoch: route.token_epoch,
            revoked: route
                .revoked_tokens
                .into_iter()
                .map(|token| token.token_id.parse().map_err(|_| BadRoute("revoked token id")))
                .collect::<Result<_, _>>()?,
            org_disabled: route.org_disabled,
            lost_at: route.compute_lost_at.as_ref().map(from_timestamp),
            replaced_at: route.compute_replaced_at.as_ref().map(from_timestamp),
            bindings: route
                .bindings
                .iter()
                .map(|binding| binding.spark_session_id.parse().map_err(|_| BadRoute("binding")))
                .collect::<Result<_, _>>()?,
            outdated: route
                .kept_spark_sessions
                .iter()
                .map(|id| id.parse().map_err(|_| BadRoute("kept Spark session")))
                .collect::<Result<_, _>>()?,
            signals_replacement: route.signals_replacement,
            generation: route.generation,
            state,
            session,
        })
    }

    /// Was compute lost so recently that clients may still come back for what
    /// ran there?
    pub(crate) fn lost_compute(&self, now: Timestamp) -> bool {
        self.lost_at.is_some_and(|at| now < at.after(LOSS_MATTERS))
    }

    /// Was the compute before this one lost, and not given back?
    pub(crate) fn replaced_lost(&self) -> bool {
        self.replaced_at.is_some() && self.replaced_at == self.lost_at
    }

    /// Must session-manager be asked before the Spark session is used on this
    /// generation of dedicated compute?
    pub(crate) fn must_prepare(&self, spark_session: &SparkSessionId) -> bool {
        self.signals_replacement || self.outdated.contains(spark_session)
    }

    /// Is the Spark session known to be the session's?
    pub(crate) fn binds(&self, spark_session: &SparkSessionId) -> bool {
        self.bindings.contains(spark_session)
    }

    /// Is a token that verified also good for this session as it is now?
    pub(crate) fn admits(&self, claims: &Claims) -> Result<(), Refused> {
        if self.org_disabled {
            return Err(Refused::new(
                Reason::OrgDisabled,
                "The organization is disabled. Ask its administrator.",
            ));
        }
        if claims.org != self.org {
            return Err(Refused::new(
                Reason::TokenInvalid,
                "The token belongs to another organization than its session. Call spark.stop(), then connect with a new one: `berth token <session>`",
            ));
        }
        if claims.epoch < self.token_epoch || self.revoked.contains(&claims.jti) {
            return Err(revoked(&claims.sid));
        }
        Ok(())
    }
}

pub(crate) fn revoked(session: &SessionId) -> Refused {
    Refused::new(
        Reason::TokenRevoked,
        format!(
            "The token was revoked. Call spark.stop(), then connect with a new one: `berth token {session}`"
        ),
    )
}

impl Backend {
    fn from_proto(
        backend: pb::Backend,
        session: &SessionId,
        generation: u64,
        user_id: String,
    ) -> Result<Self, BadRoute> {
        let authority: Authority = backend.endpoint.parse().map_err(|_| BadRoute("endpoint"))?;
        if authority.port_u16().is_none() {
            return Err(BadRoute("endpoint: no port"));
        }
        let tls = match backend.tls_server_name.as_str() {
            "" => None,
            name => Some(ServerName::try_from(name.to_owned()).map_err(|_| BadRoute("TLS server name"))?),
        };
        let credential = match backend.credential.as_str() {
            "" => None,
            token => {
                let mut value =
                    HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| BadRoute("credential"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let engine = match backend.engine.as_str() {
            "sail" => Engine::Sail,
            "spark" => Engine::Spark,
            _ => return Err(BadRoute("engine")),
        };
        let pool = if backend.dedicated {
            PoolKey::Dedicated(session.clone(), generation)
        } else {
            PoolKey::Shared(authority.clone(), tls.clone())
        };
        let addresses = backend.addresses.iter().map(|address| address.parse());
        Ok(Self {
            addresses: addresses
                .collect::<Result<_, _>>()
                .map_err(|_| BadRoute("address"))?,
            authority,
            tls,
            credential,
            engine,
            dedicated: backend.dedicated,
            generation,
            generation_header: HeaderValue::from(generation),
            user_id: if user_id.is_empty() {
                session.to_string()
            } else {
                user_id
            },
            pool,
        })
    }
}

/// The moment a token's time is over, as the verifier sees it.
pub(crate) fn expired(claims: &Claims, leeway: Duration, now: Timestamp) -> bool {
    now >= claims.expires_at().after(leeway)
}
