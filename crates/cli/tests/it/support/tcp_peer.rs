//! Peers that speak TCP or TLS and are broken in one way each.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A peer that treats each connection by `serve`.
pub(crate) async fn peer<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Sends an answer to the first bytes, whatever they are, and closes.
pub(crate) async fn answering(answer: &'static [u8]) -> SocketAddr {
    peer(move |mut stream: TcpStream| async move {
        let mut first = [0; 1024];
        if stream.read(&mut first).await.is_ok_and(|read| read > 0) {
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            // Without this the kernel resets the connection, because bytes
            // remain unread, and the answer can be lost.
            while stream.read(&mut first).await.is_ok_and(|read| read > 0) {}
        }
    })
    .await
}

/// Accepts and closes.
pub(crate) async fn closing() -> SocketAddr {
    peer(|stream: TcpStream| async move { drop(stream) }).await
}

/// Accepts and sends nothing.
pub(crate) async fn silent() -> SocketAddr {
    peer(|stream: TcpStream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await
}

/// A listener whose queue is full, so that packets to it are dropped.
pub(crate) struct Unreachable {
    pub(crate) address: SocketAddr,
    _listener: Socket,
    _queue: Vec<Socket>,
}

pub(crate) async fn unreachable() -> Unreachable {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let queue = (0..4).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into());
        socket
    });
    let queue = queue.collect();
    // The kernel completes the handshakes that fill the queue.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Unreachable {
        address,
        _listener: listener,
        _queue: queue,
    }
}

/// Forwards to `target` and cuts a connection after a quiet time.
pub(crate) async fn cutting(target: SocketAddr, quiet: Duration) -> SocketAddr {
    peer(move |mut client: TcpStream| async move {
        let Ok(mut server) = TcpStream::connect(target).await else {
            return;
        };
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        loop {
            let carried = tokio::select! {
                read = client.read(&mut up) => match read {
                    Ok(len) if len > 0 => server.write_all(&up[..len]).await,
                    _ => return,
                },
                read = server.read(&mut down) => match read {
                    Ok(len) if len > 0 => client.write_all(&down[..len]).await,
                    _ => return,
                },
                () = tokio::time::sleep(quiet) => return,
            };
            if carried.is_err() {
                return;
            }
        }
    })
    .await
}

/// A private authority that issues certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// Validity of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validity {
    Now,
    Past,
    Future,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "berth test authority");
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate and key for a name, as PEM.
    pub(crate) fn certificate(&self, name: &str, validity: Validity) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        match validity {
            Validity::Now => {}
            Validity::Past => params.not_after = date_time_ymd(2020, 1, 1),
            Validity::Future => params.not_before = date_time_ymd(2100, 1, 1),
        }
        if validity == Validity::Future {
            params.not_after = date_time_ymd(2101, 1, 1);
        }
        if validity == Validity::Past {
            params.not_before = date_time_ymd(2019, 1, 1);
        }
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// A TLS server that answers as HTTP/2 does, if anybody gets so far.
    pub(crate) async fn server(
        &self,
        name: &str,
        validity: Validity,
        alpn: bool,
        client_auth: bool,
    ) -> SocketAddr {
        let (cert, key) = self.certificate(name, validity);
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let builder = ServerConfig::builder_with_provider(service_kit::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if client_auth {
            let mut roots = rustls::RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
                .unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), service_kit::tls::provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(chain, key).unwrap();
        if alpn {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        peer(move |stream: TcpStream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                // An empty SETTINGS frame.
                let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
                let mut first = [0; 1024];
                while stream.read(&mut first).await.is_ok_and(|read| read > 0) {}
            }
        })
        .await
    }

    /// Writes the authority, and a certificate for localhost with its key.
    pub(crate) fn write(&self, dir: &Path) {
        let (cert, key) = self.certificate("localhost", Validity::Now);
        for (name, text) in [("ca.pem", &self.pem), ("cert.pem", &cert), ("key.pem", &key)] {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
}
