//! Routes of sessions, as reported by session-manager.
//!
//! [`cache::Routes`] is shared by all workers: the answers, the single flight per session, and
//! markers of ended sessions. Its lock is taken only on a miss: every worker has its own view
//! ([`crate::worker::session`]) and receives events that invalidate it. [`watch`] receives the
//! changes.

pub(crate) mod cache;
mod single_flight;
pub(crate) mod watch;

pub(crate) use single_flight::rejection;

use crate::grpc::identity::SparkSessionId;
use http::HeaderValue;
use http::uri::Authority;
use rustls::pki_types::ServerName;
use session_core::{Clock, Engine, NewestClient, OrgId, Reason, SessionId, SparkVersion, Timestamp, TokenId};
use session_proto::convert::from_timestamp;
use session_proto::error::Refused;
use session_proto::internal as pb;
use session_token::Claims;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Time for session-manager's answer beyond the wait in the request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after a loss of compute for which an unknown operation counts as lost with it.
const LOSS_TTL: Duration = Duration::from_secs(15 * 60);

/// Orders all data of one session: by store epoch, then by session version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct RouteVersion {
    pub(crate) store_epoch: u64,
    pub(crate) version: u64,
}

/// Route of a session.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) session: SessionId,
    pub(crate) org: OrgId,
    pub(crate) version: RouteVersion,
    pub(crate) token_epoch: u64,
    pub(crate) revoked: Box<[TokenId]>,
    pub(crate) org_disabled: bool,
    pub(crate) state: RouteState,
    /// Generation of the current or last compute.
    pub(crate) generation: u64,
    /// Time of the last loss of compute of an earlier generation.
    lost_at: Option<Timestamp>,
    /// Time at which the generation last rose.
    pub(crate) replaced_at: Option<Timestamp>,
    /// Spark sessions bound to the session on shared compute.
    bindings: Box<[SparkSessionId]>,
    /// Spark sessions with settings of an earlier generation.
    outdated: Box<[SparkSessionId]>,
    /// Calls in a Spark session older than the compute get an error.
    pub(crate) signals_replacement: bool,
}

/// Whether calls can be forwarded now.
#[derive(Debug)]
pub(crate) enum RouteState {
    /// Calls can be forwarded.
    Active(Arc<Backend>),
    /// Compute is starting; with a user message about the wait.
    Pending(String),
    /// Compute was released or is unused.
    Idle(String),
    /// The session has ended.
    Gone(Gone),
}

/// Reason for the end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// SESSION_CLOSED or SESSION_FAILED.
    pub(crate) reason: Reason,
    /// User message of a failure; empty if closed.
    pub(crate) why: String,
}

/// A Spark Connect server.
pub(crate) struct Backend {
    /// Name of the server, which is not resolved.
    pub(crate) authority: Authority,
    /// Addresses for connecting, checked by session-manager.
    pub(crate) addresses: Box<[SocketAddr]>,
    /// Use TLS with this server name.
    pub(crate) tls: Option<ServerName<'static>>,
    /// `Bearer …`, marked sensitive.
    pub(crate) credential: Option<HeaderValue>,
    pub(crate) engine: Engine,
    /// The newest clients that it serves, if known.
    pub(crate) newest_client: Option<NewestClient>,
    /// Serves this session only.
    pub(crate) dedicated: bool,
    /// Generation of the session's compute; rises when compute is replaced.
    pub(crate) generation: u64,
    /// The generation as response header.
    pub(crate) generation_header: HeaderValue,
    /// The user id of the session at the server.
    pub(crate) user_id: Box<str>,
}

/// Hand-written: the backend contains a credential.
impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("authority", &self.authority)
            .field("engine", &self.engine)
            .field("dedicated", &self.dedicated)
            .field("generation", &self.generation)
            .field("user_id", &self.user_id)
            .finish_non_exhaustive()
    }
}

/// An invalid route from session-manager.
#[derive(Debug, thiserror::Error)]
#[error("a route with an invalid {0}")]
pub(crate) struct InvalidRoute(&'static str);

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
    pub(crate) fn from_proto(route: pb::Route) -> Result<Self, InvalidRoute> {
        let session: SessionId = route.session_id.parse().map_err(|_| InvalidRoute("session id"))?;
        let state = match route.status() {
            pb::RouteStatus::Active => {
                let backend = route.backend.ok_or(InvalidRoute("backend: none"))?;
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
            pb::RouteStatus::Unspecified => return Err(InvalidRoute("status")),
        };
        Ok(Self {
            org: route.org.parse().map_err(|_| InvalidRoute("org"))?,
            version: RouteVersion {
                store_epoch: route.store_epoch,
                version: route.version,
            },
            token_epoch: route.token_epoch,
            revoked: parse_all(
                route.revoked_tokens.iter().map(|token| &token.token_id),
                "revoked token id",
            )?,
            org_disabled: route.org_disabled,
            lost_at: route.compute_lost_at.as_ref().map(from_timestamp),
            replaced_at: route.compute_replaced_at.as_ref().map(from_timestamp),
            bindings: parse_all(
                route.bindings.iter().map(|binding| &binding.spark_session_id),
                "binding",
            )?,
            outdated: parse_all(route.kept_spark_sessions.iter(), "kept Spark session")?,
            signals_replacement: route.signals_replacement,
            generation: route.generation,
            state,
            session,
        })
    }

    /// Whether compute was lost recently enough that clients may reattach to lost operations.
    pub(crate) fn lost_compute_recently(&self, clock: &dyn Clock) -> bool {
        self.lost_at.is_some_and(|at| clock.now() < at.after(LOSS_TTL))
    }

    /// Whether the previous compute was lost, not released.
    pub(crate) fn replaced_lost(&self) -> bool {
        self.replaced_at.is_some() && self.replaced_at == self.lost_at
    }

    /// Whether session-manager must prepare the Spark session before its use on this generation of
    /// dedicated compute.
    pub(crate) fn must_prepare(&self, spark_session: &SparkSessionId) -> bool {
        self.signals_replacement || self.outdated.contains(spark_session)
    }

    /// Whether the Spark session is bound to the session.
    pub(crate) fn binds(&self, spark_session: &SparkSessionId) -> bool {
        self.bindings.contains(spark_session)
    }

    /// Checks a verified token against the current state of the session.
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

fn parse_all<'t, T: FromStr>(
    texts: impl Iterator<Item = &'t String>,
    what: &'static str,
) -> Result<Box<[T]>, InvalidRoute> {
    texts
        .map(|text| text.parse().map_err(|_| InvalidRoute(what)))
        .collect()
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
    ) -> Result<Self, InvalidRoute> {
        let authority: Authority = backend.endpoint.parse().map_err(|_| InvalidRoute("endpoint"))?;
        if authority.port_u16().is_none() {
            return Err(InvalidRoute("endpoint: no port"));
        }
        let tls = match backend.tls_server_name.as_str() {
            "" => None,
            name => Some(ServerName::try_from(name.to_owned()).map_err(|_| InvalidRoute("TLS server name"))?),
        };
        let credential = match backend.credential.as_str() {
            "" => None,
            token => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| InvalidRoute("credential"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let engine = match backend.engine.as_str() {
            "sail" => Engine::Sail,
            "spark" => Engine::Spark,
            _ => return Err(InvalidRoute("engine")),
        };
        let addresses = backend.addresses.iter().map(|address| address.parse());
        Ok(Self {
            addresses: addresses
                .collect::<Result<_, _>>()
                .map_err(|_| InvalidRoute("address"))?,
            authority,
            tls,
            credential,
            engine,
            newest_client: SparkVersion::parse(&backend.newest_client).map(|version| NewestClient {
                version,
                declared: backend.newest_client_declared,
            }),
            dedicated: backend.dedicated,
            generation,
            generation_header: HeaderValue::from(generation),
            user_id: if user_id.is_empty() {
                session.as_str().into()
            } else {
                user_id.into()
            },
        })
    }
}

/// Whether a token has expired, by the rule of the verifier.
pub(crate) fn is_expired(claims: &Claims, leeway: Duration, now: Timestamp) -> bool {
    now >= claims.expires_at().after(leeway)
}
