//! The caller of a request: its credential, and clients of the gRPC APIs that
//! carry it.

use crate::credential::Credential;
use crate::front::Front;
use crate::problem::Problem;
use crate::state::AppState;
use crate::upstream::Channels;
use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use service_kit::telemetry;
use session_proto::v1::audit_service_client::AuditServiceClient;
use session_proto::v1::catalog_service_client::CatalogServiceClient;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tracing::Span;

/// Largest reply of the gRPC APIs: a page of 1000 sessions with long labels.
const MAX_REPLY: usize = 32 * 1024 * 1024;
/// Longest credential that the gRPC APIs accept, in bytes.
const MAX_CREDENTIAL: usize = 48 * 1024;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Headers of a request that go on to the gRPC APIs unchanged.
const TRACE_CONTEXT: [&str; 2] = ["traceparent", "tracestate"];
/// Longest value of them; W3C asks to pass at least 512 bytes of `tracestate` on. A longer one is
/// left out, because the APIs would reject the call for its size.
const MAX_TRACE_CONTEXT: usize = 512;

pub(crate) type Service = InterceptedService<Channel, Forward>;

/// Adds the caller's credential, address and trace to every call.
#[derive(Debug, Clone)]
pub(crate) struct Forward(HeaderMap);

impl Interceptor for Forward {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let mut headers = std::mem::take(request.metadata_mut()).into_headers();
        headers.extend(self.0.clone());
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        Ok(request)
    }
}

/// The caller of a request.
#[derive(Debug)]
pub(crate) struct Caller {
    app: AppState,
    pub(crate) front: Front,
    credential: Credential,
    channels: Channels,
    forward: Forward,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        let credential = Credential::from_request_parts(parts, app).await?;
        Self::new(app, parts, credential)
    }
}

fn forward(credential: &Credential, front: &Front, asked: &HeaderMap) -> Result<Forward, Problem> {
    if credential.expose().len() > MAX_CREDENTIAL {
        let text = format!(
            "the credential has more than {MAX_CREDENTIAL} bytes: use a token with fewer groups or claims"
        );
        return Err(Problem::no_credential(text));
    }
    let mut headers = HeaderMap::new();
    let bearer = HeaderValue::try_from(format!("Bearer {}", credential.expose()));
    let mut bearer = bearer.map_err(|_| Problem::no_credential("the credential is not plain text"))?;
    bearer.set_sensitive(true);
    headers.insert(header::AUTHORIZATION, bearer);
    if let Some(client) = front.client
        && let Ok(client) = HeaderValue::try_from(client.ip().to_string())
    {
        headers.insert(FORWARDED_FOR, client);
    }
    for name in TRACE_CONTEXT {
        if let Some(value) = asked.get(name).filter(|value| value.len() <= MAX_TRACE_CONTEXT) {
            headers.insert(name, value.clone());
        }
    }
    telemetry::inject(&Span::current(), &mut headers);
    if let Ok(id) = HeaderValue::try_from(&front.request_id) {
        headers.insert(crate::front::REQUEST_ID, id);
    }
    Ok(Forward(headers))
}

impl Caller {
    /// The caller with this credential.
    ///
    /// # Errors
    /// The credential cannot be sent, or has too many requests.
    pub(crate) fn new(app: &AppState, parts: &Parts, credential: Credential) -> Result<Self, Problem> {
        let front = Front::of(parts);
        let permit = app.limits.enter_credential(credential.id())?;
        front.hold(permit);
        let forward = forward(&credential, &front, &parts.headers)?;
        Ok(Self {
            channels: app.upstream.channels(&credential),
            app: app.clone(),
            front,
            credential,
            forward,
        })
    }

    pub(crate) fn app(&self) -> &AppState {
        &self.app
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Releases the places among the concurrent requests, for a stream.
    pub(crate) fn release(&self) {
        self.front.release();
    }

    fn service(&self, channel: &Channel) -> Service {
        InterceptedService::new(channel.clone(), self.forward.clone())
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Service> {
        SessionServiceClient::new(self.service(&self.channels.manager)).max_decoding_message_size(MAX_REPLY)
    }

    pub(crate) fn clusters(&self) -> ClusterServiceClient<Service> {
        ClusterServiceClient::new(self.service(&self.channels.manager)).max_decoding_message_size(MAX_REPLY)
    }

    pub(crate) fn catalogs(&self) -> CatalogServiceClient<Service> {
        CatalogServiceClient::new(self.service(&self.channels.manager)).max_decoding_message_size(MAX_REPLY)
    }

    pub(crate) fn orgs(&self) -> OrgServiceClient<Service> {
        OrgServiceClient::new(self.service(&self.channels.manager)).max_decoding_message_size(MAX_REPLY)
    }

    pub(crate) fn audit(&self) -> AuditServiceClient<Service> {
        AuditServiceClient::new(self.service(&self.channels.manager)).max_decoding_message_size(MAX_REPLY)
    }

    pub(crate) fn tokens(&self) -> TokenServiceClient<Service> {
        TokenServiceClient::new(self.service(&self.channels.issuer)).max_decoding_message_size(MAX_REPLY)
    }

    /// The answer of a call. Also records whether the API accepted the
    /// credential.
    ///
    /// # Errors
    /// The call's status as a problem.
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Problem> {
        match call.await {
            Ok(response) => {
                self.accepted();
                Ok(response.into_inner())
            }
            Err(status) => {
                if status.code() == Code::Unauthenticated {
                    self.app.limits.failed(self.front.client);
                } else if proves_authentication(&status) {
                    self.accepted();
                }
                Err(status.into())
            }
        }
    }

    fn accepted(&self) {
        self.app.upstream.accepted(&self.credential);
        self.front.usage.caller_known();
    }
}

/// Whether an API fails with this status only after it accepted the credential. Sizes, rates and
/// outages are reported before, to whoever calls.
fn proves_authentication(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::PermissionDenied)
        && session_proto::error::reason_of(status).is_some()
}

/// The object of a reply, which the API always sets.
///
/// # Errors
/// An internal error without it.
pub(crate) fn required<T>(object: Option<T>) -> Result<T, Problem> {
    object.ok_or_else(|| Status::internal("a reply without its object").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_after_the_authentication_prove_it() {
        use session_core::Reason;
        use session_proto::error::Refused;
        let proves = |reason| proves_authentication(&Refused::new(reason, "text").into());
        assert!(proves(Reason::NotAuthorized));
        for reason in [
            Reason::RateLimited,
            Reason::InvalidArgument,
            Reason::ControlPlaneUnavailable,
        ] {
            assert!(!proves(reason), "{reason:?}");
        }
        assert!(!proves_authentication(&Status::not_found("of a proxy between")));
    }

    #[test]
    fn a_long_trace_state_is_left_out() {
        let (parts, ()) = http::Request::new(()).into_parts();
        let mut asked = HeaderMap::new();
        asked.insert("tracestate", format!("a={}", "b".repeat(511)).parse().unwrap());
        let Forward(headers) = forward(&Credential::new("key"), &Front::of(&parts), &asked).unwrap();
        assert!(!headers.contains_key("tracestate"));
    }

    #[test]
    fn calls_carry_the_credential_the_address_and_the_trace() {
        let (parts, ()) = http::Request::new(()).into_parts();
        let mut front = Front::of(&parts);
        front.client = Some("192.0.2.7:5".parse().unwrap());
        "r-1".clone_into(&mut front.request_id);
        let mut asked = HeaderMap::new();
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        for (name, value) in [
            ("traceparent", trace),
            ("tracestate", "a=b"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-berth-caller-address", "203.0.113.9"),
            ("cookie", "c"),
        ] {
            asked.insert(name, value.parse().unwrap());
        }
        let Forward(headers) = forward(&Credential::new("key"), &front, &asked).unwrap();
        let found: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        let expected = [
            ("authorization", "Bearer key"),
            ("x-forwarded-for", "192.0.2.7"),
            ("traceparent", trace),
            ("tracestate", "a=b"),
            ("x-request-id", "r-1"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(expected.iter().all(|header| found.contains(header)), "{found:?}");
        assert!(headers[header::AUTHORIZATION].is_sensitive());
        assert!(forward(&Credential::new("a\nb"), &front, &asked).is_err());
        assert!(forward(&Credential::new(&"x".repeat(50_000)), &front, &asked).is_err());
    }
}
