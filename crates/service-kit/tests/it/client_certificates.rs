//! Client certificates over their life: rotated on both sides without a
//! restart, and refused once they expired or their authority is gone.

#![expect(
    clippy::disallowed_methods,
    reason = "certificates are judged by the machine's clock"
)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use service_kit::admin::Readiness;
use service_kit::connection::PeerInfo;
use service_kit::grpc::{self, ClientConfig, ServerConfig};
use service_kit::listen::{AcceptLimits, Incoming, Listener, ListenerConfig};
use service_kit::tls::{ClientTls, ClientTlsFiles, H2, ServerTls, TlsFiles};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

type Ca = CertifiedIssuer<'static, KeyPair>;

const DAY: Duration = Duration::from_secs(86_400);
const LONG: Duration = Duration::from_secs(30);

fn authority(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes `<file>.crt` and `<file>.key`, good from yesterday until `until`.
fn write_leaf(dir: &Path, file: &str, ca: &Ca, name: &str, until: SystemTime) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = until.into();
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, ca).unwrap();
    std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    std::fs::write(dir.join(format!("{file}.crt")), cert.pem()).unwrap();
}

fn soon() -> SystemTime {
    SystemTime::now() + DAY
}

/// A server that asks for certificates of the bundle `clients.crt`, and tells
/// each caller by what name it knows them.
struct Rig {
    dir: TempDir,
    address: SocketAddr,
    tls: Arc<ServerTls>,
    stop: CancellationToken,
}

impl Rig {
    async fn start(server: &Ca, clients: &[&Ca]) -> Self {
        let dir = TempDir::new().unwrap();
        write_leaf(dir.path(), "server", server, "localhost", soon());
        std::fs::write(dir.path().join("ca.crt"), server.pem()).unwrap();
        write_bundle(dir.path(), clients);
        let config = ListenerConfig {
            tls: Some(TlsFiles {
                cert: dir.path().join("server.crt"),
                key: dir.path().join("server.key"),
                client_ca: Some(dir.path().join("clients.crt")),
            }),
            ..ListenerConfig::plaintext("127.0.0.1:0".parse().unwrap())
        };
        let listener = Listener::bind(&config, H2).await.unwrap();
        let (address, tls) = (listener.local_addr(), listener.tls.clone().unwrap());
        let stop = CancellationToken::new();
        let incoming = Incoming::new(listener, AcceptLimits::default(), stop.clone());
        let health = grpc::health(&Readiness::new(), stop.clone());
        let spy =
            tonic::service::interceptor::InterceptedService::new(health, |request: tonic::Request<()>| {
                let peer = request.extensions().get::<PeerInfo>().expect("peer info");
                Err::<tonic::Request<()>, _>(tonic::Status::aborted(peer.names().join(" ")))
            });
        let server = grpc::server(&ServerConfig::default()).add_service(spy);
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        Self {
            dir,
            address,
            tls,
            stop,
        }
    }

    fn files(&self, client: &str) -> ClientTlsFiles {
        ClientTlsFiles {
            ca: Some(self.dir.path().join("ca.crt")),
            cert: Some(self.dir.path().join(format!("{client}.crt"))),
            key: Some(self.dir.path().join(format!("{client}.key"))),
            server_name: Some("localhost".to_owned()),
        }
    }

    fn channel_to(&self, client: &str, address: SocketAddr) -> Channel {
        let tls = self.files(client);
        grpc::channel(&ClientConfig {
            tls,
            ..ClientConfig::new(format!("https://{address}"))
        })
        .unwrap()
    }

    /// By what name a client is known on a new connection; none if it gets none.
    async fn known(&self, client: &str) -> Option<String> {
        known(&self.channel_to(client, self.address)).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn write_bundle(dir: &Path, all: &[&Ca]) {
    let bundle: String = all.iter().map(|ca| ca.pem()).collect();
    std::fs::write(dir.join("clients.crt"), bundle).unwrap();
}

async fn known(channel: &Channel) -> Option<String> {
    let mut client = HealthClient::new(channel.clone());
    let status = client.check(HealthCheckRequest::default()).await.unwrap_err();
    (status.code() == tonic::Code::Aborted).then(|| status.message().to_owned())
}

/// A way to the server whose connections can be cut.
struct Relay {
    address: SocketAddr,
    cut: Arc<std::sync::Mutex<CancellationToken>>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
        let now = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let until = now.lock().unwrap().clone();
                tokio::spawn(until.run_until_cancelled_owned(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                }));
            }
        });
        Self { address, cut }
    }

    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

#[tokio::test]
async fn a_rotated_client_certificate_is_shown_at_the_next_connection() {
    let ca = authority("services");
    let rig = Rig::start(&ca, &[&ca]).await;
    let dir = rig.dir.path();
    write_leaf(dir, "client", &ca, "old.berth.svc", soon());
    let relay = Relay::to(rig.address).await;
    // One channel for all: this is the client that is not restarted.
    let channel = rig.channel_to("client", relay.address);
    let shown = async || known(&channel).await;
    assert_eq!(shown().await.as_deref(), Some("old.berth.svc"));

    write_leaf(dir, "client", &ca, "new.berth.svc", soon());
    assert_eq!(
        shown().await.as_deref(),
        Some("old.berth.svc"),
        "a connection keeps what it began with"
    );
    relay.cut();
    let until = async |name: &str| {
        while shown().await.as_deref() != Some(name) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let until = async |name: &str| {
        tokio::time::timeout(LONG, until(name))
            .await
            .expect("never shown")
    };
    until("new.berth.svc").await;

    // Half a rotation, and files that are gone: the last good one goes on.
    let whole = std::fs::read(dir.join("client.crt")).unwrap();
    std::fs::write(dir.join("client.crt"), &whole[..whole.len() / 2]).unwrap();
    relay.cut();
    until("new.berth.svc").await;
    std::fs::remove_file(dir.join("client.key")).unwrap();
    relay.cut();
    until("new.berth.svc").await;
    write_leaf(dir, "client", &ca, "third.berth.svc", soon());
    relay.cut();
    until("third.berth.svc").await;
}

#[tokio::test]
async fn a_rotated_bundle_lets_the_new_authority_in_and_the_old_one_out() {
    let (server, old, new) = (authority("servers"), authority("old"), authority("new"));
    let rig = Rig::start(&server, &[&old]).await;
    let dir = rig.dir.path();
    write_leaf(dir, "of-old", &old, "of-old.berth.svc", soon());
    write_leaf(dir, "of-new", &new, "of-new.berth.svc", soon());
    let known = async || {
        (
            rig.known("of-old").await.is_some(),
            rig.known("of-new").await.is_some(),
        )
    };
    assert_eq!(known().await, (true, false));
    write_bundle(dir, &[&old, &new]);
    assert!(rig.tls.reload_if_changed().unwrap());
    assert_eq!(known().await, (true, true));
    write_bundle(dir, &[&new]);
    assert!(rig.tls.reload_if_changed().unwrap());
    assert_eq!(known().await, (false, true), "the authority was taken out");
    // A bundle that cannot be used opens nothing and closes nothing.
    for broken in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        std::fs::write(dir.join("clients.crt"), broken).unwrap();
        assert!(rig.tls.reload_if_changed().is_err());
        assert_eq!(known().await, (false, true));
    }
    std::fs::remove_file(dir.join("clients.crt")).unwrap();
    assert!(rig.tls.reload_if_changed().is_err());
    assert_eq!(known().await, (false, true));
}

#[tokio::test]
async fn a_rotated_server_authority_is_trusted_without_a_restart() {
    let (old, new, clients) = (authority("old"), authority("new"), authority("clients"));
    let rig = Rig::start(&old, &[&clients]).await;
    let dir = rig.dir.path();
    write_leaf(dir, "client", &clients, "client.berth.svc", soon());
    let relay = Relay::to(rig.address).await;
    let channel = rig.channel_to("client", relay.address);
    assert!(known(&channel).await.is_some());
    write_leaf(dir, "server", &new, "localhost", soon());
    assert!(rig.tls.reload_if_changed().unwrap());
    relay.cut();
    assert!(
        rig.known("client").await.is_none(),
        "the client does not know it yet"
    );
    std::fs::write(dir.join("ca.crt"), old.pem() + &new.pem()).unwrap();
    tokio::time::timeout(LONG, async {
        while known(&channel).await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the bundle is never read again");
}

#[tokio::test]
async fn what_expired_is_refused_also_when_it_was_good_a_moment_ago() {
    let ca = authority("services");
    let rig = Rig::start(&ca, &[&ca]).await;
    let dir = rig.dir.path();
    write_leaf(
        dir,
        "expired",
        &ca,
        "x.berth.svc",
        SystemTime::now() - Duration::from_secs(60),
    );
    assert_eq!(rig.known("expired").await, None);

    // A client that would resume its TLS session, if it were let.
    write_leaf(
        dir,
        "expiring",
        &ca,
        "x.berth.svc",
        SystemTime::now() + Duration::from_secs(4),
    );
    let tls = ClientTls::load(&rig.files("expiring"), H2).unwrap();
    let connect = async || {
        let tcp = TcpStream::connect(rig.address).await?;
        let name = tls.server_name("localhost").map_err(std::io::Error::other)?;
        let mut stream = tls.connector().connect(name, tcp).await?;
        let kind = stream.get_ref().1.handshake_kind();
        // With TLS 1.3 a refusal comes after the client's own handshake: the
        // server's first bytes, its HTTP/2 settings, prove that it is in.
        stream.read_exact(&mut [0; 9]).await?;
        Ok::<_, std::io::Error>(kind)
    };
    let mut good = 0;
    let begun = std::time::Instant::now();
    while let Ok(kind) = connect().await {
        good += 1;
        assert_eq!(kind, Some(rustls::HandshakeKind::Full), "nothing is resumed");
        assert!(begun.elapsed() < LONG, "it never expires");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(good > 1, "it was never good");
}
