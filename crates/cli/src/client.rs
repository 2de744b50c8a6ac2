//! Connections to Berth's APIs, and the conversion of their errors.

use crate::settings::Target;
use anyhow::{Context as _, Result, bail};
use session_core::Reason;
use session_proto::error::{code_of, reason_of};
use session_proto::v1::audit_service_client::AuditServiceClient;
use session_proto::v1::catalog_service_client::CatalogServiceClient;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use session_token::MAX_EXTERNAL_TOKEN_BYTES;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

pub(crate) type Service = InterceptedService<Channel, WithKey>;

/// Adds the caller's credential to every request.
#[derive(Clone)]
pub(crate) struct WithKey(MetadataValue<Ascii>);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(crate) async fn sessions(target: &Target) -> Result<SessionServiceClient<Service>> {
    Ok(SessionServiceClient::new(
        service(target, &target.manager.value).await?,
    ))
}

pub(crate) async fn clusters(target: &Target) -> Result<ClusterServiceClient<Service>> {
    Ok(ClusterServiceClient::new(
        service(target, &target.manager.value).await?,
    ))
}

pub(crate) async fn catalogs(target: &Target) -> Result<CatalogServiceClient<Service>> {
    Ok(CatalogServiceClient::new(
        service(target, &target.manager.value).await?,
    ))
}

pub(crate) async fn orgs(target: &Target) -> Result<OrgServiceClient<Service>> {
    Ok(OrgServiceClient::new(
        service(target, &target.manager.value).await?,
    ))
}

pub(crate) async fn audit(target: &Target) -> Result<AuditServiceClient<Service>> {
    Ok(AuditServiceClient::new(
        service(target, &target.manager.value).await?,
    ))
}

pub(crate) async fn tokens(target: &Target) -> Result<TokenServiceClient<Service>> {
    Ok(TokenServiceClient::new(
        service(target, &target.issuer.value).await?,
    ))
}

async fn service(target: &Target, address: &str) -> Result<Service> {
    let credential = credential(target).await?;
    if credential.len() > MAX_EXTERNAL_TOKEN_BYTES {
        bail!(
            "the key or token has {} bytes, and Berth accepts at most {MAX_EXTERNAL_TOKEN_BYTES}: ask your identity provider for a token with fewer groups or claims",
            credential.len()
        );
    }
    let mut bearer: MetadataValue<Ascii> = format!("Bearer {credential}")
        .parse()
        .context("the key or token is not plain text")?;
    bearer.set_sensitive(true);
    if !target.insecure && !service_kit::grpc::is_secure(address) {
        bail!(
            "{address} is plaintext, and your key or token could be read on the network: use https:// or --insecure"
        );
    }
    let mut endpoint = Endpoint::from_shared(address.to_owned())
        .with_context(|| format!("{address:?} is not an address like https://berth.example.org:8081"))?
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(90));
    if address.starts_with("https://") {
        let mut tls = ClientTlsConfig::new();
        if let Some(file) = target.ca.as_ref().map(|ca| &ca.value) {
            let pem = tokio::fs::read(file)
                .await
                .with_context(|| format!("reading {}", file.display()))?;
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        } else {
            tls = tls.with_enabled_roots();
        }
        endpoint = endpoint.tls_config(tls).context("setting TLS up")?;
    }
    Ok(InterceptedService::new(endpoint.connect_lazy(), WithKey(bearer)))
}

/// The credential in effect.
async fn credential(target: &Target) -> Result<String> {
    match &target.credential {
        Some(source) => source.value.secret().await,
        None => bail!(
            "no credential: sign in with `berth login`, or set BERTH_KEY to your service-account key, or BERTH_TOKEN to a token of your identity provider"
        ),
    }
}

/// Whether the same call can succeed a moment later. Its effect is unknown: only idempotent calls
/// may be repeated.
pub(crate) fn is_temporary(status: &Status) -> bool {
    match reason_of(status) {
        Some(reason) => {
            code_of(reason) == Code::Unavailable || matches!(reason, Reason::RateLimited | Reason::Conflict)
        }
        // Of a lost connection, or of a gateway on the way.
        None => matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Internal | Code::Unknown
        ),
    }
}

/// Adds a hint to transport errors; Berth's own texts already contain one.
pub(crate) fn explain(status: Status) -> anyhow::Error {
    let berths_own = reason_of(&status).is_some();
    if berths_own {
        return anyhow::anyhow!("{}", status.message());
    }
    match status.code() {
        Code::Unavailable => anyhow::anyhow!(
            "Berth cannot be reached: {}. Check BERTH_MANAGER and BERTH_ISSUER (http:// or https://); `berth doctor` finds the cause.",
            root_cause(&status)
        ),
        _ if is_head_too_large(&status) => anyhow::anyhow!(
            "a proxy on the way to Berth refused the size of your request's headers (HTTP 431): \
             use a token with fewer groups or claims, or have that proxy allow larger headers"
        ),
        Code::Unimplemented => anyhow::anyhow!(
            "The server at this address does not serve this command. --manager (BERTH_MANAGER) is \
             session-manager's API, port 8081 by default; --issuer (BERTH_ISSUER) is token-issuer's, \
             port 8083 by default. If both are right, the server is older than this command."
        ),
        code => anyhow::anyhow!("{code:?}: {}", status.message()),
    }
}

/// Whether the reply was a bare HTTP 431 instead of gRPC; tonic reports it only
/// in the message.
fn is_head_too_large(status: &Status) -> bool {
    status.message().contains("HTTP status code 431")
}

fn root_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_proto::error::Refused;

    #[test]
    fn outages_are_temporary_and_rejections_are_not() {
        let of = |reason| is_temporary(&Refused::new(reason, "text").into_status());
        for reason in [
            Reason::ControlPlaneUnavailable,
            Reason::RateLimited,
            Reason::Conflict,
        ] {
            assert!(of(reason), "{reason}");
        }
        for reason in [Reason::QuotaExceeded, Reason::NotAuthorized, Reason::Internal] {
            assert!(!of(reason), "{reason}");
        }
        assert!(is_temporary(&Status::unavailable("connection refused")));
        assert!(is_temporary(&Status::internal("h2 protocol error")));
        assert!(!is_temporary(&Status::unauthenticated("by a gateway")));
    }
}
