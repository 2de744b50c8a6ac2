//! SessionService: create, read, change and close sessions.

use super::{Api, placement, session_page};
use crate::caller::AuthenticatedCaller;
use futures::stream::BoxStream;
use session_core::access::{self, Rpc, SessionAction};
use session_core::machine::{Event, NewSession};
use session_core::policy::PolicyRequest;
use session_core::{
    ChangeReason, Cluster, ClusterName, Limits, Principal, Reason, Role, Session, SessionId, SessionPolicy,
    Status as SessionStatus, Timestamp, Use, machine,
};
use session_proto::convert::{self, maybe_duration, non_empty};
use session_proto::error::Refused;
use session_proto::v1::{self, session_service_server::SessionService};
use session_store::{Create, RequestId};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Longest name, team or request id, in bytes.
const MAX_TEXT: usize = 128;
const MAX_LABEL_KEY: usize = 63;
const MAX_LABEL_VALUE: usize = 255;
/// Keys and values of all labels of one session together, in bytes.
const MAX_LABEL_BYTES: usize = 8 * 1024;
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Serves `berth.v1.SessionService`.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    /// The shared parts.
    pub(crate) api: Arc<Api>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl SessionService for Sessions {
    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Answer<v1::CreateSessionResponse> {
        let who = self.api.caller(&request)?;
        let session = self.create(&who, request.into_inner()).await?;
        Ok(Response::new(v1::CreateSessionResponse {
            session: Some(shown(&who, &session, &Use::default())),
        }))
    }

    async fn describe_session(
        &self,
        request: Request<v1::DescribeSessionRequest>,
    ) -> Answer<v1::DescribeSessionResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let wait = maybe_duration("wait_ready", request.wait_ready.as_ref())?.unwrap_or_default();
        if wait > MAX_WAIT {
            return Err(Refused::field("wait_ready", "must be at most 60 s").into());
        }
        let key = self.api.key(&who, &request.session_id)?;
        let until = tokio::time::Instant::now() + wait;
        loop {
            let waiter = self.api.fan_out.wait_for(&key);
            let changed = waiter.changed();
            let (session, _) = self
                .api
                .session_for(&who, &request.session_id, Rpc::DescribeSession)
                .await?;
            if session.status() != SessionStatus::Pending || tokio::time::Instant::now() >= until {
                return Ok(Response::new(v1::DescribeSessionResponse {
                    session: Some(self.shown_now(&who, &session).await?),
                }));
            }
            let _ = tokio::time::timeout_at(until, changed).await;
        }
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Answer<v1::ListSessionsResponse> {
        let who = self.api.caller(&request)?;
        let query = session_page::query(&who, request.into_inner())?;
        let page = session_page::read(self.api.store.as_ref(), &who, query).await?;
        Ok(Response::new(page))
    }

    async fn update_session(
        &self,
        request: Request<v1::UpdateSessionRequest>,
    ) -> Answer<v1::UpdateSessionResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let labels = match request.labels {
            None => None,
            Some(labels) => {
                let limits = self
                    .api
                    .definitions
                    .org(&who.org)
                    .await
                    .map_err(crate::error::store)?
                    .limits;
                Some(checked_labels(labels.labels, &limits)?)
            }
        };
        let name = match request.name {
            None => None,
            Some(name) => Some(checked_text("name", name)?),
        };
        let session = self
            .update(
                &who,
                &request.session_id,
                request.version,
                Event::Update { name, labels },
            )
            .await?;
        Ok(Response::new(v1::UpdateSessionResponse {
            session: Some(session),
        }))
    }

    async fn extend_session(
        &self,
        request: Request<v1::ExtendSessionRequest>,
    ) -> Answer<v1::ExtendSessionResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let expires_at = required_moment("expires_at", request.expires_at.as_ref())?;
        let session = self
            .change(
                &who,
                &request.session_id,
                Rpc::ExtendSession,
                Event::Extend { expires_at },
            )
            .await?;
        Ok(Response::new(v1::ExtendSessionResponse {
            session: Some(session),
        }))
    }

    async fn keep_session_alive(
        &self,
        request: Request<v1::KeepSessionAliveRequest>,
    ) -> Answer<v1::KeepSessionAliveResponse> {
        let who = self.api.caller(&request)?;
        let request = request.into_inner();
        let until = required_moment("until", request.until.as_ref())?;
        let session = self
            .change(
                &who,
                &request.session_id,
                Rpc::KeepSessionAlive,
                Event::KeepAlive { until },
            )
            .await?;
        Ok(Response::new(v1::KeepSessionAliveResponse {
            session: Some(session),
        }))
    }

    async fn warm_session(
        &self,
        request: Request<v1::WarmSessionRequest>,
    ) -> Answer<v1::WarmSessionResponse> {
        let who = self.api.caller(&request)?;
        let session = self
            .change(
                &who,
                &request.into_inner().session_id,
                Rpc::WarmSession,
                Event::Wake,
            )
            .await?;
        Ok(Response::new(v1::WarmSessionResponse {
            session: Some(session),
        }))
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Answer<v1::CloseSessionResponse> {
        let who = self.api.caller(&request)?;
        let close = Event::Close {
            reason: ChangeReason::CloseRequested,
        };
        let session = self
            .change(&who, &request.into_inner().session_id, Rpc::CloseSession, close)
            .await?;
        Ok(Response::new(v1::CloseSessionResponse {
            session: Some(session),
        }))
    }

    type WatchSessionsStream = BoxStream<'static, Result<v1::WatchSessionsResponse, Status>>;

    async fn watch_sessions(
        &self,
        request: Request<v1::WatchSessionsRequest>,
    ) -> Answer<Self::WatchSessionsStream> {
        let stream = super::watch::watch(&self.api, request).await?;
        Ok(Response::new(stream))
    }

    async fn list_session_events(
        &self,
        request: Request<v1::ListSessionEventsRequest>,
    ) -> Answer<v1::ListSessionEventsResponse> {
        let who = self.api.caller(&request)?;
        let id = request.into_inner().session_id;
        let (session, _) = self.api.session_for(&who, &id, Rpc::ListSessionEvents).await?;
        let events = self
            .api
            .store
            .events(&session.key())
            .await
            .map_err(crate::error::store)?;
        Ok(Response::new(v1::ListSessionEventsResponse {
            events: events.iter().map(convert::event).collect(),
        }))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Answer<v1::ListOperationsResponse> {
        let who = self.api.caller(&request)?;
        let id = request.into_inner().session_id;
        let (session, _) = self.api.session_for(&who, &id, Rpc::ListOperations).await?;
        let operations = self
            .api
            .store
            .operations(&session.key())
            .await
            .map_err(crate::error::store)?;
        Ok(Response::new(v1::ListOperationsResponse {
            operations: operations.into_iter().map(convert::operation).collect(),
        }))
    }

    async fn interrupt_operations(
        &self,
        request: Request<v1::InterruptOperationsRequest>,
    ) -> Answer<v1::InterruptOperationsResponse> {
        let who = self.api.caller(&request)?;
        let interrupted_operation_ids =
            super::operations::interrupt(&self.api, &who, &request.into_inner()).await?;
        Ok(Response::new(v1::InterruptOperationsResponse {
            interrupted_operation_ids,
        }))
    }
}

impl Sessions {
    async fn create(
        &self,
        who: &AuthenticatedCaller,
        request: v1::CreateSessionRequest,
    ) -> Result<Session, Refused> {
        let request_id = checked_text("request_id", request.request_id.clone())?;
        let request_id = request_id.map(|id| RequestId {
            id,
            fingerprint: fingerprint(&request),
        });
        let named = placement::cluster_name(&request.cluster)?;
        let loaded = self.load_for_create(who, &named, request_id.as_ref()).await?;
        // A repeated request is answered before its validation: its cluster may accept
        // no new sessions by now.
        if let Some(session) = loaded.repeated {
            return Ok(session);
        }
        let cluster = self.api.authorize_cluster(who, &named, loaded.cluster)?;
        let catalog = self.api.catalog_for(who, &request.catalog, &cluster).await?;
        let profile = placement::profile_for(&cluster, &request.profile)?;
        let mut change = machine::create(
            NewSession {
                id: SessionId::generate(loaded.now, rand::random()),
                org: who.org.clone(),
                owner: who.id.clone(),
                policy: settled_policy(&cluster, &request)?,
                team: checked_team(who, request.team)?,
                name: checked_text("name", request.name)?,
                labels: checked_labels(request.labels, &loaded.limits)?,
                cluster: cluster.name.clone(),
                catalog: catalog.as_ref().map(|catalog| catalog.name.clone()),
                profile,
            },
            loaded.now,
        );
        who.address.clone_into(&mut change.record.address);
        let create = Create {
            session: change.session,
            record: change.record,
            due: loaded.now.after(machine::RECHECK),
            request: request_id,
            limits: loaded.limits,
        };
        let created = self.api.store.create(create).await.map_err(crate::error::store)?;
        if created.new {
            tracing::info!(
                session = %created.session.id, org = %who.org, actor = %who.id, cluster = %cluster.name,
                "session created"
            );
            let reconciler = &self.api.reconciler;
            reconciler
                .start_new(&created.session, &change.effects, &cluster, catalog)
                .await;
            // It may have been closed in the meantime.
            reconciler.enqueue(created.session.key());
        }
        Ok(created.session)
    }

    /// Loads what the creation of a session depends on.
    ///
    /// # Errors
    /// A store error, or [`session_core::Reason::OrgDisabled`].
    async fn load_for_create(
        &self,
        who: &AuthenticatedCaller,
        cluster: &ClusterName,
        request_id: Option<&RequestId>,
    ) -> Result<LoadedForCreate, Refused> {
        let (definitions, store) = (&self.api.definitions, &self.api.store);
        let repeated = async {
            match request_id {
                Some(request_id) => store.find_by_request(&who.org, &who.id, request_id).await,
                None => Ok(None),
            }
        };
        // Admission rejects all members of a disabled organization but platform admins.
        let disabled = async {
            let admitted = who.has(Role::PlatformAdmin);
            Ok(admitted && definitions.is_disabled(&who.org).await?)
        };
        let loaded = tokio::try_join!(definitions.load_for_create(&who.org, cluster), disabled, repeated);
        let ((org, cluster, now), disabled, repeated) = loaded.map_err(crate::error::store)?;
        if disabled {
            return Err(crate::error::org_disabled(&who.org));
        }
        Ok(LoadedForCreate {
            limits: org.limits,
            cluster,
            now,
            repeated,
        })
    }

    async fn change(
        &self,
        who: &AuthenticatedCaller,
        id: &str,
        rpc: Rpc,
        event: Event,
    ) -> Result<v1::Session, Refused> {
        let key = self.api.key(who, id)?;
        let (session, _) = self.api.change(who, &key, rpc, &event).await?;
        self.shown_now(who, &session).await
    }

    /// Applies an update to a session of this version; 0 is any version.
    async fn update(
        &self,
        who: &AuthenticatedCaller,
        id: &str,
        version: u64,
        event: Event,
    ) -> Result<v1::Session, Refused> {
        let key = self.api.key(who, id)?;
        let is_current = |session: &Session| match version {
            0 => Ok(()),
            version if version == session.version => Ok(()),
            _ => Err(changed_since(session, version)),
        };
        let (session, _) = self
            .api
            .change_if(who, &key, Rpc::UpdateSession, &event, is_current)
            .await?;
        self.shown_now(who, &session).await
    }

    /// A session with its present usage.
    async fn shown_now(&self, who: &Principal, session: &Session) -> Result<v1::Session, Refused> {
        let uses = self
            .api
            .store
            .usage(std::slice::from_ref(session))
            .await
            .map_err(crate::error::store)?;
        Ok(shown(who, session, &uses.first().copied().unwrap_or_default()))
    }
}

fn changed_since(session: &Session, version: u64) -> Refused {
    let text = format!(
        "The session has version {}, not {version}: it changed in the meantime. Read it again and repeat the update.",
        session.version
    );
    Refused::new(Reason::Conflict, text).with("version", session.version.to_string())
}

pub(super) fn shown(who: &Principal, session: &Session, used: &Use) -> v1::Session {
    convert::session(
        session,
        used,
        access::on_session(who, SessionAction::Connect, session),
    )
}

/// What the creation of a session depends on.
struct LoadedForCreate {
    limits: Limits,
    cluster: Option<Cluster>,
    now: Timestamp,
    /// The session that an earlier request of the same id created.
    repeated: Option<Session>,
}

fn settled_policy(cluster: &Cluster, request: &v1::CreateSessionRequest) -> Result<SessionPolicy, Refused> {
    let requested = PolicyRequest {
        idle_timeout: maybe_duration("idle_timeout", request.idle_timeout.as_ref())?,
        close_after_idle: maybe_duration("close_after_idle", request.close_after_idle.as_ref())?,
        max_lifetime: maybe_duration("max_lifetime", request.max_lifetime.as_ref())?,
    };
    SessionPolicy::resolve(cluster, &requested)
        .map_err(|bounds| Refused::field(bounds.field, bounds.to_string()))
}

fn checked_team(who: &Principal, team: String) -> Result<Option<String>, Refused> {
    let team = checked_text("team", team)?;
    if let Some(team) = &team
        && !who.teams.contains(team)
        && !who.has(Role::OrgAdmin)
    {
        return Err(Refused::field("team", "must be one of your teams"));
    }
    Ok(team)
}

/// SHA-256 of every field but the `request_id`, in a fixed order. The store keeps
/// it for a day, so its size does not depend on the request.
fn fingerprint(request: &v1::CreateSessionRequest) -> String {
    let labels: BTreeMap<_, _> = request.labels.iter().collect();
    let seconds =
        |value: &Option<prost_types::Duration>| value.as_ref().map(|value| (value.seconds, value.nanos));
    let all = (
        (
            &request.cluster,
            &request.catalog,
            &request.name,
            &request.team,
            labels,
        ),
        seconds(&request.idle_timeout),
        seconds(&request.close_after_idle),
        seconds(&request.max_lifetime),
    );
    let mut json = serde_json::to_vec(&all).unwrap_or_default();
    // Without a profile the fingerprint is that of earlier versions.
    json.extend_from_slice(request.profile.as_bytes());
    hex::encode(Sha256::digest(json))
}

/// The error text for a character that is not [`printable`].
const UNPRINTABLE: &str =
    "must not contain control characters, direction marks or characters that cannot be seen";

fn checked_text(field: &'static str, text: String) -> Result<Option<String>, Refused> {
    if text.len() > MAX_TEXT {
        return Err(Refused::field(field, format!("must be at most {MAX_TEXT} bytes")));
    }
    if !printable::all_printable(&text) {
        return Err(Refused::field(field, UNPRINTABLE));
    }
    Ok(non_empty(text))
}

fn checked_labels(
    labels: impl IntoIterator<Item = (String, String)>,
    limits: &Limits,
) -> Result<BTreeMap<String, String>, Refused> {
    let labels: BTreeMap<_, _> = labels.into_iter().collect();
    if labels.len() > limits.labels as usize {
        return Err(Refused::field(
            "labels",
            format!("must be at most {}", limits.labels),
        ));
    }
    for (key, value) in &labels {
        if key.is_empty() || key.len() > MAX_LABEL_KEY || value.len() > MAX_LABEL_VALUE {
            return Err(Refused::field(
                "labels",
                format!(
                    "each needs a key of 1 to {MAX_LABEL_KEY} bytes and a value of at most {MAX_LABEL_VALUE}"
                ),
            ));
        }
        if !printable::all_printable(key) || !printable::all_printable(value) {
            return Err(Refused::field("labels", UNPRINTABLE));
        }
    }
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_LABEL_BYTES {
        return Err(Refused::field(
            "labels",
            format!("all keys and values together must be at most {MAX_LABEL_BYTES} bytes"),
        ));
    }
    Ok(labels)
}

fn required_moment(field: &'static str, at: Option<&prost_types::Timestamp>) -> Result<Timestamp, Refused> {
    at.map(convert::from_timestamp)
        .ok_or_else(|| Refused::field(field, "is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(count: usize, value: usize) -> v1::CreateSessionRequest {
        v1::CreateSessionRequest {
            cluster: "c".to_owned(),
            request_id: "r-1".to_owned(),
            labels: (0..count).map(|n| (format!("k{n}"), "x".repeat(value))).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn fingerprints_have_a_fixed_size_and_differ_between_requests() {
        let (small, large) = (fingerprint(&labels(1, 1)), fingerprint(&labels(64, 255)));
        assert_eq!((small.len(), large.len()), (64, 64));
        assert_ne!(small, large);
        assert_eq!(
            large,
            fingerprint(&labels(64, 255)),
            "independent of the order of labels"
        );
        let again = v1::CreateSessionRequest {
            request_id: "r-2".to_owned(),
            ..labels(1, 1)
        };
        assert_eq!(small, fingerprint(&again));
        let sized = v1::CreateSessionRequest {
            profile: "large".to_owned(),
            ..labels(1, 1)
        };
        assert_ne!(small, fingerprint(&sized));
    }

    #[test]
    fn labels_are_bounded_in_bytes() {
        let limits = Limits {
            labels: 64,
            ..Limits::default()
        };
        assert!(checked_labels(labels(32, 252).labels, &limits).is_ok());
        let refused = checked_labels(labels(64, 255).labels, &limits).unwrap_err();
        assert_eq!(refused.reason, Reason::InvalidArgument);
    }
}
