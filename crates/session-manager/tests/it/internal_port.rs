//! The internal port: each method has a list of callers by the names in their
//! certificates, and admission rejects all others.

use crate::support::Manager;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use service_kit::grpc::{self, ClientConfig};
use service_kit::tls::ClientTlsFiles;
use session_core::Reason;
use session_core::access::Rpc;
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use std::fmt::Write as _;
use std::path::Path;
use tonic::Status;
use tonic::transport::Channel;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "services");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn certificate(dir: &Path, ca: &Ca, name: &str) -> ClientTlsFiles {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    let path = |end: &str| dir.join(format!("{name}.{end}"));
    std::fs::write(path("crt"), params.signed_by(&key, ca).unwrap().pem()).unwrap();
    std::fs::write(path("key"), key.serialize_pem()).unwrap();
    ClientTlsFiles {
        ca: Some(dir.join("ca.crt")),
        cert: Some(path("crt")),
        key: Some(path("key")),
        server_name: Some("localhost".to_owned()),
    }
}

fn internal() -> impl Iterator<Item = Rpc> {
    Rpc::ALL.iter().copied().filter(|rpc| rpc.rule().is_internal())
}

/// The only name that may call the method.
fn name_for(rpc: Rpc) -> String {
    format!(
        "{}.{}.berth.svc",
        rpc.method().to_lowercase(),
        rpc.service().to_lowercase()
    )
}

/// Calls the method with an empty request.
async fn call(channel: &Channel, rpc: Rpc) -> Result<(), Status> {
    let mut routes = RouteServiceClient::new(channel.clone());
    let mut ledger = TokenLedgerClient::new(channel.clone());
    macro_rules! call {
        ($client:ident . $method:ident ( $message:ident )) => {
            $client.$method(wire::$message::default()).await.map(drop)
        };
    }
    match rpc {
        Rpc::ResolveRoute => call!(routes.resolve_route(ResolveRouteRequest)),
        Rpc::WatchRoutes => call!(routes.watch_routes(WatchRoutesRequest)),
        Rpc::ReportActivity => call!(routes.report_activity(ReportActivityRequest)),
        Rpc::BindSparkSession => call!(routes.bind_spark_session(BindSparkSessionRequest)),
        Rpc::RecordToken => call!(ledger.record_token(RecordTokenRequest)),
        Rpc::ListTokens => call!(ledger.list_tokens(ListTokensRequest)),
        Rpc::Revoke => call!(ledger.revoke(RevokeRequest)),
        Rpc::RevokeAll => call!(ledger.revoke_all(RevokeAllRequest)),
        Rpc::ReportKeys => call!(ledger.report_keys(ReportKeysRequest)),
        other => panic!("{other:?} is internal and has no call here"),
    }
}

/// Whether the call was rejected because of the certificate.
fn is_shut(outcome: &Result<(), Status>) -> bool {
    outcome.as_ref().is_err_and(|status| {
        reason_of(status) == Some(Reason::NotAuthorized) && status.message().contains("certificate")
    })
}

#[tokio::test]
async fn each_method_accepts_only_its_listed_callers() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority();
    std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
    let own = certificate(dir.path(), &ca, "localhost");
    let mut config = format!(
        "listen.internal.tls.cert = \"{}\"\nlisten.internal.tls.key = \"{}\"\nlisten.internal.tls.client_ca = \"{}\"\n\
         [internal.allow]\nRouteService = [\"any.route.berth.svc\"]\nTokenLedger = [\"any.ledger.berth.svc\"]\n",
        own.cert.unwrap().display(),
        own.key.unwrap().display(),
        dir.path().join("ca.crt").display(),
    );
    for rpc in internal() {
        let (service, method, name) = (rpc.service(), rpc.method(), name_for(rpc));
        writeln!(config, "\"{service}/{method}\" = [\"{name}\"]").unwrap();
    }
    let manager = Manager::start_with(&config).await;
    let uri = manager.internal_uri.replace("http://", "https://");
    let channel = |name: &str| {
        let tls = certificate(dir.path(), &ca, name);
        grpc::channel(&ClientConfig {
            tls,
            ..ClientConfig::new(&uri)
        })
        .unwrap()
    };
    let mut let_in = 0;
    for caller in internal() {
        let channel = channel(&name_for(caller));
        for rpc in internal() {
            let outcome = call(&channel, rpc).await;
            assert_eq!(
                is_shut(&outcome),
                rpc != caller,
                "{caller:?} calls {rpc:?}: {outcome:?}"
            );
            // An admitted call fails later: in its handler or without a caller.
            let reached = outcome.as_ref().err().is_none_or(|status| {
                reason_of(status).is_some() || status.code() == tonic::Code::InvalidArgument
            });
            assert!(reached, "{caller:?} calls {rpc:?}: {outcome:?}");
            let_in += usize::from(rpc == caller);
        }
    }
    assert_eq!(let_in, internal().count());
    // The list of a method replaces that of its service.
    for name in ["any.route.berth.svc", "any.ledger.berth.svc", "localhost"] {
        let channel = channel(name);
        for rpc in internal() {
            let outcome = call(&channel, rpc).await;
            assert!(is_shut(&outcome), "{name} calls {rpc:?}: {outcome:?}");
        }
    }
    manager.stop().await;
}
