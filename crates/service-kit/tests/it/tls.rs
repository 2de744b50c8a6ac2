//! TLS and gRPC over real sockets: handshakes, client certificates, hot
//! reload, limits. The health service stands in for any gRPC service.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use service_kit::admin::Readiness;
use service_kit::connection::PeerInfo;
use service_kit::grpc::{self, ClientConfig, ServerConfig};
use service_kit::limits::LimitsConfig;
use service_kit::listen::{AcceptLimits, Incoming, Listener, ListenerConfig};
use service_kit::tls::{ClientTlsFiles, H2, ServerTls, TlsFiles};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn write_leaf(dir: &Path, file: &str, ca: &Ca, names: &[&str]) -> (PathBuf, PathBuf) {
    let mut params =
        CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, ca).unwrap();
    let (cert_path, key_path) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    std::fs::write(&cert_path, cert.pem()).unwrap();
    std::fs::write(&key_path, key.serialize_pem()).unwrap();
    (cert_path, key_path)
}

fn write_ca(dir: &Path, file: &str, ca: &Ca) -> PathBuf {
    let path = dir.join(format!("{file}.crt"));
    std::fs::write(&path, ca.pem()).unwrap();
    path
}

struct Rig {
    dir: TempDir,
    ca: Ca,
    address: SocketAddr,
    stop: CancellationToken,
    tls: Option<std::sync::Arc<ServerTls>>,
}

/// A server on a free port that answers health checks and, in the status text
/// of an unknown service, whom it sees.
async fn serve(tls: bool, client_ca: bool) -> Rig {
    let dir = TempDir::new().unwrap();
    let ca = authority("test authority");
    let ca_path = write_ca(dir.path(), "ca", &ca);
    let (cert, key) = write_leaf(dir.path(), "server", &ca, &["localhost", "127.0.0.1"]);
    let files = TlsFiles {
        cert,
        key,
        client_ca: client_ca.then_some(ca_path),
    };
    let config = ListenerConfig {
        tls: tls.then_some(files),
        ..ListenerConfig::plaintext("127.0.0.1:0".parse().unwrap())
    };
    let listener = Listener::bind(&config, H2).await.unwrap();
    let (address, tls) = (listener.local_addr(), listener.tls.clone());
    let stop = CancellationToken::new();
    let incoming = Incoming::new(listener, AcceptLimits::default(), stop.clone());
    let health = grpc::health(&Readiness::new(), stop.clone());
    let spy = tonic::service::interceptor::InterceptedService::new(health, |request: tonic::Request<()>| {
        let peer = request.extensions().get::<PeerInfo>().expect("peer info");
        if request.metadata().contains_key("who-am-i") {
            let named = ["worker.internal", "other.internal"].map(|name| peer.is_named(name));
            let text = format!(
                "tls={} certs={} named={named:?}",
                peer.tls,
                peer.certificates.len()
            );
            return Err(tonic::Status::aborted(text));
        }
        Ok(request)
    });
    let server = grpc::server(&ServerConfig::default()).add_service(spy);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    Rig {
        dir,
        ca,
        address,
        stop,
        tls,
    }
}

impl Rig {
    fn client(&self, scheme: &str, host: &str, cert: Option<(PathBuf, PathBuf)>) -> ClientConfig {
        let (cert, key) = cert.unzip();
        let ca = Some(self.dir.path().join("ca.crt")).filter(|path| path.exists());
        ClientConfig {
            tls: ClientTlsFiles {
                ca,
                cert,
                key,
                server_name: None,
            },
            ..ClientConfig::new(format!("{scheme}://{host}:{}", self.address.port()))
        }
    }
}

async fn check(config: &ClientConfig) -> Result<ServingStatus, tonic::Status> {
    let mut client = HealthClient::new(grpc::channel(config).unwrap());
    Ok(client
        .check(HealthCheckRequest::default())
        .await?
        .into_inner()
        .status())
}

async fn who_am_i(config: &ClientConfig) -> String {
    let mut client = HealthClient::new(grpc::channel(config).unwrap());
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("who-am-i", "?".parse().unwrap());
    client.check(request).await.unwrap_err().message().to_owned()
}

#[tokio::test]
async fn plaintext_and_tls_channels_reach_their_servers() {
    let plain = serve(false, false).await;
    let client = plain.client("http", "127.0.0.1", None);
    assert_eq!(check(&client).await.unwrap(), ServingStatus::Serving);
    assert_eq!(who_am_i(&client).await, "tls=false certs=0 named=[false, false]");

    let tls = serve(true, false).await;
    for host in ["localhost", "127.0.0.1"] {
        let client = tls.client("https", host, None);
        assert_eq!(check(&client).await.unwrap(), ServingStatus::Serving);
    }
    assert_eq!(
        who_am_i(&tls.client("https", "localhost", None)).await,
        "tls=true certs=0 named=[false, false]"
    );

    let mixed_up = tls.client("http", "127.0.0.1", None);
    assert!(check(&mixed_up).await.is_err());
    plain.stop.cancel();
}

#[tokio::test]
async fn a_foreign_authority_and_a_wrong_name_are_not_trusted() {
    let rig = serve(true, false).await;
    let mut client = rig.client("https", "localhost", None);
    client.tls.server_name = Some("elsewhere.example".into());
    assert!(check(&client).await.is_err());
    client.tls.server_name = None;
    client.tls.ca = Some(write_ca(rig.dir.path(), "foreign", &authority("foreign")));
    assert!(check(&client).await.is_err());
    client.tls.ca = None;
    assert!(
        check(&client).await.is_err(),
        "the system's authorities do not know ours"
    );
}

#[tokio::test]
async fn client_certificates_are_required_and_named() {
    let rig = serve(true, true).await;
    assert!(
        check(&rig.client("https", "localhost", None)).await.is_err(),
        "no certificate"
    );

    let foreign = write_leaf(
        rig.dir.path(),
        "foreign",
        &authority("foreign"),
        &["worker.internal"],
    );
    assert!(
        check(&rig.client("https", "localhost", Some(foreign)))
            .await
            .is_err(),
        "foreign certificate"
    );

    let worker = write_leaf(rig.dir.path(), "worker", &rig.ca, &["worker.internal"]);
    let client = rig.client("https", "localhost", Some(worker));
    assert_eq!(who_am_i(&client).await, "tls=true certs=1 named=[true, false]");
}

#[tokio::test]
async fn certificates_are_replaced_without_a_restart_and_bad_ones_are_not() {
    let rig = serve(true, false).await;
    let tls = rig.tls.clone().unwrap();
    let client = rig.client("https", "localhost", None);
    let before = tls.current();
    assert!(!tls.reload_if_changed().unwrap());

    // Half a rotation: the certificate is new, the key still the old one.
    let old_key = std::fs::read(rig.dir.path().join("server.key")).unwrap();
    let renewed = authority("renewed authority");
    write_leaf(rig.dir.path(), "server", &renewed, &["localhost"]);
    let new_key = std::fs::read(rig.dir.path().join("server.key")).unwrap();
    std::fs::write(rig.dir.path().join("server.key"), old_key).unwrap();
    assert!(tls.reload_if_changed().is_err());
    assert!(!tls.reload_if_changed().unwrap(), "reported once");
    assert!(std::sync::Arc::ptr_eq(&before, &tls.current()));
    assert_eq!(check(&client).await.unwrap(), ServingStatus::Serving);

    std::fs::remove_file(rig.dir.path().join("server.key")).unwrap();
    assert!(tls.reload_if_changed().is_err());
    assert_eq!(check(&client).await.unwrap(), ServingStatus::Serving);

    std::fs::write(rig.dir.path().join("server.key"), new_key).unwrap();
    assert!(tls.reload_if_changed().unwrap());
    assert!(
        check(&client).await.is_err(),
        "the client trusts the old authority only"
    );
    // A channel that was made before follows its own files, too.
    let channel = grpc::channel(&client).unwrap();
    write_ca(rig.dir.path(), "ca", &renewed);
    let mut client = HealthClient::new(channel);
    assert!(client.check(HealthCheckRequest::default()).await.is_ok());
}

#[tokio::test]
async fn the_files_are_followed_by_themselves() {
    let rig = serve(true, false).await;
    let tls = rig.tls.clone().unwrap();
    let before = tls.current();
    write_leaf(rig.dir.path(), "server", &rig.ca, &["localhost"]);
    let replaced = async {
        while std::sync::Arc::ptr_eq(&before, &tls.current()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), replaced)
        .await
        .expect("never reloaded");
}

#[tokio::test]
async fn a_silent_client_is_dropped_and_delays_nobody() {
    let dir = TempDir::new().unwrap();
    let ca = authority("ca");
    write_ca(dir.path(), "ca", &ca);
    let (cert, key) = write_leaf(dir.path(), "server", &ca, &["localhost"]);
    let config = ListenerConfig {
        tls: Some(TlsFiles {
            cert,
            key,
            client_ca: None,
        }),
        ..ListenerConfig::plaintext("127.0.0.1:0".parse().unwrap())
    };
    let listener = Listener::bind(&config, H2).await.unwrap();
    let address = listener.local_addr();
    let stop = CancellationToken::new();
    let limits = AcceptLimits {
        handshake_timeout: Duration::from_millis(300),
        ..AcceptLimits::default()
    };
    let incoming = Incoming::new(listener, limits, stop.clone());
    let health = grpc::health(&Readiness::new(), stop.clone());
    let server = grpc::server(&ServerConfig::default()).add_service(health);
    let serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));

    let mut silent = TcpStream::connect(address).await.unwrap();
    let rig = Rig {
        dir,
        ca,
        address,
        stop,
        tls: None,
    };
    assert!(check(&rig.client("https", "localhost", None)).await.is_ok());
    let closed = tokio::time::timeout(Duration::from_secs(30), silent.read(&mut [0; 8])).await;
    assert!(matches!(closed.expect("still open"), Ok(0) | Err(_)));

    rig.stop.cancel();
    serving.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn no_more_connections_than_allowed() {
    let config = ListenerConfig::plaintext("127.0.0.1:0".parse().unwrap());
    let listener = Listener::bind(&config, H2).await.unwrap();
    let address = listener.local_addr();
    let limits = AcceptLimits {
        connections: 1,
        ..AcceptLimits::default()
    };
    let mut incoming = Incoming::new(listener, limits, CancellationToken::new());
    let _clients = (
        TcpStream::connect(address).await.unwrap(),
        TcpStream::connect(address).await.unwrap(),
    );
    let next = async |incoming: &mut Incoming| {
        std::future::poll_fn(|cx| futures::Stream::poll_next(std::pin::Pin::new(&mut *incoming), cx)).await
    };
    let first = next(&mut incoming).await.unwrap().unwrap();
    let second = tokio::time::timeout(Duration::from_millis(200), next(&mut incoming)).await;
    assert!(second.is_err(), "two at once");
    drop(first);
    assert!(next(&mut incoming).await.unwrap().is_ok());
}

#[tokio::test]
async fn one_address_has_its_share_of_the_connections() {
    let config = ListenerConfig::plaintext("127.0.0.1:0".parse().unwrap());
    let listener = Listener::bind(&config, H2).await.unwrap();
    let address = listener.local_addr();
    let limits = LimitsConfig {
        connections_per_address: 2,
        trusted_proxies: vec!["127.0.0.9/32".parse().unwrap()],
        ..LimitsConfig::default()
    };
    let mut incoming = Incoming::new(listener, limits.connections(), CancellationToken::new());
    let connect = async |from: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        socket.connect(address).await.unwrap()
    };
    let mut next = async || {
        std::future::poll_fn(|cx| futures::Stream::poll_next(std::pin::Pin::new(&mut incoming), cx))
            .await
            .unwrap()
            .unwrap()
    };
    let _one = (connect("127.0.0.1:0").await, connect("127.0.0.1:0").await);
    let served = (next().await, next().await);
    let mut third = connect("127.0.0.1:0").await;
    let closed = tokio::time::timeout(Duration::from_secs(10), third.read(&mut [0; 8])).await;
    assert!(matches!(closed.expect("still open"), Ok(0) | Err(_)));
    // Others go on: another address, and a proxy that stands for many callers.
    let mut _others = vec![connect("127.0.0.2:0").await];
    let mut kept = vec![next().await];
    for _ in 0..5 {
        _others.push(connect("127.0.0.9:0").await);
        kept.push(next().await);
    }
    drop(served);
    let _again = connect("127.0.0.1:0").await;
    kept.push(next().await);
}

#[tokio::test]
async fn a_dead_address_answers_unavailable_within_the_connect_timeout() {
    // 192.0.2.0/24 is for documentation: nothing answers there.
    let config = ClientConfig {
        connect_timeout: Duration::from_millis(300),
        ..ClientConfig::new("http://192.0.2.1:9")
    };
    let status = tokio::time::timeout(Duration::from_secs(20), check(&config))
        .await
        .expect("hangs")
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}
